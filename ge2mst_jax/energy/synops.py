"""Exact synop counts of a network, from the `aux` of its forward passes; added up in int64 on the host."""

import dataclasses

import jax
import numpy as np

from ge2mst_jax.nn import AttentionRecord, NeuronRecord, SynapseRecord, fan_out


@dataclasses.dataclass
class LayerCount:
    """One layer's exact counts over all images seen.

    `synops`: accumulates that spikes caused, each at a connection actually present. `macs`: multiply-accumulates of
    one dense pass over all images. `role` is `"stem"`, `"hidden"`, `"attention"` or `"head"`.
    """

    name: str
    role: str
    synops: int = 0
    macs: int = 0
    coded: bool = True  # whether its input is spikes; else its synops are 0 and its macs are what runs


@dataclasses.dataclass
class NeuronCount:
    """One neuron layer's exact spikes over all images seen."""

    name: str
    neurons: int
    is_image: bool
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
        """Adds one batch's `aux` (captured `"counts"` are enough), of all its images or of those that are named."""
        aux = jax.device_get(aux)
        spikes = {name: r.spikes[images].astype(np.int64) for name, r in aux.items() if isinstance(r, NeuronRecord)}
        batch = len(next(iter(spikes.values())))
        self.images += batch
        for name, record in aux.items():
            if isinstance(record, NeuronRecord):
                count = self.neurons.setdefault(name, NeuronCount(name, int(np.prod(record.shape)), not record.parts))
                count.spikes += int(spikes[name].sum())
            elif isinstance(record, SynapseRecord):
                self._add_synapse(name, record, spikes.get(record.source), batch)
            elif isinstance(record, AttentionRecord):
                count = self.layers.setdefault(name, LayerCount(name, "attention"))
                count.synops += int(record.synops[images].astype(np.int64).sum())

    def _add_synapse(self, name, record, spikes, batch):
        count = self.layers.setdefault(name, LayerCount(name, record.role, coded=spikes is not None))
        _height, _width, channels = record.in_shape
        connections = connections_per_spike(record)  # [H, W]
        count.macs += batch * channels * int(connections.sum())
        if spikes is not None:
            count.synops += int((spikes * connections).sum())

    @property
    def spikes_per_neuron(self) -> float:
        """Mean spikes per neuron and image over every neuron but the input code."""
        counted = [n for n in self.neurons.values() if not n.is_image]
        return sum(n.spikes for n in counted) / (self.images * sum(n.neurons for n in counted))


def connections_per_spike(record: SynapseRecord) -> np.ndarray:
    """`[H, W]` int64: connections that a spike at each position reaches, borders and strides included.

    A channel of a layer in `g` groups reaches `C_out/g` channels; the head sums over all positions.
    """
    height, width, _ = record.in_shape
    reached = fan_out(height, width, record.kernel, record.stride)
    return reached * (record.out_shape[-1] // record.groups)
