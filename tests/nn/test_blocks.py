"""Blocks of the training network: what each adds to the stream, from the levels that they captured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ge2mst_jax.grouping import Scale, gw_attention
from ge2mst_jax.nn import GWSSA, ConvBlock, Current, Downsample, FeedForward, Wire, conv2d
from ge2mst_jax.spiking import SpikeCode

STREAM = Current(jnp.asarray(np.random.default_rng(0).normal(0.5, 1, (2, 4, 4, 8)), jnp.float32), ("stem",))


def variables_of(layers):
    """Random `{layer: (shape of its kernel | thresholds)}`, BatchNorm and all."""
    random = np.random.default_rng(1)
    params, stats = {}, {}
    for name, shape in layers.items():
        if "neuron" in name:
            params[name] = {"raw": np.float32(random.uniform(-2, 0, shape))}
            continue
        norm = {"scale": random.uniform(-1.5, 1.5, shape[-1]), "bias": random.normal(0.3, 0.3, shape[-1])}
        stats[name] = {"norm": {"mean": random.normal(0, 0.3, shape[-1]), "var": random.uniform(0.5, 2, shape[-1])}}
        kernel = random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        params[name] = {"kernel": kernel, "norm": norm}
    flat = traverse_util.flatten_dict({"params": params, "batch_stats": stats})
    return traverse_util.unflatten_dict({path: np.float32(value) for path, value in flat.items()})


def run(block, layers, neuron="expg"):
    wire = Wire(SpikeCode.parse("2x2"), neuron, capture="levels")
    variables = variables_of(layers)
    current, aux = jax.jit(block(wire).apply, static_argnums=2)(variables, STREAM, False)
    return current, aux, variables


def theta(variables, name):
    return np.log1p(np.exp(variables["params"][name]["raw"].astype(np.float64)))


def synapse(variables, aux, name, sender, stride=1):
    """`BN(conv(n))` of the sender's captured levels."""
    params, stats = variables["params"][name], variables["batch_stats"][name]["norm"]
    arrived = np.asarray(conv2d(aux[sender].levels, params["kernel"], stride), np.float64)
    gain = params["norm"]["scale"] / np.sqrt(stats["var"] + 1e-5)
    return (arrived - stats["mean"]) * gain + params["norm"]["bias"]


def assert_near(found, expected):
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_convolution_block_adds_two_convolutions_to_the_stream():
    layers = {"neuron_0": (), "neuron_1": (), "conv_0": (3, 3, 8, 8), "conv_1": (3, 3, 8, 8)}
    current, aux, variables = run(ConvBlock, layers)
    assert set(aux) == set(layers)
    assert_near(aux["neuron_1"].current, synapse(variables, aux, "conv_0", "neuron_0"))
    assert_near(current.value, STREAM.value + synapse(variables, aux, "conv_1", "neuron_1"))
    assert current.parts == ("stem", "conv_1")


def test_downsampling_starts_a_new_stream_on_half_the_grid():
    current, aux, variables = run(lambda wire: Downsample(wire, 12), {"neuron": (), "synapse": (3, 3, 8, 12)})
    assert_near(current.value, synapse(variables, aux, "synapse", "neuron", 2))
    assert current.value.shape == (2, 2, 2, 12)
    assert current.parts == ("synapse",)


@pytest.mark.parametrize(("group_width", "fan_in"), [(4, 4), (128, 16)], ids=["groups of 4", "narrower than a group"])
def test_feed_forward_is_up_and_grouped_with_a_residual_and_down(group_width, fan_in):
    layers = {"up": (1, 1, 8, 16), "group": (3, 3, fan_in, 16), "down": (1, 1, 16, 8)}
    layers |= {f"neuron_{name}": () for name in layers}
    current, aux, variables = run(lambda wire: FeedForward(wire, 2, group_width), layers)
    up = synapse(variables, aux, "up", "neuron_up")
    assert_near(aux["neuron_group"].current, up)
    assert_near(aux["neuron_down"].current, up + synapse(variables, aux, "group", "neuron_group"))
    assert aux["neuron_down"].parts == ("up", "group")
    assert_near(current.value, synapse(variables, aux, "down", "neuron_down"))
    assert current.parts == ("down",)


SCALES = (Scale("block", 2), Scale("grid", 4))


def test_attention_neuron_sums_scaled_counts_and_the_local_half():
    layers = dict.fromkeys(("q", "k", "v", "out"), (1, 1, 8, 8))
    layers |= {"local": (3, 3, 1, 8), "neuron": (), "neuron_v": (), "neuron_out": ()}
    layers |= {"neuron_q": (4,), "neuron_k": (4,)}
    current, aux, variables = run(lambda wire: GWSSA(wire, 4, SCALES), layers)
    split = [np.asarray(aux[f"neuron_{key}"].levels).reshape(2, 4, 4, 4, 2) for key in "qkv"]
    assert {float(n) for n in np.unique(split[0])} == {float(n) for n in np.unique(split[1])} == {0.0, 1.0}
    assert split[2].max() > 1
    counts = np.stack([gw_attention(*image, SCALES) for image in zip(*split, strict=True)]).reshape(2, 4, 4, 8)
    # Heads 0 and 1 see 4 tokens of width 2, heads 2 and 3 see 16: 2^-p = 16/(m·d).
    shift = np.array([2.0, 2.0, 0.5, 0.5])
    thetas = theta(variables, "neuron_q") * theta(variables, "neuron_k") * theta(variables, "neuron_v")
    attended = counts * np.repeat(shift * thetas, 2)
    local = synapse(variables, aux, "local", "neuron_v")
    assert np.abs(attended).max() > 1
    assert_near(aux["neuron_out"].current, attended + local)
    assert aux["neuron_out"].parts == ("attention", "local")
    for key in "qkv":
        assert_near(aux[f"neuron_{key}"].current, synapse(variables, aux, key, "neuron"))
    assert_near(current.value, synapse(variables, aux, "out", "neuron_out"))
    assert current.parts == ("out",)
    record = aux["attention"]
    assert record.sources == ("neuron_q", "neuron_k", "neuron_v")
    assert (record.bound, record.out_shape) == (16 * 2 * 6, (4, 4, 8))
