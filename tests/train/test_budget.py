"""The spike budget's controller: its signs, its rest, and a network that lands on its budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax import create_model
from ge2mst_jax.convert import deploy
from ge2mst_jax.data import load_digits
from ge2mst_jax.energy import SpikeCounter
from ge2mst_jax.train import BudgetState, TrainConfig, calibrate, init_budget, penalty, spike_rate, steer, train


def test_penalty_pulls_from_both_sides_and_rests_on_the_budget():
    def after(rate):
        return float(penalty(steer(init_budget(), jnp.float32(rate), 0.3), 0.3, 5.0))

    assert after(0.6) > 0
    assert after(0.15) < 0
    assert abs(after(0.3)) < 1e-5
    assert float(penalty(init_budget(), 0.3, 5.0)) == 0


def test_integral_grows_while_the_error_lasts_but_never_winds_up():
    state = init_budget()
    for _ in range(10):
        state = steer(state, jnp.float32(30.0), 0.3, pace=0.01)
    np.testing.assert_allclose(state.integral, 10 * 0.01 * 0.2, rtol=1e-5)
    for _ in range(20):
        state = steer(state._replace(rate=jnp.float32(0.0)), jnp.float32(0.0), 0.3, pace=0.01)
    np.testing.assert_allclose(state.integral, -10 * 0.01 * 0.2, rtol=1e-4)


def test_calibration_steers_by_what_the_evaluated_network_spends():
    state = BudgetState(jnp.float32(0.3), jnp.float32(0.0), jnp.float32(1.0))
    assert float(penalty(state, 0.3, 5.0)) == pytest.approx(0, abs=1e-5)
    for _ in range(60):
        state = calibrate(state, jnp.float32(0.36), jnp.float32(0.3))
    assert float(penalty(state, 0.3, 5.0)) == pytest.approx(5 * 0.2, rel=1e-4)


def test_rate_counts_every_neuron_but_the_image(key):
    model = create_model("ge2mst_nano", stages=(("conv", 8, 1),), input_code="1x8")
    images = jnp.full((2, 4, 4, 1), 255, jnp.uint8)
    _, aux = model.apply(model.init(key, images), images)
    counter = SpikeCounter()
    counter.add(aux)
    assert float(spike_rate(aux)) == pytest.approx(counter.spikes_per_neuron, rel=1e-6)


def test_gradient_of_the_rate_moves_weights(key):
    model = create_model("ge2mst_nano", stages=(("conv", 8, 1),))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8))
    variables = jax.jit(model.init)(key, images)

    @jax.jit
    def rate(params):
        # As in training: currents that no statistics normalise are saturated, and then nothing moves them.
        (_, aux), _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return spike_rate(aux)

    gradient = jax.jit(jax.grad(rate))(variables["params"])
    moved = jax.tree.map(lambda p, g: p - 0.05 * g / (jnp.linalg.norm(g) + 1e-9), variables["params"], gradient)
    assert float(rate(moved)) < float(rate(variables["params"]))


@pytest.mark.slow
def test_trained_network_lands_on_its_budget(tmp_path):
    data = load_digits()
    trained = train(TrainConfig(spike_budget=0.3), tmp_path)
    net = deploy(
        trained.setup.model, trained.state.ema, data.image_shape, (data.train_images, data.train_labels), 0.005
    )
    counter = SpikeCounter()
    counter.add(net(jnp.asarray(data.test_images))[1])
    assert counter.spikes_per_neuron == pytest.approx(0.3, rel=0.05)
