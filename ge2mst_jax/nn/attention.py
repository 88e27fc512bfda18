"""What every attention is, trained or deployed: layers without weights that count where spikes meet."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.grouping import REAL, Scale, attention_synops, keys_first, share_heads
from ge2mst_jax.nn.wire import AttentionRecord, Current, Signal, Wire


class CountingLayer(nn.Module):
    """Counts where signals meet; `training.Valued` and `deployed.Shifted` say in which units it hands them on.

    Args:
        wire: the network's agreement.
        heads: attention heads.
        scales: token groups that the heads share, where there are any.
        worth: of one count, in place of what the layer would scale its sums by.

    Call: `(*signals) -> (Current, unit, aux)`: `unit`, `[C]`, is the value of one count where the current is not in
    counts yet, or `None`.
    """

    wire: Wire
    heads: int
    scales: tuple[Scale, ...] = ()
    worth: float | None = None

    @nn.compact
    def __call__(self, *signals: Signal):
        counts, aux = self.count(*signals)
        return *self.handed_on(counts, signals, aux), aux


class AttentionLayer(CountingLayer):
    __doc__ = "`A·v`, `A = q kᵀ` inside token groups; values may be wider than keys. " + CountingLayer.__doc__

    def count(self, q, k, v):
        return attention_counts(q, k, v, self)

    def unit(self, q, k, v):
        if self.worth is not None:
            return jnp.repeat(value_of((q, k, v), jnp.full(self.heads, self.worth)), v.image_shape[-1] // self.heads)
        return unit_of(q, k, v, self.heads, self.scales)


def attention_counts(q: Signal, k: Signal, v: Signal, layer: AttentionLayer):
    """`A·v` as a current of integers, and what it leaves in `aux`.

    Args:
        q, k, v: levels, spike trains, or steps, all three.
        layer: whose heads and scales; its `halves` are two linear maps, of `v` and of its sum over time:
            `attention_halves`, or what gives the same. Its operands are of type `operand`.
    """
    heads, scales, name, dtype = layer.heads, layer.scales, "/".join(layer.path), layer.operand
    rates = REAL if v.code is None else layer.wire.attention_rates  # of one step all three are alike
    height, width, channels = v.image_shape
    keys, queries = (split(x.planes.astype(dtype), heads) for x in (k, q))
    weights = q.code.step_weights if q.form == "train" else None
    of_values, of_queries = layer.halves(
        queries, keys, scales, grid=(height, width), rates=rates, weights=weights, value_width=channels // heads
    )
    counts = v.integrate(lambda x: of_values(split(x.astype(dtype), heads)), lambda x: join(of_queries(x)))
    d = k.image_shape[-1] // heads
    made = AttentionRecord(
        synops=None if layer.wire.capture == "none" else _synops(q, k, v, heads, scales, rates),
        sources=(q.source, k.source, v.source),
        products=tuple(_products(q, k, v, heads, scales, rates)),
        bound=max(scale.tokens for scale in scales) * d * math.prod(s.largest for s in (q, k, v)),
        out_shape=v.image_shape,
    )
    return Current(counts, (name,), v.form == "steps"), {name: made}


def split(x, heads: int):
    """`[N, H, W, C]` -> `[N, H, W, h, d]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def join(x):
    """`[N, H, W, h, d]` -> `[N, H, W, C]`."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _synops(q: Signal, k: Signal, v: Signal, heads: int, scales, rates):
    """`[B]` int32, exact: 0 where real numbers are sent, which no spike adds up."""
    if v.real:
        return jnp.zeros(len(v.data), jnp.int32)
    operands = (jax.lax.stop_gradient(split(signal.spikes, heads)) for signal in (q, k, v))
    synops = attention_synops(*operands, scales, grid=v.image_shape[:2], rates=rates)  # [N]
    return of_images(synops, v)


def of_images(synops, signal: Signal):
    """`[B]` from the synops of each image, `[N]`, of a signal's planes."""
    return synops.reshape(signal.data.shape[0] if signal.form == "steps" else 1, -1).sum(0) if synops.size else synops


def _products(q: Signal, k: Signal, v: Signal, heads: int, scales, rates):
    """`(multiply-accumulates an image, the neuron layers whose spikes meet)` of each scale's two products."""
    height, width, channels = v.image_shape
    value_width, d = channels // heads, k.image_shape[-1] // heads
    for scale, share in zip(scales, share_heads(heads, scales), strict=True):
        positions = height * width * (share.stop - share.start)
        if keys_first(scale.tokens, d, rates, value_width):
            yield positions * value_width * d, (k.source, v.source)
            yield positions * value_width * d, (q.source,)
        else:
            yield positions * d * scale.tokens, (q.source, k.source)
            yield positions * value_width * scale.tokens, (v.source,)


def unit_of(q: Signal, k: Signal, v: Signal, heads: int, scales):
    """`2^-p θ_q θ_k θ_v` per channel, `[C]`: p is such that the sum starts near the local half's size."""
    d = k.image_shape[-1] // heads
    shifts = [
        2.0 ** (4 - round(math.log2(scale.tokens * d)))
        for scale, share in zip(scales, share_heads(heads, scales), strict=True)
        for _ in range(share.start, share.stop)
    ]
    unit = value_of((q, k, v), jnp.asarray(shifts, jnp.float32))
    return jnp.repeat(unit, v.image_shape[-1] // heads)


def value_of(signals, unit):
    """A unit of each head, `[h]`, times what one level of each signal is worth."""
    for signal in signals:
        unit = signal.weigh(unit)
    return unit
