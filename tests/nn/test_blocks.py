"""Blocks of the training network: what each adds to the stream, from the levels that they captured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ge2mst_jax.grouping import Scale, gw_attention
from ge2mst_jax.nn import (
    Arithmetic,
    ConvBlock,
    Current,
    Downsample,
    FeedForward,
    Neuron,
    SelfAttention,
    Signal,
    Synapse,
    Wire,
    conv2d,
    integer_conv,
)
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
    current, aux, variables = run(lambda wire: SelfAttention(wire, 4, SCALES), layers)
    split = [np.asarray(aux[f"neuron_{key}"].levels).reshape(2, 4, 4, 4, 2) for key in "qkv"]
    assert np.unique(split[0]).tolist() == np.unique(split[1]).tolist() == [0, 1, 2, 3]
    assert split[2].max() > 1
    counts = np.asarray(gw_attention(*split, SCALES, grid=(4, 4))).reshape(2, 4, 4, 8)
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
    assert (record.bound, record.out_shape) == (16 * 2 * 3 * 3 * 6, (4, 4, 8))


CASES = {
    "synapse, even kernel": (lambda w: Synapse(w, 8, 4), "kernel is 4: its side must be odd"),
    "synapse, no kernel": (lambda w: Synapse(w, 8, 0), "kernel is 0: it must be a whole number, 1 to"),
    "synapse, negative kernel": (lambda w: Synapse(w, 8, -3), "kernel is -3: it must be a whole number"),
    "synapse, no stride": (lambda w: Synapse(w, 8, 3, 0), "stride is 0: it must be a whole number"),
    "synapse, no features": (lambda w: Synapse(w, 0), "features is 0: it must be a whole number"),
    "synapse, true features": (lambda w: Synapse(w, True), "features is True: it must be a whole number"),
    "synapse, groups of 0": (lambda w: Synapse(w, 8, 3, 1, 0), "group_width is 0: it must be a whole number"),
    "synapse, groups of 3": (lambda w: Synapse(w, 8, 3, 1, 3), "groups of 3 channels do not divide 8 input and 8"),
}


@pytest.mark.parametrize(("layer", "message"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("execution", ["training", "dense"])
def test_layer_that_there_is_none_of_is_refused_by_its_field(execution, layer, message):
    signal = Signal(STREAM.value, None, SpikeCode.parse("2x2"), "levels", "sender")
    with pytest.raises(ValueError, match=message):
        layer(Wire(SpikeCode.parse("2x2"), execution=execution)).init(jax.random.key(0), signal, False)


@pytest.mark.parametrize(
    ("heads", "message"), [(0, "heads is 0"), (3, "3 heads cannot share 8 channels"), (True, "is")]
)
def test_heads_that_cannot_share_the_channels_are_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        Neuron(Wire(SpikeCode.parse("2x2")), None, heads).init(jax.random.key(0), STREAM)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"code": "2x2"}, "code is '2x2': it must be a SpikeCode"),
        ({"code": None}, "code is None"),
        ({"neuron": "lifs"}, "unknown neuron 'lifs': known are expg"),
        ({"lif": {"tau": 4.0}}, "lif is {'tau': 4.0}: it must be LIFSettings"),
        ({"rate_steps": 256}, "rate_steps is 256: it must be a whole number, 0 to 255"),
        ({"rate_steps": 4}, "rate_steps: only qcfs neurons under execution 'training' can be rate-coded, not expg"),
        ({"rate_steps": 4, "neuron": "qcfs", "execution": "dense"}, "rate_steps: only qcfs neurons under execution"),
        (
            {"rate_steps": 4, "neuron": "qcfs", "code": SpikeCode.parse("2x3/1")},
            "rate_steps: code 2x3/1 has no level for every rate",
        ),
        ({"execution": "deployed"}, "unknown execution 'deployed': known are training, dense, spiking"),
        ({"capture": None}, "unknown capture None"),
        ({"dtype": jnp.int32}, "unknown dtype .*int32.*: known are float32"),
    ],
    ids=str,
)
def test_agreement_that_there_is_none_of_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Wire(**({"code": SpikeCode.parse("2x2")} | fields))


@pytest.mark.parametrize(
    ("images", "kernel", "stride", "message"),
    [
        ((4, 4, 2), (3, 3, 2, 5), 1, r"images of shape \(4, 4, 2\) and a kernel of shape \(3, 3, 2, 5\)"),
        ((1, 4, 4, 2), (3, 2, 5), 1, "they must be"),
        ((1, 4, 4, 2), (3, 1, 2, 5), 1, "they must be"),
        ((1, 4, 4, 2), (2, 2, 2, 5), 1, "kernel is 2: its side must be odd"),
        ((1, 4, 4, 2), (3, 3, 3, 5), 1, "groups of 3 channels do not divide 2 input and 5 output channels"),
        ((1, 4, 4, 4), (3, 3, 2, 5), 1, "groups of 2 channels do not divide 4 input and 5 output channels"),
        ((1, 4, 4, 2), (3, 3, 2, 5), 0, "stride is 0"),
        ((1, 4, 4, 2), (3, 3, 2, 5), 1.5, "stride is 1.5"),
    ],
    ids=str,
)
def test_maps_of_shapes_that_do_not_fit_are_refused(images, kernel, stride, message):
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.zeros(images), jnp.zeros(kernel), stride)
    with pytest.raises(ValueError, match=message):
        integer_conv(jnp.zeros(images), jnp.zeros(kernel, jnp.int32), stride, 6, Arithmetic())
