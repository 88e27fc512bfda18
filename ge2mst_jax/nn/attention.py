"""What every attention is, trained or deployed: coincidences of spikes counted inside token groups."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.grouping import REAL, Scale, attention_synops, keys_first, share_heads
from ge2mst_jax.nn.wire import AttentionRecord, Current, Signal, Wire


class AttentionLayer(nn.Module):
    """Attention of three signals; `training.Attention` and `deployed.Attention` say in which units its counts are.

    Args:
        wire: the network's agreement.
        heads: attention heads; the scales share them.
        scales: token groups.

    Call: `(q, k, v) -> (Current, unit, aux)`: `unit`, `[C]`, is the value of one count where the current is not in
    counts yet, or `None`.
    """

    wire: Wire
    heads: int
    scales: tuple[Scale, ...]

    @nn.compact
    def __call__(self, q: Signal, k: Signal, v: Signal):
        return self.attend(q, k, v)


def attention_counts(q: Signal, k: Signal, v: Signal, layer: AttentionLayer, halves, dtype):
    """`A·v` as a current of integers, and what it leaves in `aux`.

    Args:
        q, k, v: levels, spike trains, or steps, all three.
        layer: whose heads and scales.
        halves: two linear maps, of `v` and of its sum over time: `attention_halves`, or what gives the same.
        dtype: of the operands.
    """
    heads, scales, name = layer.heads, layer.scales, "/".join(layer.path)
    rates = REAL if v.code is None else layer.wire.attention_rates  # of one step all three are alike
    height, width, channels = v.image_shape
    keys, queries = (split(x.planes.astype(dtype), heads) for x in (k, q))
    weights = q.code.step_weights if q.form == "train" else None
    of_values, of_queries = halves(queries, keys, scales, grid=(height, width), rates=rates, weights=weights)
    counts = v.integrate(lambda x: of_values(split(x.astype(dtype), heads)), lambda x: join(of_queries(x)))
    made = AttentionRecord(
        synops=None if layer.wire.capture == "none" else _synops(q, k, v, heads, scales, rates),
        sources=(q.source, k.source, v.source),
        products=tuple(_products(q, k, v, heads, scales, rates)),
        bound=max(scale.tokens for scale in scales) * (channels // heads) * math.prod(s.largest for s in (q, k, v)),
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
    return synops.reshape(v.data.shape[0] if v.form == "steps" else 1, -1).sum(0) if synops.size else synops  # [B]


def _products(q: Signal, k: Signal, v: Signal, heads: int, scales, rates):
    """`(multiply-accumulates an image, the neuron layers whose spikes meet)` of each scale's two products."""
    height, width, channels = v.image_shape
    d = channels // heads
    for scale, share in zip(scales, share_heads(heads, scales), strict=True):
        features = height * width * (share.stop - share.start) * d
        if keys_first(scale.tokens, d, rates):
            yield features * d, (k.source, v.source)
            yield features * d, (q.source,)
        else:
            yield features * scale.tokens, (q.source, k.source)
            yield features * scale.tokens, (v.source,)


def unit_of(q: Signal, k: Signal, v: Signal, heads: int, scales):
    """`2^-p θ_q θ_k θ_v` per channel, `[C]`: p is such that the sum starts near the local half's size."""
    d = v.image_shape[-1] // heads
    shifts = [
        2.0 ** (4 - round(math.log2(scale.tokens * d)))
        for scale, share in zip(scales, share_heads(heads, scales), strict=True)
        for _ in range(share.start, share.stop)
    ]
    unit = jnp.asarray(shifts, jnp.float32)
    for signal in (q, k, v):
        unit = signal.weigh(unit)
    return jnp.repeat(unit, d)
