"""Meta-SpikeFormer (Spike-driven Transformer V2): convolutions first, then attention between re-parameterised ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.models.spike_driven_transformer import MembraneFeedForward
from ge2mst_jax.nn import Analog, Current, Signal, Wire, conv2d, mean_of_tokens
from ge2mst_jax.nn.norm import BatchNorm, affine
from ge2mst_jax.nn.synapse import synapse_record

#: Channels of the hidden map of a separable convolution over those that arrive.
SEPARABLE_EXPAND = 2


class Down(Block):
    """Neurons, but of the image, and a strided synapse that starts a new stream.

    Args:
        features, kernel, stride: of the synapse.
        first: whether the image arrives.
    """

    features: int = 32
    kernel: int = 3
    stride: int = 2
    first: bool = False

    def layers(self, layers, arriving):
        signal = arriving if self.first else layers.fire(arriving, "neuron")
        role = "stem" if self.first else "hidden"
        return layers.synapse(signal, self.features, self.kernel, name="synapse", stride=self.stride, role=role)


class Separable(Block):
    """1×1 up after neurons, then depth-wise 7×7 after neurons and 1×1 down, which no neuron parts: the last multiplies
    real numbers.

    Args:
        kernel: side of the depth-wise kernel.
    """

    kernel: int = 7

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        hidden = channels * SEPARABLE_EXPAND
        up = layers.synapse(layers.fire(current, "neuron_up"), hidden, name="up")
        mixed = layers.synapse(
            layers.fire(up, "neuron_mix"), hidden, self.kernel, name="mix", group_width=1, norm=False
        )
        return current + layers.synapse(layers.keep(Analog(self.wire, name="mixed"), mixed), channels, name="down")


class RepConv(nn.Module):
    """`BN(BN(W₂ dw(pad(BN(W₁ n)))))`: one 3×3 convolution of spikes, trained as a 1×1, a depth-wise 3×3 and a 1×1.

    The first norm's result is padded with what it makes of 0, so that all of it is one 3×3 map of spikes padded with 0
    and a bias: that is what runs, and what is counted.

    Args:
        wire: the network's agreement.
        features: channels, in and out.

    Call: `(signal, train) -> (Current, aux)`.
    """

    wire: Wire
    features: int

    @nn.compact
    def __call__(self, signal: Signal, train: bool):
        name, channels = "/".join(self.path), signal.image_shape[-1]
        fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        shapes = {
            "kernel": (1, 1, channels, channels),
            "kernel_mix": (3, 3, 1, channels),
            "kernel_out": (1, 1, channels, self.features),
        }
        kernels = [self.param(key, fan_in, shape).astype(self.wire.dtype) for key, shape in shapes.items()]
        current = signal.integrate(lambda x: self._convolve(x, kernels, train))
        made = synapse_record(signal, "hidden", (*signal.image_shape[:2], self.features), 3)
        return Current(current, (name,), signal.form == "steps"), {name: made}

    def _convolve(self, x, kernels, train: bool):
        first, mix, out = kernels
        norm = BatchNorm(name="norm_in")
        x = norm(conv2d(x.astype(first.dtype), first), train)
        params, stats = norm.variables["params"], norm.variables["batch_stats"]
        border = affine(jnp.zeros_like(stats["mean"]), stats["mean"], stats["var"], params["scale"], params["bias"])
        border = jax.lax.stop_gradient(border)
        inside = jnp.pad(jnp.ones((1, *x.shape[1:3], 1), bool), ((0, 0), (1, 1), (1, 1), (0, 0)))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        padded = jnp.where(inside, padded, border.reshape(1, 1, 1, -1)).astype(mix.dtype)
        x = conv2d(padded, mix)[:, 1:-1, 1:-1]
        x = BatchNorm(name="norm_out")(conv2d(x.astype(out.dtype), out), train)
        return BatchNorm(name="norm")(x, train)


class RepAttention(Block):
    """`x + RepConv(SN((q kᵀ) v / 8))`, `q`, `k` and `v` by `RepConv`s of the spikes of `x`.

    Args:
        heads: of attention.
    """

    heads: int = 8

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        check_heads(channels, self.heads)
        signal, signals = layers.fire(current, "neuron"), []
        for key in "qkv":
            made = layers.keep(RepConv(self.wire, channels, name=key), signal, layers.train)
            signals.append(layers.fire(made, f"neuron_{key}"))
        attended = layers.attend(*signals, self.heads, 0.125)
        return current + layers.keep(RepConv(self.wire, channels, name="out"), attended, layers.train)


class MetaFormer(Peer):
    """What Meta-SpikeFormer and E-SpikeFormer share: stages of convolution blocks, then of attention blocks.

    Args:
        dims: channels of the four stages; the first starts with half of them.
        heads: of attention, in the last two stages.
        depths: blocks of the last two stages.
        expand: hidden width of every feed-forward over its stage's.
    """

    dims: tuple[int, int, int, int] = (96, 192, 384, 480)
    heads: int = 8
    depths: tuple[int, int] = (6, 2)
    expand: int = 4

    def body(self, layers, signal):
        first, second, third, fourth = self.dims
        stages = {  # channels, kernel and stride of what starts each, and blocks
            "c0": (first // 2, 7, 2, 1), "c1": (first, 3, 2, 1), "c2": (second, 3, 2, 2),
            "a3": (third, 3, 2, self.depths[0]), "a4": (fourth, 3, 1, self.depths[1]),
        }  # fmt: skip
        arriving = signal
        for stage, (*start, depth) in stages.items():
            down = Down(self.wire, *start, arriving is signal, name=f"down_{stage}")
            arriving = layers.keep(down, arriving, layers.train)
            for i in range(depth):
                for part, kind, fields in self.blocks(stage[0]):
                    block = self.part(kind)(self.wire, *fields, name=f"{part}_{stage}_{i}")
                    arriving = layers.keep(block, arriving, layers.train)
        return layers.fire(mean_of_tokens(arriving), "neuron_head")

    def blocks(self, kind: str):
        """`(name, part, its fields)` of what a block of convolution (`kind` `"c"`) or attention (`"a"`) is made of."""
        raise NotImplementedError


class MetaSpikeFormer(MetaFormer):
    """Meta-SpikeFormer (Spike-driven Transformer V2); the other fields are those of `Peer`.

    Args:
        dims, heads, depths, expand: as of `MetaFormer`.

    Source: Yao et al., ICLR 2024, "Spike-driven Transformer V2: Meta Spiking Neural Network Architecture".
    """

    def blocks(self, kind: str):
        yield ("mix", Separable, ()) if kind == "c" else ("attention", RepAttention, (self.heads,))
        yield "forward", MembraneFeedForward, (self.expand, 3 if kind == "c" else 1)
