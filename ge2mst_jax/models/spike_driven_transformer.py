"""Spike-driven Transformer (V1): shortcuts join currents, attention masks, and nothing is multiplied."""

from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.nn import Pooled, mean_of_tokens, pooled


class PatchSplitting(Block):
    """Four 3×3 synapses of `dim/8` to `dim` channels and a fifth, for positions, whose current joins the fourth's.

    Args:
        dim: channels of the last.
        pools: four digits; with a 1, spikes are pooled, of the fourth currents.
    """

    dim: int = 384
    pools: str = "1111"

    def layers(self, layers, signal):
        for i in range(3):
            current = layers.synapse(
                signal, self.dim // 2 ** (3 - i), 3, name=f"conv_{i}", role="hidden" if i else "stem"
            )
            signal = layers.fire(current, f"neuron_{i}")
            if self.pools[i] == "1":
                signal = layers.keep(Pooled(self.wire, name=f"pool_{i}"), signal)
        current = layers.synapse(signal, self.dim, 3, name="conv_3")
        current = pooled(current) if self.pools[3] == "1" else current
        position = layers.synapse(layers.fire(current, "neuron_3"), self.dim, 3, name="position")
        return current + position


class SpikeDrivenSelfAttention(Block):
    """`x + BN(W (SN(Σ_tokens k ⊙ v) ⊙ q))`, of currents.

    Args:
        heads: of attention; the result does not depend on them.
    """

    heads: int = 8

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        q, k, v = layers.project(layers.fire(current, "neuron"), dict.fromkeys("qkv", channels))
        return current + layers.synapse(layers.mask(q, (k, v), self.heads), channels, name="out")


class MembraneFeedForward(Block):
    """Two synapses, each after its neurons, in a membrane shortcut.

    Args:
        expand: hidden width over the arriving.
        kernel: side of both synapses' kernels.
    """

    expand: int = 4
    kernel: int = 1

    def layers(self, layers, current):
        channels = current.value.shape[-1]
        up = layers.synapse(layers.fire(current, "neuron_up"), channels * self.expand, self.kernel, name="up")
        return current + layers.synapse(layers.fire(up, "neuron_down"), channels, self.kernel, name="down")


class SpikeDrivenTransformer(Peer):
    """Spike-driven Transformer (V1); the other fields are those of `Peer`.

    Args:
        dim, depth, heads: channels, blocks, heads of each.
        expand: hidden width of the feed-forward over `dim`.
        pools: see `PatchSplitting`.

    Source: Yao et al., NeurIPS 2023, "Spike-driven Transformer".
    """

    dim: int = 384
    depth: int = 8
    heads: int = 8
    expand: int = 4
    pools: str = "1111"

    def body(self, layers, signal):
        check_heads(self.dim, self.heads)
        current = layers.keep(PatchSplitting(self.wire, self.dim, self.pools, name="stem"), signal, layers.train)
        for i in range(self.depth):
            attention = self.part(SpikeDrivenSelfAttention)(self.wire, self.heads, name=f"attention_{i}")
            current = layers.keep(attention, current, layers.train)
            forward = self.part(MembraneFeedForward)(self.wire, self.expand, name=f"feed_forward_{i}")
            current = layers.keep(forward, current, layers.train)
        return layers.fire(mean_of_tokens(current), "neuron_head")
