"""The certificate: what it proves on random networks, what it refuses, and what conversion refuses by name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edits import CONV, edited, first, neuron_records
from flax import traverse_util
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax.convert import (
    CertificateError,
    certificate,
    certify,
    check_network,
    check_reference,
    compare_executions,
    deploy,
    digest_of,
)
from ge2mst_jax.grouping import Scale
from ge2mst_jax.models import create_model, model_fields
from ge2mst_jax.nn import planes
from ge2mst_jax.spiking import LIFSettings

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


# --- what it proves ---------------------------------------------------------------------------------------------------


ATTENTION = {"stages": (("attention", 16, 1),), "input_code": "direct"}


@pytest.mark.parametrize(
    ("code", "changes", "shape"),
    [
        ("1x4", {}, (4, 4, 2)),
        ("2x3/1", {"qk_code": "1x2"}, (4, 4, 2)),
        pytest.param("1x2", {"qk_code": "2x2", "scales": ("block4",)}, (4, 4, 2), marks=pytest.mark.slow),
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
    codes = [{layer.code for layer in made.layers if (layer.name[-2:] in ("_q", "_k")) == is_qk} for is_qk in (0, 1)]
    assert codes == [{code}, {changes.get("qk_code", "1x1")}]
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


@pytest.mark.parametrize("current_bits", [31, 24])
def test_every_current_is_an_integer_inside_its_bound(model, variables, current_bits):
    net = deploy(model, variables, SHAPE, current_bits=current_bits)
    aux = net(IMAGES[:8], capture="levels")[1]
    for name, record in neuron_records(aux).items():
        if name == "stem/image":
            continue
        assert record.current.dtype == np.int32
        current = np.asarray(record.current, np.int64)
        made = next(f for f in net.formats if name in f.readers)
        assert isinstance(made.bound, int)
        assert np.abs(current).max() + np.max(net_threshold(net, name)) // 2 <= made.bound < 2**current_bits
        assert made.bound >= 2 ** (current_bits - 2)  # no bit is given away


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


def test_digest_is_that_of_the_numbers_and_of_the_definition(model, variables, net):
    assert deploy(model, variables, SHAPE).digest == net.digest
    assert digest_of(net.model, net.params, net.formats, net.image_shape) == net.digest
    assert digest_of(net.model, net.params, net.formats, (8, 8, 3)) != net.digest
    assert digest_of(net.model, net.params, net.formats[::-1], net.image_shape) != net.digest
    for change in ({"scales": (Scale("grid", 2), Scale("block", 2))}, {"stem_stride": 2}, {"input_code": "direct"}):
        changed = dataclasses.replace(net, model=net.model.clone(**change))
        assert digest_of(changed.model, net.params, net.formats, net.image_shape) != net.digest
        with pytest.raises(CertificateError, match=r"definition was changed|formats are not those|stem/synapse"):
            certify(changed, IMAGES[:8])


def test_network_of_before_the_settings_of_neurons_that_it_has_not_is_the_same(net):
    """What was written before there were these fields says nothing of them: it comes back with their defaults."""
    fields = {name: value for name, value in model_fields(net.model).items() if name not in ("lif", "rate_steps")}
    for model in (create_model("ge2mst_nano", **fields), net.model.clone(lif=LIFSettings(tau=4.0))):
        assert digest_of(model, net.params, net.formats, net.image_shape) == net.digest


def test_networks_are_equal_if_their_definitions_and_numbers_are(model, variables, net, other):
    again = deploy(model, variables, SHAPE)
    assert net == again
    assert hash(net) == hash(again)
    assert net != other
    assert net != dataclasses.replace(net, image_shape=(8, 8, 3))
    assert net != "net"
    assert len({net, again, other}) == 2


def test_definition_that_the_arrays_do_not_fit_is_refused(net):
    with pytest.raises(CertificateError, match="the arrays are not those of the network's definition"):
        check_network(dataclasses.replace(net, model=net.model.clone(stem_kernel=1)))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, 1e20, None, "8"], ids=str)
def test_batch_size_that_is_none_is_refused(net, size):
    with pytest.raises(ValueError, match=r"^batch_size is .*: it must be a whole number, 1 to"):
        certify(net, IMAGES[:8], batch_size=size)


LABELS = np.zeros(8, np.int32)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:7], r"labels of shape \(7,\) and dtype int32: they must be 8 whole numbers, one an image"),
        (LABELS[:, None], r"labels of shape \(8, 1\)"),
        (np.eye(8, 5), r"labels of shape \(8, 5\)"),
        (np.float32(LABELS), "and dtype float32: they must be 8 whole numbers"),
        (LABELS > 0, "and dtype bool"),
        (["a"] * 8, "dtype <U1"),
        (3, r"labels of shape \(\)"),
        (LABELS - np.arange(8), "label -1 of image 1 is out of range: there are 5 classes, 0 to 4"),
        (LABELS + np.arange(8), "label 5 of image 5 is out of range: there are 5 classes, 0 to 4"),
    ],
)
def test_labels_that_are_none_are_refused(small, net, labels, message):
    with pytest.raises(ValueError, match=message):
        certify(net, IMAGES[:8], labels)
    with pytest.raises(ValueError, match=message):
        deploy(*small, SHAPE, calibration=(IMAGES[:8], labels))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:0], "no images: a certificate needs at least one"),
        (IMAGES[0], r"images of shape \(8, 8, 2\): this network takes \[B, 8, 8, 2\]"),
        (IMAGES[:8].transpose(0, 3, 1, 2), r"images of shape \(8, 2, 8, 8\)"),
        (IMAGES[:8].astype(np.int32), "images of dtype int32: they must be uint8, or float"),
        (IMAGES[:8].astype(np.float32), "float images must be finite and in"),
        (IMAGES[:8].tolist(), "images are a list: they must be an array"),
        (None, "images are a NoneType: they must be an array"),
    ],
)
def test_images_that_are_none_are_refused(net, images, message):
    with pytest.raises(ValueError, match=message):
        certify(net, images)
    with pytest.raises(ValueError, match=message):
        compare_executions(net, net, images)
    if images is not None and len(images):
        with pytest.raises(ValueError, match=message):
            net(images)


def test_float_images_out_of_range_give_nan_where_jit_hides_them(net):
    images = np.float32(IMAGES[:2]) / 255
    images[1, 0, 0, 0] = 3
    for execution in ("dense", "spiking"):
        logits = jax.jit(lambda x, e=execution: net(x, execution=e)[0])(images)
        assert np.isfinite(logits[0]).all()
        assert np.isnan(logits[1]).all()


def test_certificate_of_a_network_that_never_fires_says_so(small, net):
    assert certify(net, IMAGES[:8]).spikes_fired > 0
    model, variables = small
    silent = jax.tree.map(np.zeros_like, variables)  # all gains and biases 0: no current ever arrives
    silent["batch_stats"] = jax.tree.map(np.ones_like, silent["batch_stats"])
    with pytest.warns(UserWarning, match="not one neuron fired on 8 images: the executions are equal, and say nothing"):
        made = certify(deploy(model, silent, SHAPE), IMAGES[:8])
    assert made.spikes_fired == 0
    assert made.layers[0].spikes_fired > 0  # of the image


# --- what check_network finds -----------------------------------------------------------------------------------------

THRESHOLD = "stage_1/block_0/feed_forward/neuron_down"


def test_sound_network_passes(net):
    check_network(net)


def test_array_that_holds_no_integers_is_found(net):
    bad = edited(net, f"{CONV}/kernel", lambda a: a.astype(np.float32))
    with pytest.raises(
        CertificateError, match=f"^{CONV}: kernel is of dtype float32: a deployed network holds integers, int32"
    ):
        check_network(bad)


def test_number_moved_by_one_is_found_by_the_digest(net):
    bad = edited(net, f"{CONV}/kernel", lambda a: first(a, a.flat[0] - np.sign(a.flat[0])))
    with pytest.raises(CertificateError, match="digest"):
        certify(bad, IMAGES[:8])


@pytest.mark.parametrize("change", [lambda a: a + 1, lambda a: 0 * a, lambda a: -a], ids=["odd", "zero", "negative"])
def test_threshold_that_is_not_positive_and_even_is_found(net, change):
    bad = edited(net, f"{THRESHOLD}/threshold", lambda a: np.int32(change(a)))
    with pytest.raises(CertificateError, match=f"{THRESHOLD}: a threshold is not positive and even"):
        check_network(bad)


def test_counts_shifted_by_another_format_are_found(net):
    name = "stage_1/block_0/attention/attention"
    bad = edited(net, f"{name}/shift", lambda a: np.int32(a + 1))
    with pytest.raises(CertificateError, match=rf"{name}: its counts are shifted by [0-9]+, but its current has f"):
        check_network(bad)


def test_current_out_of_bounds_is_found(net):
    bad = edited(net, f"{CONV}/bias", lambda a: first(a, np.int32(2**31 - 1)))
    with pytest.raises(CertificateError, match=r"stage_0/block_0/neuron_1: its current .* not below 2\^31$"):
        check_network(bad)


@pytest.mark.parametrize("guard", [-1, 8])
def test_guard_bits_that_no_word_holds_are_found(net, guard):
    bad = edited(net, f"{CONV}/guard", lambda a: np.int32(guard))
    with pytest.raises(CertificateError, match=f"{CONV}: its sums, with {guard} guard bits, leave the words"):
        check_network(bad)


def test_weights_whose_sums_leave_their_words_are_found(model, variables):
    # What is rounded is the same as before: the words of the sum are what these weights leave.
    net = deploy(model, variables, SHAPE, current_bits=24)
    bad = edited(net, f"{CONV}/kernel", lambda a: a << np.int32(4))
    bad = edited(bad, f"{CONV}/guard", lambda a: np.int32(a + 4))
    with pytest.raises(
        CertificateError, match=rf"{CONV}: its sums, with \d guard bits, leave the words that hold them"
    ):
        check_network(bad)


def test_edited_formats_are_found(net):
    with pytest.raises(CertificateError, match="formats"):
        check_network(dataclasses.replace(net, formats=net.formats[:-1]))
    finer = tuple(dataclasses.replace(f, fraction_bits=f.fraction_bits + 1) for f in net.formats)
    with pytest.raises(CertificateError, match=r"shifted|digest"):
        check_network(dataclasses.replace(net, formats=finer))
    looser = tuple(dataclasses.replace(f, bound=f.bound * 2) for f in net.formats)
    with pytest.raises(CertificateError, match="digest"):
        check_network(dataclasses.replace(net, formats=looser))


# --- executions that differ -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(net):
    """The same network, but for one threshold."""
    return edited(net, f"{THRESHOLD}/threshold", lambda a: np.int32(2 * a))


def test_threshold_changed_in_one_execution_alone_is_seen(net, other):
    same = compare_executions(net, net, IMAGES[:8], batch_size=8)
    assert not any(spikes or levels for spikes, levels, _ in same[0].values())
    assert same[1] == 0
    totals, logits, (dense, spiking) = compare_executions(net, other, IMAGES, batch_size=8)
    before, after = LAYERS[: LAYERS.index(THRESHOLD)], LAYERS[LAYERS.index(THRESHOLD) :]
    assert set(totals) == set(LAYERS)
    assert all(totals[name][:2] == [0, 0] for name in before)
    assert all(min(totals[name]) > 0 for name in after)
    assert logits == np.sum(dense != spiking) > 0


def test_differences_are_counted_as_by_hand(small):
    net, layer = deploy(*small, SHAPE), "stage_0/block_0/neuron_1"
    other = edited(net, f"{layer}/threshold", lambda a: np.int32(2 * a))
    totals, _, _ = compare_executions(net, other, IMAGES[:8], batch_size=8)
    expected = net(IMAGES[:8], capture="levels")[1][layer]
    found = other(IMAGES[:8], execution="spiking", capture="levels")[1][layer]
    trains = np.asarray(expected.code.encode(expected.levels)) != np.asarray(found.train)
    levels = np.asarray(expected.levels) != np.asarray(found.levels)
    assert totals[layer] == [trains.sum(), levels.sum(), np.asarray(found.train).sum()]
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


# --- the reference ----------------------------------------------------------------------------------------------------


def test_certificate_is_held_against_the_reference(net):
    assert certify(net, IMAGES[:8], batch_size=8, reference=3).reference_images == 3
    with pytest.raises(ValueError, match="reference is 9: it must be a whole number, 0 to 8"):
        certify(net, IMAGES[:8], reference=9)


def test_fault_that_both_executions_share_is_found_by_the_reference_alone(monkeypatch):
    """Weights without their lowest bit: both executions lose it, and are equal."""
    model = tiny_model(num_classes=11)  # no other test has compiled it
    net, cut = deploy(model, random_variables(model), SHAPE), planes.cut
    monkeypatch.setattr(planes, "cut", lambda weights, *counts: cut(2 * (weights // 2), *counts))
    totals, logits, _ = compare_executions(net, net, IMAGES[:4], batch_size=4)
    assert logits == 0
    assert not any(spikes or levels for spikes, levels, _ in totals.values())
    for execution in ("dense", "spiking"):
        with pytest.raises(CertificateError, match="are not the reference's on image"):
            check_reference(net, IMAGES[:4], (execution,))
