"""Energy conventions on hand numbers: what each charges, what it leaves out, and that it says so."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.energy import CONVENTIONS, Convention, LayerCount, SpikeCounter, energy


def counter(coded=True, images=2):
    made = SpikeCounter()
    made.images = images
    made.layers = {
        "stem": LayerCount("stem", "stem", synops=1000 if coded else 0, macs=500, coded=coded),
        "conv": LayerCount("conv", "hidden", synops=2000, macs=9999),
        "attention": LayerCount("attention", "attention", synops=300),
        "head": LayerCount("head", "head", synops=40, macs=77),
    }
    return made


@pytest.mark.parametrize(
    ("convention", "coded", "stem_pj", "rest_pj"),
    [
        # 4.6 pJ x 500 MACs x 4 steps, however the stem really ran; 0.9 pJ x (2000 + 300 + 40) synops.
        ("field", True, 9200.0, 2106.0),
        ("field", False, 9200.0, 2106.0),
        # 0.9 pJ x (2000 + 300) synops.
        ("lab", True, 0.0, 2070.0),
        ("lab", False, 0.0, 2070.0),
        # The stem as it ran: 1000 synops of bits, or 500 MACs once.
        ("exact", True, 900.0, 2106.0),
        ("exact", False, 2300.0, 2106.0),
    ],
)
def test_convention_charges_what_it_says(convention, coded, stem_pj, rest_pj):
    report = energy(counter(coded), CONVENTIONS[convention], num_steps=4)
    # Two images; a picojoule is 1e-9 mJ.
    assert report["stem_mj"] == pytest.approx(stem_pj * 1e-9 / 2, rel=1e-12)
    assert report["total_mj"] == pytest.approx((stem_pj + rest_pj) * 1e-9 / 2, rel=1e-12)
    assert report["total_mj"] == pytest.approx(sum(layer["mj"] for layer in report["layers"]), rel=1e-12)


def test_layers_are_means_an_image_and_hold_what_was_charged_alone():
    rows = {
        name: {layer["name"]: (layer["synops"], layer["macs"]) for layer in energy(counter(), made, 4)["layers"]}
        for name, made in CONVENTIONS.items()
    }
    shared = {"conv": (1000.0, 0.0), "attention": (150.0, 0.0)}
    assert rows["field"] == {"stem": (0.0, 1000.0), **shared, "head": (20.0, 0.0)}
    assert rows["lab"] == shared
    assert rows["exact"] == {"stem": (500.0, 0.0), **shared, "head": (20.0, 0.0)}
    direct = {layer["name"]: layer for layer in energy(counter(coded=False), CONVENTIONS["exact"], 4)["layers"]}
    assert (direct["stem"]["synops"], direct["stem"]["macs"]) == (0.0, 250.0)


def test_steps_are_charged_by_the_field_alone():
    for name, grows in (("field", True), ("lab", False), ("exact", False)):
        one, eight = (energy(counter(), CONVENTIONS[name], steps) for steps in (1, 8))
        assert (eight["total_mj"] > one["total_mj"]) == grows
        assert eight["stem_mj"] == pytest.approx(one["stem_mj"] * (8 if grows else 1), rel=1e-12)


def test_conventions_are_data_with_their_prices_and_what_they_leave_out():
    assert set(CONVENTIONS) == {"field", "lab", "exact"}
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
    own = Convention("own", 10.0, 1.0, "as_run", False, "head", "here")
    assert energy(counter(coded=False, images=1), own, 4)["total_mj"] == pytest.approx((5000 + 2300) * 1e-9, rel=1e-12)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images were counted"):
        energy(SpikeCounter(), CONVENTIONS["exact"], 4)


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
        expected = {"exact": exact_pj, "field": 4.6 * macs * 4, "lab": 0.0}
        for name, stem_pj in expected.items():
            assert energy(made, CONVENTIONS[name], 4)["stem_mj"] == pytest.approx(stem_pj * 1e-9, rel=1e-12), name
