"""Max-Former: max pooling and depth-wise convolutions keep high frequencies, then SSA; shortcuts join currents."""

from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.models.spike_driven_transformer import MembraneFeedForward
from ge2mst_jax.nn import mean_of_tokens, pooled


class FirstEmbedding(Block):
    """The image's synapse, one or two 3×3 after neurons, and a 1×1 from the first spikes; currents join.

    Args:
        dim: channels.
        small: whether images are small: nothing is strided, and there is one 3×3 after neurons.
    """

    dim: int = 96
    small: bool = False

    def layers(self, layers, signal):
        stride = 1 if self.small else 2
        current = layers.synapse(signal, self.dim // 2, 3, name="conv_0", role="stem", stride=stride)
        first = layers.fire(current, "neuron_0")
        current = layers.synapse(first, self.dim, 3, name="conv_1", stride=stride)
        if not self.small:
            current = layers.synapse(layers.fire(current, "neuron_1"), self.dim, 3, name="conv_2")
        return current + layers.synapse(first, self.dim, name="shortcut", stride=stride)


class MaxEmbedding(Block):
    """Two 3×3 and, past them, a 1×1, each of spikes; the first's and the 1×1's currents are pooled, and currents join.

    Args:
        dim: channels.
    """

    dim: int = 192

    def layers(self, layers, current):
        signal = layers.fire(current, "neuron_0")
        current = pooled(layers.synapse(signal, self.dim, 3, name="conv_0"))
        current = layers.synapse(layers.fire(current, "neuron_1"), self.dim, 3, name="conv_1")
        return current + pooled(layers.synapse(signal, self.dim, name="shortcut"))


class DepthWise(Block):
    """`x + BN(dw(SN(x)))`.

    Args:
        kernel: side of the depth-wise kernel.
    """

    kernel: int = 7

    def layers(self, layers, current):
        signal = layers.fire(current, "neuron")
        channels = current.value.shape[-1]
        return current + layers.synapse(signal, channels, self.kernel, name="synapse", group_width=1)


class MembraneSelfAttention(Block):
    """`x + BN(W SN((q kᵀ) v / 8))`, `q`, `k`, `v` from the spikes of `x`.

    Args:
        heads: of attention.
    """

    heads: int = 6

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        check_heads(channels, self.heads)
        q, k, v = layers.project(layers.fire(current, "neuron"), dict.fromkeys("qkv", channels))
        return current + layers.synapse(layers.attend(q, k, v, self.heads, 0.125), channels, name="out")


class MaxFormer(Peer):
    """Max-Former; the other fields are those of `Peer`.

    Args:
        dim: channels of the last stage; the first has a quarter of it, the second a half.
        depths: blocks of the three stages.
        heads: of the last stage's attention.
        kernels: of the first two stages' depth-wise convolutions; 0 for none.
        expand: hidden width of the feed-forward over its stage's.
        small: whether images are small, as CIFAR's: see `FirstEmbedding`.

    Source: Fang et al., 2025, "Spiking Neural Networks Need High Frequency Information" (arXiv:2505.18608).
    """

    dim: int = 384
    depths: tuple[int, int, int] = (1, 2, 7)
    heads: int = 6
    kernels: tuple[int, int] = (7, 5)
    expand: int = 4
    small: bool = False

    def body(self, layers, signal):
        arriving = signal
        for stage, depth in enumerate(self.depths):
            width, name = self.dim // 2 ** (2 - stage), f"embedding_{stage}"
            embedding = (
                MaxEmbedding(self.wire, width, name=name)
                if stage
                else FirstEmbedding(self.wire, width, self.small, name=name)
            )
            arriving = layers.keep(embedding, arriving, layers.train)
            for i in range(depth):
                if stage == 2:
                    mixer = self.part(MembraneSelfAttention)(self.wire, self.heads, name=f"attention_{stage}_{i}")
                    arriving = layers.keep(mixer, arriving, layers.train)
                elif self.kernels[stage]:
                    mixer = self.part(DepthWise)(self.wire, self.kernels[stage], name=f"depth_wise_{stage}_{i}")
                    arriving = layers.keep(mixer, arriving, layers.train)
                forward = self.part(MembraneFeedForward)(self.wire, self.expand, name=f"feed_forward_{stage}_{i}")
                arriving = layers.keep(forward, arriving, layers.train)
        return layers.fire(mean_of_tokens(arriving), "neuron_head")
