"""E-SpikeFormer (Spike-driven Transformer V3): one pass with integers in training, their unary spikes in inference."""

import dataclasses

from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.models.spike_driven_transformer import MembraneFeedForward
from ge2mst_jax.nn import mean_of_tokens

#: Channels of the hidden map of a separable convolution over those that arrive.
SEPARABLE_EXPAND = 2
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


class ConvForward(Block):
    """Two dense 3×3, each after its neurons, in a membrane shortcut.

    Args:
        expand: hidden width over the arriving.
    """

    expand: int = 4

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        up = layers.synapse(layers.fire(current, "neuron_up"), channels * self.expand, 3, name="up")
        return current + layers.synapse(layers.fire(up, "neuron_down"), channels, 3, name="down")


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


class ESpikeFormer(Peer):
    __doc__ = f"""{Peer.__doc__}
    E-SpikeFormer's own fields:

    Args:
        dims: channels of the four stages; the first starts with half of them.
        heads: of attention, in the last two stages.
        depths: blocks of the last two stages.
        expand: hidden width of every feed-forward over its stage's.

    Its neurons send the integers 0 to `D`, the largest level of `code`, in one pass; at inference each is that many
    spikes. A neuron's value is `n/D`, but for the last ones, which are `n`. A half is taken to the even level, as in
    PyTorch: attention's currents are counts times a power of two, which often lie on one.

    Source: Yao et al., 2025, "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training".
    """

    neuron: str = "sfa"
    dims: tuple[int, int, int, int] = (32, 64, 128, 192)
    heads: int = 8
    depths: tuple[int, int] = (6, 2)
    expand: int = 4

    NEURONS = ("sfa",)

    @property
    def wire(self):
        return dataclasses.replace(super().wire, to_even=True)

    def body(self, layers, signal):
        arriving = signal
        for name, (features, kernel, stride, blocks) in self.stages().items():
            down = Down(self.wire, features, kernel, stride, arriving is signal, name=f"down_{name}")
            arriving = layers.keep(down, arriving, layers.train)
            for i in range(blocks):
                for part, block in self.blocks(kind=name[0]):
                    arriving = layers.keep(block(name=f"{part}_{name}_{i}"), arriving, layers.train)
        return layers.fire(mean_of_tokens(arriving), "neuron_head")

    def stages(self) -> dict[str, tuple[int, int, int, int]]:
        """Channels, kernel and stride of what starts each, and blocks; `c` is for convolutions, `a` for attention."""
        first, second, third, fourth = self.dims
        return {
            "c0": (first // 2, 7, 2, 1), "c1": (first, 3, 2, 1), "c2": (second, 3, 2, 2),
            "a3": (third, 3, 2, self.depths[0]), "a4": (fourth, 3, 1, self.depths[1]),
        }  # fmt: skip

    def blocks(self, kind: str):
        """`(name, block without its name)` of what one block of a stage is made of."""
        made = {"mix": (SpikeSeparable, 7 if kind == "c" else 3)}
        if kind == "c":
            made["forward"] = (ConvForward, self.expand)
        else:
            made |= {"attention": (EfficientAttention, self.heads), "forward": (MembraneFeedForward, self.expand)}
        for name, (block, field) in made.items():
            yield name, lambda name, block=block, field=field: self.part(block)(self.wire, field, name=name)
