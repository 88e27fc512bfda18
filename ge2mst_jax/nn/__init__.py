"""The thin Flax Linen shell: signals, neuron and synaptic layers, blocks."""

from ge2mst_jax.nn.blocks import (
    GWSSA,
    INPUT_CODES,
    AttentionBlock,
    ConvBlock,
    Downsample,
    FeedForward,
    Stem,
)
from ge2mst_jax.nn.images import check_images, in_range, pixels, refuse_others
from ge2mst_jax.nn.layers import Attention, Head, Neuron, Synapse
from ge2mst_jax.nn.maps import conv2d, fan_out, output_size
from ge2mst_jax.nn.planes import (
    MAX_GUARD_BITS,
    Arithmetic,
    Planes,
    integer_conv,
    integer_sums,
    planes_of,
    sums_fit,
)
from ge2mst_jax.nn.wire import (
    CAPTURES,
    DTYPES,
    EXECUTIONS,
    NEURONS,
    AttentionRecord,
    Current,
    NeuronRecord,
    Signal,
    SynapseRecord,
    Wire,
)

__all__ = [
    "CAPTURES",
    "DTYPES",
    "EXECUTIONS",
    "GWSSA",
    "INPUT_CODES",
    "MAX_GUARD_BITS",
    "NEURONS",
    "Arithmetic",
    "Attention",
    "AttentionBlock",
    "AttentionRecord",
    "ConvBlock",
    "Current",
    "Downsample",
    "FeedForward",
    "Head",
    "Neuron",
    "NeuronRecord",
    "Planes",
    "Signal",
    "Stem",
    "Synapse",
    "SynapseRecord",
    "Wire",
    "check_images",
    "conv2d",
    "fan_out",
    "in_range",
    "integer_conv",
    "integer_sums",
    "output_size",
    "pixels",
    "planes_of",
    "refuse_others",
    "sums_fit",
]
