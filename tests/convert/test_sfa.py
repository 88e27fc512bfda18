"""SFA is ExpG-IF with a threshold of 1 that nothing learns: deployed it is as exact."""

import jax
import numpy as np
import pytest
from edits import neuron_records
from flax import traverse_util
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.convert import certify, deploy, deployed_shapes, fold, load_net, save_net
from ge2mst_jax.energy import CONVENTIONS, SpikeCounter, audit, energy

SHAPE = (4, 4, 2)
IMAGES = random_images(8, SHAPE)


@pytest.fixture(scope="module")
def trained():
    model = tiny_model("4x1", neuron="sfa", qk_code="2x1", stages=(("attention", 16, 1),))
    return model, random_variables(model, SHAPE)


@pytest.fixture(scope="module")
def net(trained):
    return deploy(*trained, SHAPE)


def test_threshold_of_one_is_folded_in_the_units_of_its_current(trained):
    folded = traverse_util.flatten_dict(fold(*trained, SHAPE)[0], sep="/")
    thresholds = {name: array for name, array in folded.items() if name.endswith("/threshold")}
    # Attention counts in units of 2^-p·(1/L_q)·(1/L_k)·(1/L_v): a value is n/L. 4 tokens of width 8: p = log2(32) - 4.
    out = thresholds.pop("stage_0/block_0/attention/neuron_out/threshold")
    np.testing.assert_allclose(out, np.full(16, 2 * 2 * 2 * 4.0), rtol=1e-6)
    assert len(thresholds) == 8 and all(np.shape(a) == () and a == 1 for a in thresholds.values())
    head = trained[1]["params"]["head"]["kernel"]
    np.testing.assert_allclose(folded["head/kernel"], head / 4, rtol=1e-6)


def test_both_executions_are_equal_the_reference_and_what_was_trained(net):
    made = certify(net, IMAGES, batch_size=8, reference=3)
    assert (made.spikes_differing, made.levels_differing, made.logits_differing) == (0, 0, 0)
    assert made.drift.share <= 0.005
    for name, record in neuron_records(net(IMAGES, capture="levels")[1]).items():
        assert 0.02 < np.mean(np.asarray(record.levels) > 0) < 0.98 or name == "stem/image", name


def test_shapes_are_known_without_a_network(trained, net):
    shapes = jax.tree.map(lambda leaf: leaf.shape, deployed_shapes(trained[0], SHAPE))
    assert shapes == jax.tree.map(np.shape, net.params)


def test_costs_are_counted_and_every_product_audited(net):
    audit(net).check()
    dense, spiking = SpikeCounter(), SpikeCounter()
    dense.add(net(IMAGES, "dense")[1])
    spiking.add(net(IMAGES, "spiking")[1])
    assert (dense.layers, dense.neurons) == (spiking.layers, spiking.neurons)
    assert energy(spiking, CONVENTIONS["exact"], net.model.num_steps)["total_mj"] > 0


def test_it_comes_back_from_the_disk(net, tmp_path):
    save_net(tmp_path / "net", net, "ge2mst_nano")
    loaded = load_net(tmp_path / "net")
    assert (loaded, loaded.model.neuron) == (net, "sfa")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, net.params))
