"""Energy conventions on hand numbers: what each charges, what it leaves out, and that it says so."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.energy import CONVENTIONS, Convention, LayerCount, NeuronCount, SpikeCounter, energy


def counter(coded=True, images=2):
    """Spikes a neuron and image: a 2, q 0.5, k 0.25 (one step), v 1 (four steps, so 0.25 a step)."""
    made = SpikeCounter()
    made.images = images
    made.neurons = {
        "a": NeuronCount("a", 10, False, 4, 20 * images),
        "q": NeuronCount("q", 8, False, 1, 4 * images),
        "k": NeuronCount("k", 8, False, 1, 2 * images),
        "v": NeuronCount("v", 8, False, 4, 8 * images),
    }
    made.layers = {
        "stem": LayerCount("stem", "stem", ((300, ("image",)),), not coded, 1000 if coded else 0, 500),
        "conv": LayerCount("conv", "hidden", ((1200, ("a",)),), False, 2000, 9999),
        "attention": LayerCount("attention", "attention", ((80, ("k", "v")), (160, ("q",))), False, 300),
        "head": LayerCount("head", "head", ((11, ("a",)),), False, 40, 77),
    }
    return made


#: Of an image, `fr·T·FLOPs`: 2·1200; first product 80 at 4·min(0.25, 0.25), second 160·0.5; 2·11.
PADDED = {"conv": 2400.0, "attention": 160.0, "head": 22.0}


@pytest.mark.parametrize(
    ("convention", "coded", "stem_pj", "rest_pj"),
    [
        # 4.6 pJ x 300 padded MACs once, however the stem really ran; 0.9 pJ x fr·T·FLOPs.
        ("field", True, 1380.0, 0.9 * 2582),
        ("field", False, 1380.0, 0.9 * 2582),
        ("field_each_step", True, 4 * 1380.0, 0.9 * 2582),
        # 0.9 pJ x (2000 + 300) synops of two images.
        ("lab", True, 0.0, 1035.0),
        ("lab", False, 0.0, 1035.0),
        # The stem as it ran: 1000 synops of bits, or 500 MACs once; 2340 synops behind it.
        ("exact", True, 450.0, 1053.0),
        ("exact", False, 1150.0, 1053.0),
    ],
)
def test_convention_charges_what_it_says(convention, coded, stem_pj, rest_pj):
    report = energy(counter(coded), CONVENTIONS[convention], num_steps=4)
    # A picojoule is 1e-9 mJ.
    assert report["stem_mj"] == pytest.approx(stem_pj * 1e-9, rel=1e-12)
    assert report["total_mj"] == pytest.approx((stem_pj + rest_pj) * 1e-9, rel=1e-12)
    assert report["total_mj"] == pytest.approx(sum(layer["mj"] for layer in report["layers"]), rel=1e-12)


def test_layers_are_means_an_image_and_hold_what_was_charged_alone():
    rows = {
        name: {layer["name"]: (layer["synops"], layer["macs"]) for layer in energy(counter(), made, 4)["layers"]}
        for name, made in CONVENTIONS.items()
    }
    padded = {name: (synops, 0.0) for name, synops in PADDED.items()}
    present = {"conv": (1000.0, 0.0), "attention": (150.0, 0.0)}
    assert rows["field"] == {"stem": (0.0, 300.0), **padded}
    assert rows["field_each_step"] == {"stem": (0.0, 1200.0), **padded}
    assert rows["lab"] == present
    assert rows["exact"] == {"stem": (500.0, 0.0), **present, "head": (20.0, 0.0)}
    direct = {layer["name"]: layer for layer in energy(counter(coded=False), CONVENTIONS["exact"], 4)["layers"]}
    assert (direct["stem"]["synops"], direct["stem"]["macs"]) == (0.0, 250.0)


def test_stem_at_every_step_is_charged_by_its_variant_alone():
    for name, made in CONVENTIONS.items():
        one, eight = (energy(counter(), made, steps) for steps in (1, 8))
        grows = name == "field_each_step"
        assert (eight["total_mj"] > one["total_mj"]) == grows
        assert eight["stem_mj"] == pytest.approx(one["stem_mj"] * (8 if grows else 1), rel=1e-12)


def test_lower_rate_of_both_operands_and_the_longer_ones_steps():
    made = counter()
    made.neurons["v"].spikes = 2 * made.images  # 0.0625 a step: four steps of that meet k
    assert made.spikes_together(("k", "v")) == 0.25
    made.neurons["k"].spikes = 0
    assert made.spikes_together(("k", "v")) == 0
    assert made.spikes_together(("v",)) == 0.25


@pytest.mark.parametrize(
    ("convention", "shape", "channels", "stride", "macs"),
    [
        # 4x4 positions of 9 taps; without the border's zeros 100 of the 144.
        ("field", (4, 4, 2), 5, 1, 144 * 2 * 5),
        ("exact", (4, 4, 2), 5, 1, 100 * 2 * 5),
    ],
)
def test_padding_is_multiplied_by_the_field_alone(convention, shape, channels, stride, macs):
    model = tiny_model(stages=(("conv", channels, 0),), input_code="direct")
    made = SpikeCounter()
    made.add(jax.jit(model.apply)(random_variables(model, shape), jnp.asarray(random_images(1, shape)))[1])
    assert energy(made, CONVENTIONS[convention], 4)["stem_mj"] == pytest.approx(4.6e-9 * macs, rel=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_real_numbers_are_charged_multiply_accumulates(convention):
    """A network of `relu` sends no spike: every layer costs its dense pass, attention included."""
    model = tiny_model(neuron="relu", stages=(("attention", 16, 1),), input_code="1x8")
    made = SpikeCounter()
    made.add(jax.jit(model.apply)(random_variables(model), jnp.asarray(random_images(2)))[1])
    found = energy(made, CONVENTIONS[convention], 4)
    assert made.spikes_per_neuron == 0
    for layer in found["layers"]:
        assert (layer["synops"] > 0) == (layer["role"] == "stem" and convention == "exact"), layer
        assert layer["mj"] == pytest.approx(1e-9 * (4.6 * layer["macs"] + 0.9 * layer["synops"]), rel=1e-12)
    attention = next(layer for layer in found["layers"] if layer["role"] == "attention")
    # 8x8 tokens of 16 channels, heads of width 8, groups of 4 tokens: A = q kᵀ and A·v, 4 products a token and channel.
    assert attention["macs"] == 2 * 8 * 8 * 16 * 4


def test_conventions_are_data_with_their_prices_and_what_they_leave_out():
    assert set(CONVENTIONS) == {"field", "field_each_step", "lab", "exact"}
    for name, made in CONVENTIONS.items():
        assert (made.name, made.mac_pj, made.ac_pj) == (name, 4.6, 0.9)
        assert made.source
        report = json.loads(json.dumps(energy(counter(), made, 4)))
        assert report["convention"]["leaves_out"] == made.leaves_out
        assert report["convention"]["ac_pj"] == 0.9
    assert all("memory" in made.leaves_out for made in CONVENTIONS.values())
    assert CONVENTIONS["lab"].leaves_out.startswith("stem, head")
    assert not CONVENTIONS["exact"].leaves_out.startswith("stem")


def test_convention_of_ones_own_is_used_as_it_is():
    own = Convention("own", 10.0, 1.0, "present", "as_run", False, "head", "here")
    assert energy(counter(coded=False, images=1), own, 4)["total_mj"] == pytest.approx((5000 + 2300) * 1e-9, rel=1e-12)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images were counted"):
        energy(SpikeCounter(), CONVENTIONS["exact"], 4)
    with pytest.raises(ValueError, match="no images were counted"):
        _ = SpikeCounter().spikes_per_neuron


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, 1e20, None])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(ValueError, match=r"num_steps is .*: it must be a whole number, 1 to 255"):
        energy(counter(), CONVENTIONS["field"], steps)


def test_stem_of_a_network_is_charged_as_its_input_code_runs():
    """Bits of every pixel as synops, or one pass of multiply-accumulates: 4x4 positions, 2 -> 4 channels, 3x3."""
    images = random_images(3, (4, 4, 2))
    along = np.array([2, 3, 3, 2])
    bits = np.unpackbits(images[..., None], axis=-1).sum((0, 3, 4))
    synops, macs = 4 * int((bits * np.outer(along, along)).sum()), 4 * 2 * 100
    for input_code, exact_pj in (("1x8", 0.9 * synops / 3), ("direct", 4.6 * macs)):
        model = tiny_model(stages=(("conv", 4, 0),), input_code=input_code)
        aux = jax.jit(model.apply)(random_variables(model, (4, 4, 2)), jnp.asarray(images))[1]
        made = SpikeCounter()
        made.add(aux)
        field = 4.6 * 4 * 2 * 4 * 4 * 9
        expected = {"exact": exact_pj, "field": field, "field_each_step": 4 * field, "lab": 0.0}
        for name, stem_pj in expected.items():
            assert energy(made, CONVENTIONS[name], 4)["stem_mj"] == pytest.approx(stem_pj * 1e-9, rel=1e-12), name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mac_pj", float("nan"), "mac_pj is nan: it must be a number at least 0"),
        ("mac_pj", -1, "mac_pj is -1"),
        ("ac_pj", True, "ac_pj is True"),
        ("ac_pj", float("inf"), "ac_pj is inf"),
        ("connections", "all", "unknown connections 'all': known are present, padded"),
        ("stem", "none", "unknown stem 'none': known are macs, macs_each_step, as_run, left_out"),
        ("head", 1, "head is 1: it must be True or False"),
    ],
)
def test_convention_that_is_none_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONVENTIONS["field"], **{field: value})
