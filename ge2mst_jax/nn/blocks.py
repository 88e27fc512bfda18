"""Blocks: the stem, GW-SSA, the group-wise feed-forward and the convolution block. Residual sums join currents."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.grouping import Scale, attention_synops, gw_attention, share_heads
from ge2mst_jax.nn.neuron import BINARY, Neuron, record
from ge2mst_jax.nn.synapse import Synapse
from ge2mst_jax.nn.wire import AttentionRecord, Current, Signal, Wire
from ge2mst_jax.spiking import SpikeCode, align

PIXELS = SpikeCode.parse("1x8")
INPUT_CODES = ("direct", "1x8")


def pixels(images):
    """`p = round(255·x)` of float images in [0, 1]; uint8 images as they are. Returns float32 integers 0..255.

    >>> pixels(jnp.array([0.0, 0.5, 1.0]))
    Array([  0., 128., 255.], dtype=float32)
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32)
    return jnp.clip(jnp.round(images.astype(jnp.float32) * 255.0), 0.0, 255.0)


class Stem(nn.Module):
    """Presents the image as a signal and takes it to the first current.

    `input_code="1x8"`: a uint8 pixel is exactly the `1x8` code of its value, so a deployed stem accumulates
    bit planes. `"direct"`: the same integers are presented once, one multiply-accumulate pass.

    Call: `(images [B, H, W, C], train) -> (Current, aux)`.
    """

    wire: Wire
    features: int
    kernel: int = 3
    stride: int = 1
    input_code: str = "1x8"

    @nn.compact
    def __call__(self, images, train: bool):
        name = "/".join((*self.path, "image"))
        coded = self.input_code == "1x8"
        spiking = self.wire.execution == "spiking" and coded
        data, form = pixels(images), "levels"
        if spiking:
            data, form = PIXELS.encode(data), "train"
        threshold = None if self.wire.deployed else jnp.float32(1 / 255)
        signal = Signal(data, threshold, PIXELS, form, name)
        current, aux = Synapse(self.wire, self.features, self.kernel, self.stride, role="stem", name="synapse")(
            signal, train
        )
        if coded:
            aux[name] = record(signal, jnp.zeros(images.shape[0]), self.wire, None)
        return current, aux


class GWSSA(nn.Module):
    """Group-wise spiking self-attention with its depth-wise convolution half, between two currents.

    `q, k` (binary) and `v` come from the block input's spikes; the attention neuron's current is
    `2^-p θ_q θ_k θ_v (A·v) + BN(dw(v))`, and a 1×1 synapse takes its spikes back to the stream. Deployed, that
    current is counted in units of `2^-p θ_q θ_k θ_v` (one a head), so that `A·v` joins as the integer that it is.

    Args:
        wire: the network's agreement.
        heads: attention heads; the scales share them.
        scales: token groups.

    Call: `(Current, train) -> (Current, aux)`.
    """

    wire: Wire
    heads: int
    scales: tuple[Scale, ...]

    @nn.compact
    def __call__(self, current: Current, train: bool):
        channels = current.value.shape[-1]
        signal, aux = Neuron(self.wire, name="neuron")(current)
        signals = {}
        for key in "qkv":
            made, more = Synapse(self.wire, channels, name=key)(signal, train)
            aux |= more
            binary = key != "v"
            neuron = Neuron(self.wire, BINARY if binary else None, self.heads if binary else 1, name=f"neuron_{key}")
            signals[key], more = neuron(made)
            aux |= more
        counts, unit, more = self._attend(**signals)
        aux |= more
        local, more = Synapse(self.wire, channels, 3, group_width=1, name="local")(signals["v"], train, unit)
        aux |= more
        if not self.wire.deployed:
            counts = counts.replace(value=align(unit, counts.value) * counts.value)
        signal, more = Neuron(self.wire, name="neuron_out")(counts + local, unit)
        aux |= more
        out, more = Synapse(self.wire, channels, name="out")(signal, train)
        return out, aux | more

    def _attend(self, q: Signal, k: Signal, v: Signal):
        """`A·v` as integers, the value of its unit per channel, and the record."""
        name = "/".join((*self.path, "attention"))
        height, width, channels = v.image_shape
        d = channels // self.heads

        def split(x):  # [N, H, W, C] -> [N, H, W, h, d]
            return x.reshape(*x.shape[:-1], self.heads, d)

        keys, queries = split(k.planes), split(q.planes)
        precision = "highest" if self.wire.deployed else None
        attend = jax.vmap(lambda q, k, v: gw_attention(q, k, v, self.scales, precision))
        counts = v.integrate(lambda x: attend(queries, keys, split(x)).reshape(x.shape))
        level = 1 if v.code is None else v.code.max_level
        tokens = max(scale.tokens for scale in self.scales)
        made = AttentionRecord(
            synops=self._synops(queries, keys, v, split),
            sources=(q.source, k.source, v.source),
            bound=tokens * d * level,
            out_shape=(height, width, channels),
        )
        unit = None if self.wire.deployed else self._unit(q, k, v, d)
        return Current(counts, (name,), v.form == "steps"), unit, {name: made}

    def _synops(self, queries, keys, v, split):
        if v.form == "steps":
            spikes, steps = v.planes, v.data.shape[0]
        elif v.form == "train":
            spikes, steps = v.data.sum(0), 1
        else:
            spikes, steps = v.data if v.code is None else v.code.encode(v.data).sum(0), 1
        count = jax.vmap(lambda q, k, v: attention_synops(q, k, v, self.scales))
        synops = count(*(jax.lax.stop_gradient(x) for x in (queries, keys, split(spikes))))  # [N]
        return synops.reshape(steps, -1).sum(0)  # [B]

    def _unit(self, q, k, v, d):
        """`2^-p θ_q θ_k θ_v` per channel, `[C]`: p is such that the sum starts near the local half's size."""
        shifts = [
            2.0 ** (4 - round(math.log2(scale.tokens * d)))
            for scale, share in zip(self.scales, share_heads(self.heads, self.scales), strict=True)
            for _ in range(share.start, share.stop)
        ]
        unit = jnp.asarray(shifts, jnp.float32)
        for signal in (q, k, v):
            unit = signal.weigh(unit)
        return jnp.repeat(unit, d)


class FeedForward(nn.Module):
    """Group-wise feed-forward: 1×1 up, grouped 3×3 with a residual, 1×1 down.

    Args:
        wire: the network's agreement.
        expand: hidden width over the stream's.
        group_width: channels a group of the 3×3; narrower hidden layers are one group.

    Call: `(Current, train) -> (Current, aux)`.
    """

    wire: Wire
    expand: int = 4
    group_width: int = 128

    @nn.compact
    def __call__(self, current: Current, train: bool):
        channels = current.value.shape[-1]
        hidden = channels * self.expand
        signal, aux = Neuron(self.wire, name="neuron_up")(current)
        up, more = Synapse(self.wire, hidden, name="up")(signal, train)
        aux |= more
        signal, more = Neuron(self.wire, name="neuron_group")(up)
        aux |= more
        grouped, more = Synapse(self.wire, hidden, 3, group_width=min(self.group_width, hidden), name="group")(
            signal, train
        )
        aux |= more
        signal, more = Neuron(self.wire, name="neuron_down")(up + grouped)
        aux |= more
        down, more = Synapse(self.wire, channels, name="down")(signal, train)
        return down, aux | more


def drop_path(current: Current, rate: float, train: bool) -> Current:
    """A branch of the membrane shortcut, dropped for an image with probability `rate` and scaled up where kept."""
    if not rate or not train:
        return current
    axes = range(current.value.ndim)
    dropped = nn.Dropout(rate, broadcast_dims=[a for a in axes if a != current.steps], deterministic=False)
    return current.replace(value=dropped(current.value))


class ConvBlock(nn.Module):
    """Convolution block: two dense 3×3 synapses in a membrane shortcut.

    Args:
        wire: the network's agreement.
        drop_path: see `drop_path`.

    Call: `(Current, train) -> (Current, aux)`, the stream after the block.
    """

    wire: Wire
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, current: Current, train: bool):
        channels = current.value.shape[-1]
        signal, aux = Neuron(self.wire, name="neuron_0")(current)
        inner, more = Synapse(self.wire, channels, 3, name="conv_0")(signal, train)
        aux |= more
        signal, more = Neuron(self.wire, name="neuron_1")(inner)
        aux |= more
        inner, more = Synapse(self.wire, channels, 3, name="conv_1")(signal, train)
        return current + drop_path(inner, self.drop_path, train), aux | more


class AttentionBlock(nn.Module):
    """GW-SSA, then the group-wise feed-forward, each in a membrane shortcut.

    Call: `(Current, train) -> (Current, aux)`, the stream after the block.
    """

    wire: Wire
    heads: int
    scales: tuple[Scale, ...]
    expand: int = 4
    group_width: int = 128
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, current: Current, train: bool):
        attended, aux = GWSSA(self.wire, self.heads, self.scales, name="attention")(current, train)
        current = current + drop_path(attended, self.drop_path, train)
        fed, more = FeedForward(self.wire, self.expand, self.group_width, name="feed_forward")(current, train)
        return current + drop_path(fed, self.drop_path, train), aux | more


class Downsample(nn.Module):
    """Between stages: neurons, then a strided 3×3 synapse that starts a new stream.

    Call: `(Current, train) -> (Current, aux)`.
    """

    wire: Wire
    features: int

    @nn.compact
    def __call__(self, current: Current, train: bool):
        signal, aux = Neuron(self.wire, name="neuron")(current)
        down, more = Synapse(self.wire, self.features, 3, 2, name="synapse")(signal, train)
        return down, aux | more
