"""Looking into deployed networks, and changing them, for the tests of the conversion."""

import dataclasses

import numpy as np
from flax import traverse_util

from ge2mst_jax.nn import NeuronRecord

CONV = "stage_0/block_0/conv_0"


def edited(net, path, change):
    """The network with one array changed by `change(array)`, nothing else."""
    flat = traverse_util.flatten_dict(net.params, sep="/")
    assert path in flat
    flat[path] = change(np.array(flat[path]))
    return dataclasses.replace(net, params=traverse_util.unflatten_dict(flat, sep="/"))


def fraction_bits(net, layer):
    return next(f.fraction_bits for f in net.formats if layer in f.parts + f.readers)


def first(array, value):
    array.flat[0] = value
    return array


def neuron_records(aux):
    return {name: record for name, record in aux.items() if isinstance(record, NeuronRecord)}
