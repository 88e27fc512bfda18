"""A spiking network that starts from an ANN: thresholds from its activations, BatchNorm's statistics measured anew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from ge2mst_jax.nn import NeuronRecord
from ge2mst_jax.nn.norm import MOMENTUM
from ge2mst_jax.spiking import project

#: Batches of training images that are looked at.
BATCHES = 8
#: Thresholds tried a neuron layer: their top levels are equal shares of the largest current.
CANDIDATES = 48
SHARES = np.arange(1, CANDIDATES + 1, dtype=np.float32) / CANDIDATES
#: A threshold of a layer that is never above 0.
LEAST = 1e-3


def fetched(tree):
    """Whole arrays on every host, however they are sharded."""
    return multihost_utils.process_allgather(tree, tiled=True)


def neuron_layers(model, variables, images) -> dict:
    """`{layer: (code, heads)}` of the neurons of a spiking network that learn their threshold; gates, which an ANN has
    as they are, aside."""
    aux = jax.eval_shape(lambda v, x: model.apply(v, x)[1], variables, images)
    raw = {
        path[:-1]: leaf for path, leaf in traverse_util.flatten_dict(variables["params"]).items() if path[-1] == "raw"
    }
    found = {}
    for name, record in aux.items():
        if isinstance(record, NeuronRecord) and not record.gate and tuple(name.split("/")) in raw:
            found[name] = record.code, max(raw[tuple(name.split("/"))].size, 1)
    return found


def _by_head(current, heads: int):
    """`[heads, n]`: channels are shared out among heads in order."""
    channels = current.shape[-1]
    return jnp.moveaxis(current.reshape(-1, heads, channels // heads), 1, 0).reshape(heads, -1)


@functools.partial(jax.jit, static_argnames=("ann", "heads"))
def _largest(ann, variables, images, heads):
    aux = ann.apply(variables, images)[1]
    return {name: jnp.max(_by_head(aux[name].current, n), 1) for name, n in heads}


@functools.partial(jax.jit, static_argnames=("ann", "layers"))
def _errors(ann, variables, images, tops, layers):
    """`[CANDIDATES, heads]` of each layer: mean of `(relu(I) - θn)²`."""
    aux, found = ann.apply(variables, images)[1], {}
    for name, code, heads in layers:
        current = _by_head(aux[name].current, heads)

        def error(share, current=current, top=tops[name], code=code):
            theta = share * top[:, None] / code.max_level
            levels = project(jnp.clip(jnp.floor(current / theta + 0.5), 0, code.max_level), code)
            return jnp.mean(jnp.square(jax.nn.relu(current) - theta * levels), 1)

        found[name] = jax.lax.map(error, jnp.asarray(SHARES))
    return found


@functools.partial(jax.jit, static_argnames=("model",))
def _statistics(model, variables, images):
    """BatchNorm statistics of one batch alone."""
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    without_drops = model.clone(drop_path=0.0, capture="none")
    updates = without_drops.apply(
        {"params": variables["params"], "batch_stats": zeros}, images, train=True, mutable=["batch_stats"]
    )[1]
    return jax.tree.map(lambda new: new / (1 - MOMENTUM), updates["batch_stats"])


def shared_parameters(ann, initial) -> dict:
    """`{path: array}` of a spiking network: the ANN's, but for thresholds, which it has not.

    Raises:
        ValueError: networks of other shapes; names an array.

    >>> spiking = {"head": {"bias": np.zeros(2)}, "neuron": {"raw": np.zeros(())}}
    >>> shared_parameters({"head": {"bias": np.ones(2)}}, spiking)
    {'head/bias': array([1., 1.]), 'neuron/raw': array(0.)}
    >>> shared_parameters({"head": {"bias": np.ones(3)}}, {"head": {"bias": np.zeros(2)}})
    Traceback (most recent call last):
    ValueError: the ANN's head/bias is (3,), but this network's (2,)
    """
    given, params = traverse_util.flatten_dict(ann, sep="/"), {}
    for path, like in traverse_util.flatten_dict(initial, sep="/").items():
        array = like if path.endswith("/raw") else given.pop(path, None)
        if array is None or array.shape != like.shape:
            raise ValueError(
                f"the ANN's {path} is {getattr(array, 'shape', 'absent')}, but this network's {like.shape}"
            )
        params[path] = array
    if given:
        raise ValueError(f"the ANN holds {min(given)}, which this network has not")
    return params


def spiking_start(ann, variables, model, initial, batches):
    """Parameters and statistics of a spiking network that computes nearly what an ANN of its shape does.

    Every threshold is the one of `CANDIDATES` that minimises the mean squared error `(relu(I) - θn)²` of its layer's
    activations in the ANN (of each head, where it has one a head: binary `q` and `k` too). Then every BatchNorm gets
    the mean statistics of the batches in the spiking network itself, as those divide by the scale of levels.

    Args:
        ann: the network, with `neuron="relu"`.
        variables: `params` and `batch_stats` of it.
        model: the same with `neuron="expg"` (or `"qcfs"`).
        initial: variables of it, whatever they are, but for the thresholds of gates: those stay, an ANN's are as new.
        batches: a few arrays `[B, H, W, C]` of training images.

    Returns:
        Variables as `initial`'s.

    Raises:
        ValueError: an ANN of another shape; names the array.

    Source: error-minimising thresholds as in the quantisation of activations (Choukroun et al., 2019).
    """
    params = shared_parameters(variables["params"], initial["params"])
    # Groups have no parameters, nor has attention.
    ann = ann.clone(capture="levels", drop_path=0.0, scales=model.scales, attention=model.attention)
    layers = neuron_layers(model, initial, batches[0])
    heads = tuple((name, n) for name, (_, n) in layers.items())
    sizes = tuple((name, code, n) for name, (code, n) in layers.items())
    # Fetched one by one: on virtual devices of a CPU, programs that wait for each other may not overlap.
    largest = [fetched(_largest(ann, variables, images, heads)) for images in batches]
    tops = {name: np.maximum(np.max([x[name] for x in largest], 0), LEAST) for name in layers}
    errors = [fetched(_errors(ann, variables, images, tops, sizes)) for images in batches]
    for name, (code, _) in layers.items():
        best = np.argmin(np.mean([error[name] for error in errors], 0), 0)
        theta = np.maximum(SHARES[best] * tops[name].astype(np.float64) / code.max_level, 1e-6)
        params[f"{name}/raw"] = raw_of(theta).reshape(params[f"{name}/raw"].shape)
    made = {
        "params": traverse_util.unflatten_dict({path: jnp.asarray(a) for path, a in params.items()}, sep="/"),
        "batch_stats": initial["batch_stats"],
    }
    return measured_anew(model, made, batches)


def measured_anew(model, variables, batches):
    """Variables with the mean of the BatchNorm statistics of each batch alone."""
    statistics = [fetched(_statistics(model, variables, images)) for images in batches]
    return variables | {"batch_stats": jax.tree.map(lambda *each: np.mean(each, 0), *statistics)}


def of_other_codes(before, variables, model, batches):
    """A spiking network's variables for one of the same arrays under other codes, groups or attention.

    Every learned threshold becomes `θ·L/L'` of the levels `0..L` before and `0..L'` now: the largest value stays. Then
    BatchNorm gets the mean statistics of the batches.

    Args:
        before: the network that the variables are of.
        variables: `params` and `batch_stats`.
        model: the network that they are for.
        batches: a few arrays `[B, H, W, C]` of training images.
    """
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    codes = [neuron_layers(net.clone(scales=model.scales), variables, batches[0]) for net in (before, model)]
    for name, (code, _) in codes[1].items():
        theta = np.logaddexp(0.0, fetched(params[f"{name}/raw"]).astype(np.float64))  # softplus
        params[f"{name}/raw"] = raw_of(theta * codes[0][name][0].max_level / code.max_level)
    made = {"params": traverse_util.unflatten_dict(params, sep="/"), "batch_stats": variables["batch_stats"]}
    return measured_anew(model, made, batches)


def raw_of(theta):
    """The parameter whose softplus is a threshold, float32.

    >>> float(np.logaddexp(0, raw_of(np.float64(0.25))).round(6))
    0.25
    """
    return (theta + np.log(-np.expm1(-theta))).astype(np.float32)
