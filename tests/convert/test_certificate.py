"""The certificate: what it proves on random networks, what it refuses, and what conversion refuses by name."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax.convert import (
    CertificateError,
    ConversionError,
    certificate,
    certify,
    check_network,
    compare_executions,
    deploy,
    digest_of,
    fixed_point,
    fold,
)
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.models import ge2mst
from ge2mst_jax.nn import ConvBlock, NeuronRecord

IMAGES = random_images(16)
LAYERS = (
    "stem/image",
    "stage_0/block_0/neuron_0",
    "stage_0/block_0/neuron_1",
    "stage_1/down/neuron",
    "stage_1/block_0/attention/neuron",
    "stage_1/block_0/attention/neuron_q",
    "stage_1/block_0/attention/neuron_k",
    "stage_1/block_0/attention/neuron_v",
    "stage_1/block_0/attention/neuron_out",
    "stage_1/block_0/feed_forward/neuron_up",
    "stage_1/block_0/feed_forward/neuron_group",
    "stage_1/block_0/feed_forward/neuron_down",
    "neuron_head",
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("2x2")


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.fixture(scope="module")
def net(model, variables):
    return deploy(model, variables, SHAPE)


@pytest.fixture(scope="module")
def small():
    """The smallest network there is, with its variables: one convolution block."""
    model = tiny_model(stages=(("conv", 8, 1),))
    return model, random_variables(model, seed=5)


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


# --- what it proves ---------------------------------------------------------------------------------------------------


ATTENTION = {"stages": (("attention", 16, 1),), "input_code": "direct"}


@pytest.mark.parametrize(
    ("code", "changes", "shape"),
    [
        ("1x4", {}, (4, 4, 2)),
        ("2x3/1", {}, (4, 4, 2)),
        pytest.param("4x1", {}, (4, 4, 2), marks=pytest.mark.slow),
        ("1x1", {}, (4, 4, 2)),
        ("2x2+1,0", {}, (4, 4, 2)),
        pytest.param("2x2+2,0", {}, (4, 4, 2), marks=pytest.mark.slow),
        # All 14x14 tokens are one group: the longest counts that attention can make.
        ("2x2", {"scales": ("block14",)}, (14, 14, 2)),
    ],
    ids=str,
)
def test_executions_are_equal_for_every_code(code, changes, shape):
    model = tiny_model(code, **(ATTENTION | changes))
    net = deploy(model, random_variables(model, shape, seed=3), shape)
    made = certify(net, random_images(8, shape), batch_size=8)
    assert (made.spikes_differing, made.levels_differing, made.logits_differing) == (0, 0, 0)
    assert {layer.code for layer in made.layers if layer.name[-2:] not in ("_q", "_k")} == {code}
    assert len(made.layers) == 9
    assert all(layer.headroom_bits > 0 and layer.fraction_bits >= 1 for layer in made.layers)


@pytest.mark.parametrize("code", ["1x4", "2x3/1", "4x1", "1x1", "2x2+1,0", "2x2+2,0"])
def test_networks_that_were_compared_are_neither_silent_nor_saturated(code):
    model = tiny_model(code, **ATTENTION)
    net = deploy(model, random_variables(model, (4, 4, 2), seed=3), (4, 4, 2))
    for name, record in neuron_records(net(random_images(8, (4, 4, 2)), capture="levels")[1]).items():
        assert 0.02 < np.mean(np.asarray(record.levels) > 0) < 0.98, name


def test_certificate_says_what_was_compared(net):
    done = []
    labels = np.argmax(net.training_logits(IMAGES[:8]), -1).tolist() + [0] * 8
    made = certify(net, IMAGES, np.array(labels), batch_size=8, progress=done.append)
    assert done == [8, 16]
    assert {layer.name for layer in made.layers} == set(LAYERS)
    neurons = {layer.name: layer.neurons for layer in made.layers}
    assert neurons["stem/image"] == 8 * 8 * 2
    assert neurons["stage_0/block_0/neuron_0"] == neurons["stage_1/down/neuron"] == 8 * 8 * 8
    assert neurons["stage_1/block_0/attention/neuron_q"] == 4 * 4 * 16
    assert neurons["stage_1/block_0/feed_forward/neuron_group"] == 4 * 4 * 32
    # 8 steps of the image, 3 layers of 512 at 4 steps, q and k one step, 5 layers of 256 and 2 of 512 at 4 steps.
    assert made.spikes_compared == 16 * (128 * 8 + 3 * 512 * 4 + 2 * 256 + 5 * 256 * 4 + 2 * 512 * 4)
    assert made.images == 16
    assert made.digest == net.digest
    assert made.accuracy["dense"] == made.accuracy["spiking"]
    assert made.accuracy["change"] == made.accuracy["dense"] - made.accuracy["training"]
    assert made.accuracy["training"] >= 0.5
    assert made.head["headroom_bits"] > 0
    assert json.loads(json.dumps(made.as_dict()))["layers"][0]["name"] in LAYERS


def test_certificate_lists_the_layers_in_the_order_of_the_network(net):
    assert tuple(layer.name for layer in certify(net, IMAGES[:8], batch_size=8).layers) == LAYERS


def test_certificate_does_not_depend_on_how_the_images_are_batched(net):
    whole = certify(net, IMAGES[:8], batch_size=8)
    assert certify(net, IMAGES[:8], batch_size=16) == whole


def test_every_current_lies_on_its_grid_inside_its_bound(net):
    aux = net(IMAGES[:8], capture="levels")[1]
    for name, record in neuron_records(aux).items():
        if name == "stem/image":
            continue
        current = np.asarray(record.current, np.float64)
        made = next(f for f in net.formats if name in f.readers)
        units = current * 2.0**made.fraction_bits
        np.testing.assert_array_equal(units, np.round(units))
        assert (
            np.abs(current).max() + np.max(net_threshold(net, name)) / 2
            <= made.bound
            < 2.0 ** (24 - made.fraction_bits)
        )


def net_threshold(net, name):
    return traverse_util.flatten_dict(net.params, sep="/")[f"{name}/threshold"]


def test_float_and_uint8_images_agree(small):
    net = deploy(*small, SHAPE)
    expected = np.asarray(net(IMAGES[:8])[0])
    assert len(np.unique(expected)) > 8
    for images in (np.float32(IMAGES[:8]) / np.float32(255), jnp.float32(IMAGES[:8]) / 255):
        np.testing.assert_array_equal(np.asarray(net(images)[0]), expected)
        np.testing.assert_array_equal(np.asarray(net(images, execution="spiking")[0]), expected)


def test_direct_and_coded_images_are_the_same_network(small):
    model, variables = small
    coded = deploy(model, variables, SHAPE)
    direct = deploy(model.clone(input_code="direct"), variables, SHAPE)
    certify(direct, IMAGES[:8])
    for execution in ("dense", "spiking"):
        found, expected = (np.asarray(net(IMAGES[:8], execution=execution)[0]) for net in (direct, coded))
        np.testing.assert_array_equal(found, expected)


def test_digest_is_that_of_the_numbers(model, variables, net):
    assert deploy(model, variables, SHAPE).digest == net.digest
    assert digest_of(net.params, net.formats, net.image_shape) == net.digest
    assert digest_of(net.params, net.formats, (8, 8, 3)) != net.digest
    assert digest_of(net.params, net.formats[::-1], net.image_shape) != net.digest


# --- folding ----------------------------------------------------------------------------------------------------------


def test_fold_is_the_stated_formula_with_gains_of_both_signs(model, variables):
    folded = traverse_util.flatten_dict(fold(model, variables, SHAPE)[0], sep="/")
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    stats = traverse_util.flatten_dict(variables["batch_stats"], sep="/")

    def expected(layer):
        gain = params[f"{layer}/norm/scale"] / np.sqrt(stats[f"{layer}/norm/var"] + 1e-5)
        assert (gain < 0).any()
        assert (gain > 0).any()
        return params[f"{layer}/kernel"] * gain, params[f"{layer}/norm/bias"] - stats[f"{layer}/norm/mean"] * gain

    def softplus(x):
        return np.log1p(np.exp(x))

    block = "stage_1/block_0/attention"
    for layer in ("stem/synapse", "stage_1/down/synapse", f"{block}/out"):
        kernel, bias = expected(layer)
        np.testing.assert_allclose(folded[f"{layer}/kernel"], kernel, rtol=2e-6)
        np.testing.assert_allclose(folded[f"{layer}/bias"], bias, rtol=2e-6, atol=1e-6)
    # Attention: the current is counted in units of 2^-p θq θk θv, one a head. 4 tokens of width 8: p = log2(32) - 4.
    heads = [softplus(params[f"{block}/neuron_{key}/raw"]) for key in "qk"]
    theta_v = softplus(params[f"{block}/neuron_v/raw"])
    unit = np.repeat(0.5 * heads[0] * heads[1] * theta_v, 8)
    kernel, bias = expected(f"{block}/local")
    np.testing.assert_allclose(folded[f"{block}/local/kernel"], kernel / unit, rtol=1e-5)
    np.testing.assert_allclose(folded[f"{block}/local/bias"], bias / unit, rtol=1e-5, atol=1e-5)
    theta_out = softplus(params[f"{block}/neuron_out/raw"])
    np.testing.assert_allclose(folded[f"{block}/neuron_out/threshold"], theta_out / unit, rtol=1e-5)
    # The head: W·θ, and the bias once a token.
    theta_head = softplus(params["neuron_head/raw"])
    np.testing.assert_allclose(folded["head/kernel"], params["head/kernel"] * theta_head, rtol=2e-6)
    np.testing.assert_allclose(folded["head/bias"], 16 * params["head/bias"], rtol=2e-6)


def test_first_current_differs_from_the_training_network_by_rounding_alone(model, variables, net):
    trained = forward(model.clone(capture="levels"), variables, IMAGES[:8])
    deployed = net(IMAGES[:8], capture="levels")
    name = "stage_0/block_0/neuron_0"
    currents = [np.asarray(aux[name].current, np.float64) for aux in (trained[1], deployed[1])]
    # 18 pixels of at most 255 and a bias, each number rounded by half a grid step; the rest is float32's own.
    rounding = (18 * 255 + 1) * 2.0 ** -(fraction_bits(net, name) + 1)
    assert np.abs(currents[0] - currents[1]).max() <= rounding + 1e-5
    assert np.abs(currents[0]).max() > 100 * rounding


def test_folded_network_is_the_training_network(model, variables):
    """Before rounding: a level may move only where float32 leaves a tie open; a wrong fold moves a tenth and more."""
    trained = forward(model.clone(capture="levels"), variables, IMAGES[:8])
    params = fold(model, variables, SHAPE)[0]
    folded = forward(model.clone(execution="dense", capture="levels"), {"params": params}, IMAGES[:8])
    for name, record in neuron_records(trained[1]).items():
        assert np.mean(np.asarray(record.levels) != np.asarray(folded[1][name].levels)) < 0.002, name
    np.testing.assert_allclose(np.asarray(folded[0]) / 16, np.asarray(trained[0]), atol=0.002)


# --- what check_network finds -----------------------------------------------------------------------------------------

CONV = "stage_0/block_0/conv_0"
THRESHOLD = "stage_1/block_0/feed_forward/neuron_down"


def test_sound_network_passes(net):
    check_network(net)


def test_number_between_grid_points_is_found(net):
    f = fraction_bits(net, CONV)
    bad = edited(net, f"{CONV}/kernel", lambda a: first(a, a.flat[0] + 2.0 ** -(f + 1)))
    with pytest.raises(CertificateError, match=rf"{CONV}: kernel holds numbers that are not multiples of 2\^-{f}$"):
        check_network(bad)


def test_number_moved_by_one_grid_step_is_found_by_the_digest(net):
    f = fraction_bits(net, CONV)
    bad = edited(net, f"{CONV}/kernel", lambda a: first(a, a.flat[0] - np.sign(a.flat[0]) * 2.0**-f))
    with pytest.raises(CertificateError, match="digest"):
        certify(bad, IMAGES[:8])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_number_that_is_not_finite_is_found(net, value):
    bad = edited(net, "stem/synapse/bias", lambda a: first(a, value))
    with pytest.raises(CertificateError, match="stem/synapse: bias holds numbers that are not finite"):
        check_network(bad)


def test_odd_threshold_is_found(net):
    f = fraction_bits(net, THRESHOLD)
    bad = edited(net, f"{THRESHOLD}/threshold", lambda a: np.float32(a + 2.0**-f))
    with pytest.raises(CertificateError, match=rf"{THRESHOLD}: threshold holds .* not multiples of 2\^-{f - 1}$"):
        check_network(bad)


@pytest.mark.parametrize("sign", [0, -1])
def test_threshold_that_is_not_positive_is_found(net, sign):
    bad = edited(net, f"{THRESHOLD}/threshold", lambda a: np.float32(sign * a))
    with pytest.raises(CertificateError, match=f"{THRESHOLD}: a threshold is not positive"):
        check_network(bad)


def test_current_out_of_bounds_is_found(net):
    f = fraction_bits(net, CONV)
    bad = edited(net, f"{CONV}/bias", lambda a: first(a, np.float32(2.0 ** (24 - f))))
    with pytest.raises(CertificateError, match=rf"stage_0/block_0/neuron_1: its current .* not below 2\^{24 - f}$"):
        check_network(bad)


def test_edited_formats_are_found(net):
    with pytest.raises(CertificateError, match="formats"):
        check_network(dataclasses.replace(net, formats=net.formats[:-1]))
    finer = tuple(dataclasses.replace(f, fraction_bits=f.fraction_bits + 1) for f in net.formats)
    with pytest.raises(CertificateError, match=r"can reach|multiples"):
        check_network(dataclasses.replace(net, formats=finer))
    looser = tuple(dataclasses.replace(f, bound=f.bound * 2) for f in net.formats)
    with pytest.raises(CertificateError, match="digest"):
        check_network(dataclasses.replace(net, formats=looser))


# --- executions that differ -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(net):
    """The same network, but for one threshold."""
    return edited(net, f"{THRESHOLD}/threshold", lambda a: np.float32(2 * a))


def test_threshold_changed_in_one_execution_alone_is_seen(net, other):
    same = compare_executions(net, net, IMAGES[:8], batch_size=8)
    assert not any(sum(pair) for pair in same[0].values())
    assert same[1] == 0
    totals, logits, (dense, spiking) = compare_executions(net, other, IMAGES, batch_size=8)
    before, after = LAYERS[: LAYERS.index(THRESHOLD)], LAYERS[LAYERS.index(THRESHOLD) :]
    assert set(totals) == set(LAYERS)
    assert all(totals[name] == [0, 0] for name in before)
    assert all(min(totals[name]) > 0 for name in after)
    assert logits == np.sum(dense != spiking) > 0


def test_differences_are_counted_as_by_hand(small):
    net, layer = deploy(*small, SHAPE), "stage_0/block_0/neuron_1"
    other = edited(net, f"{layer}/threshold", lambda a: np.float32(2 * a))
    totals, _, _ = compare_executions(net, other, IMAGES[:8], batch_size=8)
    expected = net(IMAGES[:8], capture="levels")[1][layer]
    found = other(IMAGES[:8], execution="spiking", capture="levels")[1][layer]
    trains = np.asarray(expected.code.encode(expected.levels)) != np.asarray(found.train)
    assert totals[layer] == [trains.sum(), np.sum(np.asarray(expected.levels) != np.asarray(found.levels))]
    assert totals[layer][0] > totals[layer][1] > 0


def test_certify_never_returns_a_failed_certificate(net, other, monkeypatch):
    def compare(dense, spiking, *args):
        return compare_executions(net, other, *args)

    monkeypatch.setattr(certificate, "compare_executions", compare)
    with pytest.raises(CertificateError, match=f"^{THRESHOLD}: [1-9][0-9]* spikes and [1-9][0-9]* levels differ"):
        certify(net, IMAGES[:8], batch_size=8)


def test_certify_refuses_logits_that_differ(net, monkeypatch):
    rounded = edited(net, "head/bias", lambda a: first(a, a.flat[0] + 1))

    def compare(dense, spiking, *args):
        return compare_executions(net, rounded, *args)

    monkeypatch.setattr(certificate, "compare_executions", compare)
    with pytest.raises(CertificateError, match="head: 8 logits differ"):
        certify(net, IMAGES[:8], batch_size=8)


# --- what deploy refuses ----------------------------------------------------------------------------------------------


def changed(variables, collection, path, change):
    flat = traverse_util.flatten_dict(variables[collection], sep="/")
    assert path in flat
    flat[path] = np.float32(change(np.array(flat[path])))
    return {**variables, collection: traverse_util.unflatten_dict(flat, sep="/")}


@pytest.mark.parametrize("neuron", ["relu", "qcfs", "sfa", "if", "lif", "plif"])
def test_other_neurons_are_refused_by_name(variables, neuron):
    with pytest.raises(ConversionError, match=f"'{neuron}' neurons cannot be converted: only 'expg' is lossless"):
        deploy(tiny_model(neuron=neuron), variables, SHAPE)


def test_models_of_others_are_refused(variables):
    with pytest.raises(ConversionError, match="'unknown' neurons"):
        deploy(nn.Dense(3), variables, SHAPE)


def test_deployed_network_is_refused(model, net):
    with pytest.raises(ConversionError, match="deployed already"):
        deploy(model.clone(execution="dense"), {"params": net.params}, SHAPE)


class TanhBlock(ConvBlock):
    """A convolution block that squashes its current."""

    @nn.compact
    def __call__(self, current, train):
        return super().__call__(current.replace(value=jnp.tanh(current.value)), train)


class DenseBlock(ConvBlock):
    """A convolution block with a layer that nobody taught to fold itself."""

    @nn.compact
    def __call__(self, current, train):
        return super().__call__(current.replace(value=nn.Dense(8, name="adapter")(current.value)), train)


def test_unknown_layer_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(ge2mst, "ConvBlock", DenseBlock)
    model = tiny_model(num_classes=6)
    with pytest.raises(
        ConversionError, match=r"does not know the layer stage_0/block_0/adapter \(it holds '(bias|ker)"
    ):
        deploy(model, random_variables(model), SHAPE)


def test_operation_that_is_no_sum_of_spikes_is_refused_by_layer(monkeypatch):
    monkeypatch.setattr(ge2mst, "ConvBlock", TanhBlock)
    model = tiny_model(num_classes=7)
    with pytest.raises(ConversionError, match=r"^stage_0/block_0: the operation 'tanh' is not a spike"):
        deploy(model, random_variables(model), SHAPE)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(
    ("collection", "path"),
    [
        ("params", "stage_1/down/synapse/kernel"),
        ("batch_stats", "stem/synapse/norm/var"),
        ("params", "neuron_head/raw"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_name(model, variables, collection, path, value):
    bad = changed(variables, collection, path, lambda a: first(a, value))
    with pytest.raises(ConversionError, match=f"^{collection}/{path} holds numbers that are not finite"):
        deploy(model, bad, SHAPE)


def test_numbers_that_fold_to_infinity_are_refused(model, variables):
    # Each is finite; their product is not.
    bad = changed(variables, "params", "stem/synapse/kernel", lambda a: a * 1e30)
    bad = changed(bad, "params", "stem/synapse/norm/scale", lambda a: a * 1e30)
    with pytest.raises(ConversionError, match=r"^stem/synapse/kernel is not finite once"):
        deploy(model, bad, SHAPE)


def test_bound_that_leaves_no_fraction_bits_is_refused_by_layer(model, variables):
    bad = changed(variables, "params", f"{CONV}/kernel", lambda a: a * 1e6)
    with pytest.raises(ConversionError, match=r"stage_0/block_0/neuron_1 can reach [0-9.e+]+, .* no fraction bits"):
        deploy(model, bad, SHAPE)


def test_threshold_that_rounds_to_zero_is_refused_by_layer(model, variables):
    bad = changed(variables, "params", "stage_0/block_0/neuron_1/raw", lambda a: np.full_like(a, -20.0))
    with pytest.raises(
        ConversionError, match=r"threshold of stage_0/block_0/neuron_1 rounds to zero at [0-9]+ fraction"
    ):
        deploy(model, bad, SHAPE)


def test_drop_of_accuracy_is_refused(small, monkeypatch):
    model, variables = small
    images = random_images(64, seed=9)
    logits = np.asarray(forward(model, variables, images)[0])
    # A bias that makes all classes as likely, or nothing could drop.
    variables = changed(variables, "params", "head/bias", lambda bias: bias - logits.mean(0))
    labels = np.argmax(logits - logits.mean(0), -1)
    assert len(set(labels.tolist())) > 3
    deploy(model, variables, SHAPE, calibration=(images, labels), max_accuracy_drop=0.02)
    monkeypatch.setattr(fixed_point, "MAX_FRACTION_BITS", 4)  # a network ruined by rounding
    with pytest.raises(ConversionError, match=r"drops from 100.00% to [0-9.]+%, more than max_accuracy_drop = 0.20%"):
        deploy(model, variables, SHAPE, calibration=(images, labels))
    coarse = deploy(model, variables, SHAPE, calibration=(images, labels), max_accuracy_drop=1.0)
    assert max(f.fraction_bits for f in coarse.formats) == 4


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"images of shape \(2, 8, 8, 3\): this network takes \[B, 8, 8, 2\]"),
        (np.zeros(SHAPE, np.uint8), "images of shape"),
        (np.zeros((2, *SHAPE), np.int32), "dtype int32: they must be uint8, or float"),
        (np.full((2, *SHAPE), 1.5, np.float32), r"in \[0, 1\]; these reach from 1.5 to 1.5"),
        (np.full((2, *SHAPE), -0.1, np.float32), r"in \[0, 1\]"),
        (np.full((2, *SHAPE), np.nan, np.float32), "finite"),
    ],
)
def test_images_of_another_shape_range_or_type_are_refused(net, images, message):
    with pytest.raises(ValueError, match=message):
        net(images)
    with pytest.raises(ValueError, match=message):
        certify(net, images)


def test_no_images_and_unknown_execution_are_refused(net):
    with pytest.raises(ValueError, match="at least one"):
        certify(net, IMAGES[:0])
    with pytest.raises(ValueError, match="unknown execution 'training': known are dense, spiking"):
        net(IMAGES[:8], execution="training")


# --- no backend can put another algorithm in place of a sum of products ----------------------------------------------


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


def test_deployed_programs_hold_no_convolution_and_only_full_precision(model, variables, net):
    def program(apply, variables):
        traced = jax.make_jaxpr(lambda v, x: apply(v, x)[0])(variables, IMAGES[:1])
        return list(equations(traced.jaxpr))

    trained = program(model.apply, variables)
    assert any(e.primitive.name == "conv_general_dilated" for e in trained)  # the search finds them where they are
    for execution in ("dense", "spiking"):
        found = program(net.executed(execution).apply, {"params": net.params})
        names = {e.primitive.name for e in found}
        assert "conv_general_dilated" not in names
        assert not any("fft" in name for name in names)
        products = [e for e in found if e.primitive.name == "dot_general"]
        assert products
        highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
        real = [e for e in products if not all(np.issubdtype(v.aval.dtype, np.integer) for v in e.invars)]
        assert all(e.params["precision"] == highest for e in real)
        assert all(v.aval.dtype == np.float32 for e in real for v in (*e.invars, *e.outvars))
