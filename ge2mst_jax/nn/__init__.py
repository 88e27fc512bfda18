"""The thin Flax Linen shell: signals, neuron and synaptic layers, blocks."""

from ge2mst_jax.nn.blocks import (
    GWSSA,
    INPUT_CODES,
    AttentionBlock,
    ConvBlock,
    Downsample,
    FeedForward,
    Stem,
    pixels,
)
from ge2mst_jax.nn.maps import conv2d, fan_out, output_size
from ge2mst_jax.nn.neuron import NEURONS, Neuron
from ge2mst_jax.nn.synapse import Head, Synapse
from ge2mst_jax.nn.wire import (
    CAPTURES,
    EXECUTIONS,
    AttentionRecord,
    Current,
    NeuronRecord,
    Signal,
    SynapseRecord,
    Wire,
)

__all__ = [
    "CAPTURES",
    "EXECUTIONS",
    "GWSSA",
    "INPUT_CODES",
    "NEURONS",
    "AttentionBlock",
    "AttentionRecord",
    "ConvBlock",
    "Current",
    "Downsample",
    "FeedForward",
    "Head",
    "Neuron",
    "NeuronRecord",
    "Signal",
    "Stem",
    "Synapse",
    "SynapseRecord",
    "Wire",
    "conv2d",
    "fan_out",
    "output_size",
    "pixels",
]
