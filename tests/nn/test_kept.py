"""What a training network's backward pass keeps: bytes of levels, and gradients that do not change by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.ad_checkpoint import saved_residuals
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.nn import training
from ge2mst_jax.spiking import expg_spike_count, expg_twin
from ge2mst_jax.train import spike_rate

IMAGES = random_images(4)


def loss_of(model, variables, penalty=0):
    def loss(params):
        (logits, aux), _ = model.apply({**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits)) + (penalty * spike_rate(aux) if penalty else 0)

    return loss


@pytest.mark.parametrize("neuron", ["expg", "sfa", "lif"])
def test_gradients_are_those_of_a_network_that_keeps_floats(neuron, monkeypatch):
    model = tiny_model("2x2", neuron=neuron)
    variables = random_variables(model)
    found = jax.jit(jax.grad(loss_of(model, variables)))(variables["params"])
    monkeypatch.setattr(training, "of_levels", lambda f, signal, *more: f(signal.data, *more))
    monkeypatch.setattr(training, "expg_twin_kept", lambda *a: (expg_twin(*a), None, expg_spike_count(*a[:3])))
    expected = jax.jit(jax.grad(loss_of(model, variables)))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        ours = found
        for key in path:
            ours = ours[key.key]
        np.testing.assert_allclose(ours, leaf, rtol=2e-4, atol=2e-4 * float(jnp.abs(leaf).max()), err_msg=str(path))


@pytest.mark.parametrize("penalty", [0, 2.0])
def test_backward_pass_keeps_a_float_a_synapse_and_a_byte_a_neuron(penalty):
    """Of what is as large as a layer: the convolutions' outputs, one float each, a byte of each neuron, and what one
    attention multiplies, as floats: q, k and v. A penalty on spikes keeps nothing more."""
    model = tiny_model("2x2")
    variables = random_variables(model)
    aux = jax.eval_shape(model.apply, variables, IMAGES)[1]
    neurons = sum(len(IMAGES) * int(np.prod(r.shape)) for r in aux.values() if hasattr(r, "parts"))
    synapses = sum(
        len(IMAGES) * int(np.prod(r.out_shape)) for r in aux.values() if getattr(r, "role", "head") != "head"
    )
    kept = {}
    for array, _ in saved_residuals(loss_of(model, variables, penalty), variables["params"]):
        if array.size >= len(IMAGES) * 4 * 4 and len(array.shape) > 3 and array.shape[0] == len(IMAGES):
            kept[array.dtype.name] = kept.get(array.dtype.name, 0) + array.size
    assert kept["uint8"] == neurons
    operand = len(IMAGES) * int(np.prod(aux["stage_1/block_0/attention/neuron_q"].shape))
    assert kept["float32"] == synapses + 3 * operand
    assert len(kept) == 2
