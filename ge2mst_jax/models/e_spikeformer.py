"""E-SpikeFormer (Spike-driven Transformer V3): one pass with integers in training, their unary spikes in inference."""

import dataclasses

from ge2mst_jax.models.meta_spikeformer import SEPARABLE_EXPAND, MetaFormer
from ge2mst_jax.models.peer import Block, check_heads
from ge2mst_jax.models.spike_driven_transformer import MembraneFeedForward

#: Width of attention's values over its keys'.
VALUE_EXPAND = 4


class SpikeSeparable(Block):
    """1×1 up, depth-wise, 1×1 down, each of spikes, in a membrane shortcut.

    Args:
        kernel: side of the depth-wise kernel.
    """

    kernel: int = 7

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        hidden = channels * SEPARABLE_EXPAND
        up = layers.synapse(layers.fire(current, "neuron_up"), hidden, name="up")
        mixed = layers.synapse(layers.fire(up, "neuron_mix"), hidden, self.kernel, name="mix", group_width=1)
        return current + layers.synapse(layers.fire(mixed, "neuron_down"), channels, name="down")


class EfficientAttention(Block):
    """`x + BN(W SN(2/√d · (q kᵀ) v))`, values four times as wide as keys.

    Args:
        heads: of attention.
    """

    heads: int = 8

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        check_heads(channels, self.heads)
        widths = {"q": channels, "k": channels, "v": channels * VALUE_EXPAND}
        q, k, v = layers.project(layers.fire(current, "neuron"), widths)
        attended = layers.attend(q, k, v, self.heads, 2 * (channels / self.heads) ** -0.5)
        return current + layers.synapse(attended, channels, name="out")


class ESpikeFormer(MetaFormer):
    """E-SpikeFormer (Spike-driven Transformer V3), of integers in training; the other fields are those of `Peer`.

    Args:
        dims, heads, depths, expand: as of `MetaFormer`.

    Its neurons send the integers 0 to `D`, the largest level of `code`, in one pass; at inference each is that many
    spikes. A neuron's value is `n/D`, but for the last ones, which are `n`. A half is taken to the even level, as in
    PyTorch: attention's currents are counts times a power of two, which often lie on one.

    Source: Yao et al., 2025, "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training".
    """

    neuron: str = "sfa"
    dims: tuple[int, int, int, int] = (32, 64, 128, 192)

    NEURONS = ("sfa",)

    @property
    def wire(self):
        return dataclasses.replace(super().wire, to_even=True)

    def blocks(self, kind: str):
        yield "mix", SpikeSeparable, (7 if kind == "c" else 3,)
        if kind == "a":
            yield "attention", EfficientAttention, (self.heads,)
        yield "forward", MembraneFeedForward, (self.expand, 3 if kind == "c" else 1)
