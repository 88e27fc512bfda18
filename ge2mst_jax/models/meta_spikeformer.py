"""Meta-SpikeFormer (Spike-driven Transformer V2): convolutions first, then attention between re-parameterised ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.models.e_spikeformer import SEPARABLE_EXPAND, ConvForward, ESpikeFormer
from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.models.spike_driven_transformer import MembraneFeedForward
from ge2mst_jax.nn import Analog, Current, Signal, Wire, conv2d
from ge2mst_jax.nn.norm import BatchNorm, affine
from ge2mst_jax.nn.synapse import synapse_record


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


class MetaSpikeFormer(ESpikeFormer):
    __doc__ = f"""{Peer.__doc__}
    Meta-SpikeFormer's own fields:

    Args:
        dims, heads, depths, expand: as of `ESpikeFormer`.

    Source: Yao et al., ICLR 2024, "Spike-driven Transformer V2: Meta Spiking Neural Network Architecture".
    """

    neuron: str = "lif"
    dims: tuple[int, int, int, int] = (96, 192, 384, 480)

    NEURONS = Peer.NEURONS

    def blocks(self, kind: str):
        """`(name, block without its name)` of what one block of a stage is made of."""
        if kind == "c":
            made = {"mix": (Separable, 7), "forward": (ConvForward, self.expand)}
        else:
            made = {"attention": (RepAttention, self.heads), "forward": (MembraneFeedForward, self.expand)}
        for name, (block, field) in made.items():
            yield name, lambda name, block=block, field=field: self.part(block)(self.wire, field, name=name)
