"""QCFS run as integrate-and-fire: exact where currents are constant, lossy elsewhere, counted spike by spike."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.convert import rate_coded
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.energy import CONVENTIONS, SpikeCounter, energy
from ge2mst_jax.nn import NeuronRecord

SHAPE = (4, 4, 2)
IMAGES = random_images(16, SHAPE)
FIRST = "stage_0/block_0/neuron_0"


def normalised(model, variables):
    """Variables with the statistics of `IMAGES`, as at the end of a training."""
    _, made = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    stats = jax.tree.map(lambda new, old: 10 * new - 9 * old, made["batch_stats"], variables["batch_stats"])
    return {**variables, "batch_stats": stats}


@pytest.fixture(scope="module")
def trained():
    """One convolution block of seven levels: its second neuron layer is the first whose currents are not constant."""
    model = tiny_model("7x1", neuron="qcfs", stages=(("conv", 8, 1),), capture="levels")
    return model, normalised(model, random_variables(model, SHAPE))


def test_first_layer_fires_the_twins_levels_and_the_others_do_not(trained):
    model, variables = trained
    (_, twin), (_, fired) = (forward(m, variables, IMAGES) for m in (model, rate_coded(model, 7)))
    assert len(np.unique(twin[FIRST].levels)) > 4
    np.testing.assert_array_equal(fired[FIRST].train.sum(0), twin[FIRST].levels)
    np.testing.assert_array_equal(fired[FIRST].spikes, twin[FIRST].spikes)
    later = "stage_0/block_0/neuron_1"
    differ = np.mean(fired[later].train.sum(0) != np.asarray(twin[later].levels))
    assert 0 < differ < 0.5


def test_a_step_is_the_network_on_spikes_worth_all_levels(trained):
    """The second layer's current at a step, from the first one's spikes, in numpy; and the logits, from the last's."""
    model, variables = trained
    logits, aux = jax.device_get(forward(rate_coded(model, 5), variables, IMAGES))
    variables = jax.device_get(variables)
    params, stats = (variables[key]["stage_0"]["block_0"]["conv_0"] for key in ("params", "batch_stats"))
    spikes = np.pad(np.asarray(aux[FIRST].train, np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    sums = 7 * sum(spikes[:, :, a : a + 4, b : b + 4] @ params["kernel"][a, b] for a, b in np.ndindex(3, 3))
    gain = params["norm"]["scale"] / np.sqrt(stats["norm"]["var"] + 1e-5)
    wanted = (sums - stats["norm"]["mean"]) * gain + params["norm"]["bias"]
    np.testing.assert_allclose(aux["stage_0/block_0/neuron_1"].current, wanted, rtol=1e-4, atol=1e-4)
    largest = 7 * np.log1p(np.exp(variables["params"]["neuron_head"]["raw"]))
    head, rate = variables["params"]["head"], np.asarray(aux["neuron_head"].train).mean((0, 2, 3))
    np.testing.assert_allclose(logits, largest * rate @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)


def test_error_falls_with_steps_to_that_of_the_twins_rounding(trained):
    model, variables = trained
    twin, _ = forward(model, variables, IMAGES)
    errors = [float(jnp.abs(forward(rate_coded(model, t), variables, IMAGES)[0] - twin).mean()) for t in (1, 2, 4, 32)]
    assert all(error > 1.5 * after > 0 for error, after in itertools.pairwise(errors))


def test_steps_need_no_levels_and_are_those_of_every_layer(trained):
    model, variables = trained
    run = rate_coded(model, 3)
    logits, aux = forward(run, variables, IMAGES)
    assert logits.shape == (16, 5) and np.isfinite(logits).all() and run.num_steps == 3
    steps = {name: record.steps for name, record in aux.items() if isinstance(record, NeuronRecord)}
    assert steps.pop("stem/image") == 8 and set(steps.values()) == {3}
    counter = SpikeCounter()
    counter.add(aux)
    exact = energy(counter, CONVENTIONS["exact"], run.num_steps)
    synops = {layer["name"]: layer["synops"] for layer in exact["layers"]}
    assert exact["total_mj"] == pytest.approx(0.9e-9 * sum(synops.values()))
    assert synops["head"] == 5 * np.asarray(aux["neuron_head"].train).sum() / 16
    per_neuron = [np.asarray(aux[name].train).sum(0).mean() for name in steps]  # of layers of one size
    assert counter.spikes_per_neuron == pytest.approx(np.mean(per_neuron)) and min(per_neuron) > 0


@pytest.mark.parametrize("steps", [0, -1, 256, 2.0, True, "4", None], ids=str)
def test_steps_that_are_none_are_refused(trained, steps):
    with pytest.raises(ValueError, match=r"^steps is .*: it must be a whole number, 1 to 255$"):
        rate_coded(trained[0], steps)


@pytest.mark.parametrize("neuron", ["expg", "sfa", "relu", "if", "lif", "plif"])
def test_other_neurons_are_refused_in_one_line(neuron):
    with pytest.raises(ValueError, match=f"^rate_steps: only qcfs neurons .* can be rate-coded, not {neuron}") as error:
        rate_coded(tiny_model(neuron=neuron), 4)
    assert "\n" not in str(error.value)
