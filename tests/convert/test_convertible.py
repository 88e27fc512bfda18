"""What cannot be converted is refused by name, before anything is made of it."""

import contextlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from edits import CONV, first
from flax import traverse_util
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax.convert import ConversionError, deploy, fixed_point
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.models import StageSize, ge2mst
from ge2mst_jax.nn import ConvBlock


def changed(variables, collection, path, change):
    flat = traverse_util.flatten_dict(variables[collection], sep="/")
    assert path in flat
    flat[path] = np.float32(change(np.array(flat[path])))
    return {**variables, collection: traverse_util.unflatten_dict(flat, sep="/")}


@pytest.mark.parametrize("neuron", ["relu", "qcfs", "if", "lif", "plif"])
def test_other_neurons_are_refused_by_name(variables, neuron):
    says = f"'{neuron}' neurons cannot be converted: only 'expg' and 'sfa' are lossless"
    with pytest.raises(ConversionError, match=says):
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
    bad = changed(variables, "params", f"{CONV}/kernel", lambda a: a * 1e9)
    with pytest.raises(ConversionError, match=r"stage_0/block_0/neuron_1 can reach [0-9.e+]+, .* no fraction bits"):
        deploy(model, bad, SHAPE)


def test_threshold_that_rounds_to_zero_is_refused_by_layer(model, variables):
    bad = changed(variables, "params", "stage_0/block_0/neuron_1/raw", lambda a: np.full_like(a, -30.0))
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


@pytest.mark.parametrize(("after", "refused"), [(0.88, False), (0.878, True)])
def test_one_image_of_five_hundred_may_be_lost(small, monkeypatch, after, refused):
    found = iter((0.882, after))  # in floats 0.882 - 0.88 is more than 0.002
    monkeypatch.setitem(deploy.__globals__, "accuracy", lambda logits, labels: next(found))
    refusal = pytest.raises(ConversionError, match=r"drops from 88\.20%") if refused else contextlib.nullcontext()
    with refusal:
        deploy(*small, SHAPE, calibration=(random_images(2), [0, 0]))


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((8, 8, 3), {}, r"stem/synapse/kernel is \(3, 3, 2, 8\), but \(3, 3, 3, 8\) in this network on images"),
        (SHAPE, {"num_classes": 7}, r"head/bias is \(5,\), but \(7,\) in this network"),
        (SHAPE, {"stages": (StageSize("conv", 8, 2), StageSize("attention", 16, 1))}, "block_1.* is absent, but"),
    ],
)
def test_variables_of_another_network_are_refused_by_name(model, variables, shape, changes, message):
    with pytest.raises(ConversionError, match=message):
        deploy(model.clone(**changes), variables, shape)


@pytest.mark.parametrize("given", [{}, {"params": {}}, None, 3, []], ids=str)
def test_variables_that_are_none_are_refused(model, given):
    with pytest.raises(ConversionError, match=r"variables hold no '(params|batch_stats)': pass what model.init"):
        deploy(model, given, SHAPE)


@pytest.mark.parametrize(
    "shape", [(8, 8), (8, 8, 0), (8.0, 8, 2), "8x8", None, (True, 8, 2), (8, 8, 2, 1), (8, 8, 1e20)]
)
def test_image_shape_that_is_none_is_refused(model, variables, shape):
    with pytest.raises(ValueError, match=r"image_shape"):
        deploy(model, variables, shape)


@pytest.mark.parametrize("about", [[1], {"classes": object()}, {"n": float("nan")}, "digits", {1: {2}}], ids=str)
def test_what_json_cannot_hold_is_refused(model, variables, about):
    with pytest.raises(ValueError, match=r"^about is .*: it must be a dict of what JSON can hold"):
        deploy(model, variables, SHAPE, about=about)


@pytest.mark.parametrize("drop", [-0.1, 1.5, float("nan"), True, "0.1", None], ids=str)
def test_accuracy_drop_that_is_none_is_refused(model, variables, drop):
    with pytest.raises(ValueError, match=r"^max_accuracy_drop is .*: it must be a number at least 0 and at most 1"):
        deploy(model, variables, SHAPE, max_accuracy_drop=drop)


@pytest.mark.parametrize("bits", [0, 8, 25, 32, 31.5, True, "31", None], ids=str)
def test_bits_of_currents_that_are_none_are_refused(model, variables, bits):
    with pytest.raises(ValueError, match=r"^current_bits is .*: it must be 31 or 24"):
        deploy(model, variables, SHAPE, current_bits=bits)
