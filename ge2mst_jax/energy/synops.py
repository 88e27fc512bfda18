"""Exact synop counts of a network, from the `aux` of its forward passes; added up in int64 on the host."""

import dataclasses

import jax
import numpy as np

from ge2mst_jax.nn import AttentionRecord, NeuronRecord, SynapseRecord, fan_out


@dataclasses.dataclass
class LayerCount:
    """One layer's exact counts over all images seen.

    Args:
        name, role: `"stem"`, `"hidden"`, `"attention"` or `"head"`.
        products: `(multiply-accumulates of an image, padding included; neuron layers whose spikes meet)`, of each.
        real: whether real numbers arrive: then nothing is a synop and every product is a multiply-accumulate.
        synops: accumulates that spikes caused, each at a connection actually present.
        macs: multiply-accumulates of dense passes over all images, at connections actually present; real numbers that
            are sent at every step make a pass of each.
    """

    name: str
    role: str
    products: tuple[tuple[int, tuple[str, ...]], ...] = ()
    real: bool = False
    synops: int = 0
    macs: int = 0

    @property
    def dense_macs(self) -> int:
        """Of one image's dense passes, padding included."""
        return sum(macs for macs, _ in self.products)


@dataclasses.dataclass
class NeuronCount:
    """One neuron layer's exact spikes over all images seen; `steps` is its `T`."""

    name: str
    neurons: int
    is_image: bool
    steps: int = 1
    spikes: int = 0


class SpikeCounter:
    """Adds up exact counts, batch by batch.

    >>> import jax.numpy as jnp
    >>> from ge2mst_jax import create_model
    >>> model = create_model("ge2mst_nano", stages=(("conv", 8, 1),))
    >>> images = jnp.zeros((2, 8, 8, 1), jnp.uint8)
    >>> _, aux = model.apply(model.init(jax.random.key(0), images), images)
    >>> counter = SpikeCounter()
    >>> counter.add(aux)
    >>> counter.images, counter.layers["stem/synapse"].synops
    (2, 0)
    """

    def __init__(self):
        self.images = 0
        self.layers: dict[str, LayerCount] = {}
        self.neurons: dict[str, NeuronCount] = {}

    def add(self, aux, images=...) -> None:
        """Adds one batch's `aux` (captured `"counts"` are enough), of all its images or of those that are named.

        Args:
            aux: of a forward pass.
            images: indices into the batch, or a mask of it.

        Raises:
            ValueError: `aux` holds no neuron layer.
        """
        aux = jax.device_get(aux)
        sent = {name: r for name, r in aux.items() if isinstance(r, NeuronRecord)}
        spikes = {name: r.spikes[images].astype(np.int64) for name, r in sent.items()}
        if not spikes:
            raise ValueError("aux holds no neuron layer: give what a network's forward pass returned beside its logits")
        batch = len(next(iter(spikes.values())))
        self.images += batch
        sending = {name for name, r in sent.items() if not r.real}
        for name, record in aux.items():
            if isinstance(record, NeuronRecord):
                neurons = int(np.prod(record.shape))
                count = self.neurons.setdefault(name, NeuronCount(name, neurons, not record.parts, record.steps))
                count.spikes += int(spikes[name].sum())
            elif isinstance(record, SynapseRecord):
                arriving = spikes[record.source] if record.source in sending else None
                passes = sent[record.source].passes if record.source in sent else 1
                self._add_synapse(name, record, arriving, batch, passes)
            elif isinstance(record, AttentionRecord):
                real = not sending.issuperset(record.sources)
                count = self.layers.setdefault(name, LayerCount(name, "attention", record.products, real))
                count.macs += batch * count.dense_macs
                count.synops += int(record.synops[images].astype(np.int64).sum())

    def _add_synapse(self, name, record, spikes, batch, passes):
        products = ((passes * dense_macs(record), (record.source,)),)
        count = self.layers.setdefault(name, LayerCount(name, record.role, products, spikes is None))
        connections = connections_per_spike(record)  # [H, W]
        count.macs += batch * passes * record.in_shape[-1] * int(connections.sum())
        if spikes is not None:
            count.synops += int((spikes * connections).sum())

    def spikes_together(self, layers) -> float:
        """`T · fr` of spikes that meet in one product: of one layer its spikes per neuron and image; of two, the lower
        of their rates a step, over the longer one's steps."""
        met = [self.neurons[name] for name in layers]
        steps = max(n.steps for n in met)
        return steps * min(n.spikes / (n.neurons * n.steps) for n in met) / self.images

    @property
    def spikes_per_neuron(self) -> float:
        """Mean spikes per neuron and image over every neuron but the input code; 0 where real numbers are sent.

        Raises:
            ValueError: no images were counted.
        """
        if not self.images:
            raise ValueError("no images were counted: spikes per neuron are a mean over at least one")
        counted = [n for n in self.neurons.values() if not n.is_image]
        return sum(n.spikes for n in counted) / (self.images * sum(n.neurons for n in counted))


def connections_per_spike(record: SynapseRecord) -> np.ndarray:
    """`[H, W]` int64: connections that a spike at each position reaches, borders and strides included.

    A channel of a layer in `g` groups reaches `C_out/g` channels; the head sums over all positions.
    """
    height, width, _ = record.in_shape
    reached = fan_out(height, width, record.kernel, record.stride)
    return reached * (record.out_shape[-1] // record.groups)


def dense_macs(record: SynapseRecord) -> int:
    """Multiply-accumulates of one image's dense pass as the field counts FLOPs: every tap of every output position,
    those over padding too. The head maps every position of its input."""
    height, width, features = (
        record.out_shape if record.role != "head" else (*record.in_shape[:2], record.out_shape[-1])
    )
    return height * width * features * record.kernel**2 * (record.in_shape[-1] // record.groups)
