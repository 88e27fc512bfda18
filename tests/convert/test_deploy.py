"""Deployment: the fold is the stated formula, and the deployed network the trained one."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edits import fraction_bits, neuron_records
from flax import traverse_util
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax.convert import (
    certify,
    deploy,
    fold,
    measure_drift,
)
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.convert.fixed_point import guarded_sums_fit, leaves, to_integers
from ge2mst_jax.nn import ATTENTION_RATES, MAX_GUARD_BITS

IMAGES = random_images(16)


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
    coarse = deploy(model, variables, SHAPE, current_bits=24)
    name = "stage_0/block_0/neuron_0"
    exact = np.asarray(trained[1][name].current, np.float64)
    for made, own in ((coarse, 1e-5), (net, 1e-5)):
        f = fraction_bits(made, name)
        current = np.ldexp(np.asarray(made(IMAGES[:8], capture="levels")[1][name].current, np.float64), -f)
        # 18 pixels of at most 255 and a bias, each number rounded by half a unit; the rest is float32's own.
        rounding = (18 * 255 + 1) * 2.0 ** -(f + 1)
        assert np.abs(exact - current).max() <= rounding + own
    assert np.abs(exact).max() > 100 * (18 * 255 + 1) * 2.0 ** -(fraction_bits(coarse, name) + 1)


def test_weights_have_as_many_guard_bits_as_their_sums_hold(model, variables, net):
    folded, _ = fold(model, variables, SHAPE)
    guards = {}
    for name, record in net.layers.items():
        if getattr(record, "role", "head") != "head":
            guard, f = (
                int(leaves(net.params, name)["guard"]),
                next(x.fraction_bits for x in net.formats if name in x.parts),
            )
            finer = to_integers(leaves(folded, name)["kernel"], f + guard + 1)
            assert guard == MAX_GUARD_BITS or not guarded_sums_fit(finer, guard + 1, record, 31), name
            guards[name] = guard
    assert min(guard for name, guard in guards.items() if not name.endswith("local")) >= 4


def test_deployed_network_is_the_training_network(net):
    """A level may move only where float32 leaves a tie open; a wrong fold moves a tenth and more."""
    drift, logits = measure_drift(net, IMAGES, batch_size=8)
    assert drift.images == 16
    assert drift.levels == 16 * sum(int(np.prod(r.shape)) for r in neuron_records(net.layers).values() if r.parts)
    assert drift.share <= 0.0005
    assert drift.images_equal >= 15
    assert drift.largest_logit_difference < 0.01
    np.testing.assert_array_equal(logits, forward(net.model, net.source, IMAGES)[0])


def test_drift_is_counted_as_by_hand(model, variables):
    net = deploy(model, variables, SHAPE, current_bits=24)
    drift, trained_logits = measure_drift(net, IMAGES, batch_size=8)
    expected = neuron_records(forward(model.clone(capture="levels"), variables, IMAGES)[1])
    logits, aux = net(IMAGES, capture="levels")
    differing = {n: np.asarray(r.levels) != np.asarray(aux[n].levels) for n, r in expected.items() if r.parts}
    assert drift.layers == {name: where.sum() for name, where in differing.items()}
    assert 0 < drift.levels_differing == sum(drift.layers.values())
    assert drift.images_equal == sum(not any(w[i].any() for w in differing.values()) for i in range(16))
    assert drift.largest_logit_difference == np.abs(logits - trained_logits).max()
    assert certify(net, IMAGES, batch_size=8).drift == drift
    with pytest.raises(ValueError, match="does not carry its training network"):
        measure_drift(dataclasses.replace(net, source=None), IMAGES)


def test_what_was_trained_with_rematerialisation_is_the_same_deployed(model, variables):
    one, other = (deploy(model.clone(remat=remat), variables, SHAPE) for remat in ("none", "nothing_saveable"))
    assert one.digest == other.digest


def test_what_was_trained_in_bfloat16_is_deployed_with_the_weights_that_were_multiplied():
    model = tiny_model("2x2", dtype="bfloat16")
    drift, _ = measure_drift(deploy(model, random_variables(model), SHAPE), IMAGES, batch_size=8)
    assert drift.share <= 0.0005


def test_spikes_that_attention_expects_are_measured_where_there_are_images(model, variables, net):
    images, labels = random_images(6, SHAPE), np.zeros(6, int)
    measured = deploy(model, variables, SHAPE, calibration=(images, labels), max_accuracy_drop=1.0)
    assert net.model.attention_rates == model.attention_rates == ATTENTION_RATES
    _, aux = net(images, "spiking", "levels")
    trains = {name: np.asarray(record.train) for name, record in aux.items() if hasattr(record, "train")}
    for key, rate in zip("qkv", measured.model.attention_rates, strict=True):
        found = [train for name, train in trains.items() if name.endswith(f"attention/neuron_{key}")]
        assert rate == pytest.approx(np.mean([train.sum(0).mean() for train in found]), rel=0.05)
    assert certify(measured, images).spikes_differing == 0
    assert (np.asarray(measured(images)[0]) == np.asarray(net(images)[0])).all()  # the order changes no number


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_a_first_call_inside_a_traced_program_leaves_nothing_of_it_behind(net, execution):
    fresh = dataclasses.replace(net)
    inside = jax.jit(lambda images: fresh(images, execution)[0])(IMAGES[:2])
    np.testing.assert_array_equal(inside, fresh(IMAGES[:2], execution)[0])
    np.testing.assert_array_equal(inside, net(IMAGES[:2], execution)[0])


def test_arrays_of_a_device_are_cut_outside_of_a_traced_program_too(net):
    fresh = dataclasses.replace(net, params=jax.tree.map(jnp.asarray, net.params))
    inside = jax.jit(lambda images: fresh(images)[0])(IMAGES[:2])
    np.testing.assert_array_equal(inside, fresh(IMAGES[:2])[0])


def test_numbers_of_a_network_that_has_run_cannot_be_changed_in_place(model, variables):
    net = deploy(model, variables, SHAPE)
    net(IMAGES[:2])
    with pytest.raises(ValueError, match="read-only"):
        net.params["stem"]["synapse"]["kernel"] *= -1


def test_a_copied_network_makes_its_planes_anew(net):
    logits = net(IMAGES[:2])[0]
    copied = pickle.loads(pickle.dumps(net))
    assert "_made" not in copied.__dict__
    np.testing.assert_array_equal(copied(IMAGES[:2])[0], logits)
