"""SpikingResformer: dual spike self-attention between patches and tokens, group-wise feed-forward, three stages."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.models.meta_spikeformer import Down
from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.nn import Analog, AttentionRecord, Current, Signal, Wire, mean_of_tokens, pooled
from ge2mst_jax.nn.norm import BatchNorm
from ge2mst_jax.nn.synapse import synapse_record
from ge2mst_jax.spiking import LIFSettings

#: Of the running firing rates that scale attention's products.
RATE_MOMENTUM = 0.999


class PatchSynapse(nn.Module):
    """`BN(W x)` of patches that do not overlap: a `p×p` convolution of stride `p`.

    Each spike reaches one patch: its connections are those of a 1×1 map, as which it is counted.

    Args:
        wire: the network's agreement.
        features: `C_out`.
        side: `p`.

    Call: `(signal, train) -> (Current [.., H/p, W/p, C_out], aux)`.
    """

    wire: Wire
    features: int
    side: int

    @nn.compact
    def __call__(self, signal: Signal, train: bool):
        name, (height, width, channels) = "/".join(self.path), signal.image_shape
        if height % self.side or width % self.side:
            raise ValueError(f"{name}: patches of {self.side}x{self.side} do not divide a grid of {height}x{width}")
        fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", fan_in, (self.side, self.side, channels, self.features)).astype(self.wire.dtype)

        def convolve(x):
            x = x.astype(kernel.dtype).reshape(
                -1, height // self.side, self.side, width // self.side, self.side, channels
            )
            return jnp.einsum("bypxqc,pqco->byxo", x, kernel, preferred_element_type=jnp.float32)

        current = BatchNorm(name="norm")(signal.integrate(convolve), train)
        made = synapse_record(signal, "hidden", (height, width, self.features))
        return Current(current, (name,), signal.form == "steps"), {name: made}


class FiringRate(nn.Module):
    """The mean of each head's spikes, averaged over training, `0.999·old + 0.001·new`; 1 before there was any.

    Collection `batch_stats`: `rate`, `[h]`.

    Call: `(spikes [..., h, d], train) -> [h]`.
    """

    @nn.compact
    def __call__(self, spikes, train: bool):
        heads = spikes.shape[-2]
        average = self.variable("batch_stats", "rate", jnp.zeros, (heads,), jnp.float32)
        rate = average.value
        if train and not self.is_initializing():
            axes = (*range(spikes.ndim - 2), spikes.ndim - 1)
            found = jnp.mean(jax.lax.stop_gradient(spikes).astype(jnp.float32), axes)
            rate = jnp.where(jnp.all(rate == 0), found, rate)
            rate = average.value = RATE_MOMENTUM * rate + (1 - RATE_MOMENTUM) * found
        return jnp.where(rate > 0, rate, 1.0)


class SpikeProduct(nn.Module):
    """A product of real numbers with spikes, `c · y x`: a spike selects a row of `y`, so that all of it is additions.

    Args:
        wire: the network's agreement.
        heads: of attention.

    Call: `(y [N, h, a, b], signal, spikes [N, h, b, n], scale [h]) -> ([N, h, a, n], aux)`; a spike adds `a` numbers.
    """

    wire: Wire
    heads: int

    @nn.compact
    def __call__(self, y, signal: Signal, spikes, scale):
        name = "/".join(self.path)
        made = jnp.einsum("zhab,zhbn->zhan", y, spikes.astype(jnp.float32)) * scale.reshape(1, -1, 1, 1)
        fan_out, batch = y.shape[2], signal.data.shape[1]
        counts = fan_out * jax.lax.stop_gradient(spikes).astype(jnp.int32).reshape(-1, batch, spikes[0].size).sum(
            (0, 2)
        )
        record = AttentionRecord(
            synops=None if self.wire.capture == "none" else counts,
            sources=(signal.source,),
            products=((fan_out * spikes[0].size, (signal.source,)),),
            bound=0,
            out_shape=made.shape[1:],
        )
        return made, {name: record}


class DualSpikeSelfAttention(Block):
    """`x + BN(W SN(c₂ y₂ A))`, `A = SN(c₁ y₁ᵀ s)`, `s = SN(x)`, `(y₁, y₂) = BN(W_p s)` of patches.

    Every product has a spike in it. `c₁ = 1/√(f_s d)`, `c₂ = 1/√(f_A n)` with the running firing rates `f` of each
    head, `d` channels a head and `n` patches.

    Args:
        heads: of attention.
        side: of a patch.
    """

    heads: int = 1
    side: int = 4

    def layers(self, layers, current):
        channels, train = current.value.shape[-1], layers.train
        check_heads(channels, self.heads)
        signal = layers.fire(current, "neuron")
        height, width, _ = signal.image_shape
        y = layers.keep(PatchSynapse(self.wire, 2 * channels, self.side, name="patches"), signal, train).value
        y = y.reshape(-1, y.shape[-3] * y.shape[-2], self.heads, 2, channels // self.heads)  # [T·B, n, h, 2, d]
        of_keys, of_values = y[..., 0, :], y[..., 1, :]
        spikes = signal.planes.reshape(-1, height * width, self.heads, channels // self.heads)  # [T·B, N, h, d]
        scale = _scale(FiringRate(name="rate")(spikes, train), channels // self.heads)
        product = SpikeProduct(self.wire, self.heads, name="attention")
        pairs = layers.keep(product, of_keys.transpose(0, 2, 1, 3), signal, spikes.transpose(0, 2, 3, 1), scale)
        attention = layers.fire(_on_grid(pairs, signal, "attention"), "neuron_attention")
        spikes = attention.planes.reshape(*spikes.shape[:3], -1)  # [T·B, N, h, n]
        scale = _scale(FiringRate(name="rate_attention")(spikes, train), spikes.shape[-1])
        product = SpikeProduct(self.wire, self.heads, name="values")
        summed = layers.keep(product, of_values.transpose(0, 2, 3, 1), attention, spikes.transpose(0, 2, 3, 1), scale)
        out = layers.fire(_on_grid(summed, signal, "values"), "neuron_out")
        return current + layers.synapse(out, channels, name="out")


def _scale(rate, terms: int):
    return 1 / jnp.sqrt(rate * terms)


def _on_grid(x, signal: Signal, name: str) -> Current:
    """`[T·B, h, a, N]` as a current `[T, B, H, W, h·a]`."""
    height, width, _ = signal.image_shape
    value = x.transpose(0, 3, 1, 2).reshape(*signal.data.shape[:2], height, width, -1)
    return Current(value, (name,), True)


class GroupWiseForward(Block):
    """1×1 up, grouped 3×3 with a residual, 1×1 down, each after its neurons, in a membrane shortcut.

    Args:
        expand: hidden width over the arriving.
        group_width: channels a group of the 3×3.
    """

    expand: int = 4
    group_width: int = 64

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        hidden = channels * self.expand
        up = layers.synapse(layers.fire(current, "neuron_up"), hidden, name="up")
        group = layers.synapse(
            layers.fire(up, "neuron_group"), hidden, 3, name="group", group_width=min(self.group_width, hidden)
        )
        return current + layers.synapse(layers.fire(up + group, "neuron_down"), channels, name="down")


class SpikingResformer(Peer):
    """SpikingResformer; the other fields are those of `Peer`.

    Args:
        dims, heads, depths: channels, heads and blocks of the three stages.
        patches: side of attention's patches in each.
        expand, group_width: see `GroupWiseForward`.
        small: whether images are small, as CIFAR's: the first synapse is a 3×3, and nothing is pooled.

    Source: Shi, Hao, Yu, CVPR 2024, "SpikingResformer: Bridging ResNet and Vision Transformer in Spiking Neural
    Networks". The classifier reads currents, real numbers.
    """

    lif: LIFSettings = LIFSettings()
    dims: tuple[int, int, int] = (64, 192, 384)
    heads: tuple[int, int, int] = (1, 3, 6)
    depths: tuple[int, int, int] = (1, 2, 3)
    patches: tuple[int, int, int] = (4, 2, 1)
    expand: int = 4
    group_width: int = 64
    small: bool = False

    HEAD_BIAS = False

    def body(self, layers, signal):
        kernel, stride = (3, 1) if self.small else (7, 2)
        current = layers.synapse(signal, self.dims[0], kernel, name="stem", role="stem", stride=stride)
        current = current if self.small else pooled(current)
        for stage, depth in enumerate(self.depths):
            if stage:
                current = layers.keep(Down(self.wire, self.dims[stage], name=f"down_{stage}"), current, layers.train)
            for i in range(depth):
                attention = self.part(DualSpikeSelfAttention)(
                    self.wire, self.heads[stage], self.patches[stage], name=f"attention_{stage}_{i}"
                )
                current = layers.keep(attention, current, layers.train)
                forward = self.part(GroupWiseForward)(
                    self.wire, self.expand, self.group_width, name=f"feed_forward_{stage}_{i}"
                )
                current = layers.keep(forward, current, layers.train)
        return layers.keep(Analog(self.wire, name="averaged"), mean_of_tokens(current))
