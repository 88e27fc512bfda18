"""Spikformer: spiking patch splitting, then blocks of SSA and a feed-forward whose shortcuts join spikes."""

from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.nn import Joined, Pooled, pooled


class SpikingPatchSplitting(Block):
    """Four 3×3 synapses of `dim/8`, `dim/4`, `dim/2` and `dim` channels, pooled where `pools` has a 1, and a fifth, for
    positions, whose spikes join those of the fourth.

    Args:
        dim: channels of the last.
        pools: four digits.
        pool_currents: whether it is currents that are pooled, before the neurons, as SpikingJelly has it, not spikes.
    """

    dim: int = 384
    pools: str = "1111"
    pool_currents: bool = False

    def layers(self, layers, signal):
        for i, pool in enumerate(self.pools):
            features, role = self.dim // 2 ** (3 - i), "hidden" if i else "stem"
            current = layers.synapse(signal, features, 3, name=f"conv_{i}", role=role)
            if pool == "1" and self.pool_currents:
                current = pooled(current)
            signal = layers.fire(current, f"neuron_{i}")
            if pool == "1" and not self.pool_currents:
                signal = layers.keep(Pooled(self.wire, name=f"pool_{i}"), signal)
        position = layers.fire(layers.synapse(signal, self.dim, 3, name="position"), "neuron_position")
        return layers.keep(Joined(self.wire, name="joined"), position, signal)


class FeedForward(Block):
    """Two 1×1 synapses, each before its neurons; their spikes join those that arrive.

    Args:
        expand: hidden width over the arriving.
    """

    expand: int = 4

    def layers(self, layers, signal):
        channels = signal.image_shape[-1]
        hidden = layers.fire(layers.synapse(signal, channels * self.expand, name="up"), "neuron_up")
        made = layers.fire(layers.synapse(hidden, channels, name="down"), "neuron_down")
        return layers.keep(Joined(self.wire, name="joined"), made, signal)


class SpikingSelfAttention(Block):
    """`SN(BN(W SN((q kᵀ) v / 8)))`, whose spikes join those that arrive.

    Args:
        heads: of attention.
    """

    heads: int = 12

    def layers(self, layers, signal):
        channels = signal.image_shape[-1]
        check_heads(channels, self.heads)
        q, k, v = layers.project(signal, dict.fromkeys("qkv", channels))
        made = layers.synapse(layers.attend(q, k, v, self.heads, 0.125), channels, name="out")
        return layers.keep(Joined(self.wire, name="joined"), layers.fire(made, "neuron_out"), signal)


class Spikformer(Peer):
    """Spikformer; the other fields are those of `Peer`.

    Args:
        dim, depth, heads: channels, blocks, heads of each.
        expand: hidden width of the feed-forward over `dim`.
        pools, pool_currents: see `SpikingPatchSplitting`.

    Source: Zhou et al., ICLR 2023, "Spikformer: When Spiking Neural Network Meets Transformer".
    """

    dim: int = 384
    depth: int = 8
    heads: int = 12
    expand: int = 4
    pools: str = "1111"
    pool_currents: bool = False

    def body(self, layers, signal):
        check_heads(self.dim, self.heads)
        stem = SpikingPatchSplitting(self.wire, self.dim, self.pools, self.pool_currents, name="stem")
        signal = layers.keep(stem, signal, layers.train)
        for i in range(self.depth):
            attention = self.part(SpikingSelfAttention)(self.wire, self.heads, name=f"attention_{i}")
            signal = layers.keep(attention, signal, layers.train)
            forward = self.part(FeedForward)(self.wire, self.expand, name=f"feed_forward_{i}")
            signal = layers.keep(forward, signal, layers.train)
        return signal
