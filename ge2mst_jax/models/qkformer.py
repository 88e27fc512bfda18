"""QKFormer: three stages, QK token attention in the first two and SSA in the last; shortcuts join spikes."""

from ge2mst_jax.models.peer import Block, Peer, check_heads
from ge2mst_jax.models.spikformer import FeedForward, SpikingSelfAttention
from ge2mst_jax.nn import Joined, pooled


class Embedding(Block):
    """3×3 synapses in a row and a 1×1 past all but the first of them; their spikes join.

    Args:
        features: channels of each synapse of the row.
        pools: for each, a digit: whether its current is pooled.
        first: whether it presents the image: the shortcut starts at the first synapse's spikes, not at what arrives.
    """

    features: tuple[int, ...] = (48, 96, 96)
    pools: str = "110"
    first: bool = False

    def layers(self, layers, signal):
        start, stride = signal, 1
        for i, (features, pool) in enumerate(zip(self.features, self.pools, strict=True)):
            role = "stem" if self.first and not i else "hidden"
            current = layers.synapse(signal, features, 3, name=f"conv_{i}", role=role)
            signal = layers.fire(pooled(current) if pool == "1" else current, f"neuron_{i}")
            if self.first and not i:
                start = signal
            else:
                stride *= 2 if pool == "1" else 1
        passed = layers.synapse(start, self.features[-1], name="shortcut", stride=stride)
        return layers.keep(Joined(self.wire, name="joined"), signal, layers.fire(passed, "neuron_shortcut"))


class TokenAttention(Block):
    """`SN(BN(W (SN(Σ channels of a head of q) ⊙ k)))`, whose spikes join those that arrive.

    Args:
        heads: of attention.
    """

    heads: int = 6

    def layers(self, layers, signal):
        channels = signal.image_shape[-1]
        check_heads(channels, self.heads)
        q, k = layers.project(signal, dict.fromkeys("qk", channels))
        made = layers.synapse(layers.mask(k, (q,), self.heads), channels, name="out")
        return layers.keep(Joined(self.wire, name="joined"), layers.fire(made, "neuron_out"), signal)


class QKFormer(Peer):
    """QKFormer; the other fields are those of `Peer`.

    Args:
        dim: channels of the last stage; the first has a quarter of it, the second a half.
        depths, heads: of the three stages.
        expand: hidden width of the feed-forward over its stage's.
        small: whether images are small, as CIFAR's: the grid is halved twice, not four times.

    Source: Zhou et al., NeurIPS 2024, "QKFormer: Hierarchical Spiking Transformer using Q-K Attention". The neurons
    after attention's last synapse are integrated over time; the authors' code integrates them over the batch too.
    """

    dim: int = 384
    depths: tuple[int, int, int] = (1, 2, 7)
    heads: tuple[int, int, int] = (6, 6, 6)
    expand: int = 4
    small: bool = False

    def body(self, layers, signal):
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            width = self.dim // 2 ** (2 - stage)
            if stage:
                features, pools = (width, width), "01" if self.small else "10"
            else:
                features, pools = ((width // 2, width), "00") if self.small else ((width // 2, width, width), "110")
            embedding = Embedding(self.wire, features, pools, not stage, name=f"embedding_{stage}")
            signal = layers.keep(embedding, signal, layers.train)
            kind = SpikingSelfAttention if stage == 2 else TokenAttention
            for i in range(depth):
                attention = self.part(kind)(self.wire, heads, name=f"attention_{stage}_{i}")
                signal = layers.keep(attention, signal, layers.train)
                forward = self.part(FeedForward)(self.wire, self.expand, name=f"feed_forward_{stage}_{i}")
                signal = layers.keep(forward, signal, layers.train)
        return signal
