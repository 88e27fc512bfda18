"""The train step: schedule, averages, accumulation, types, rematerialisation, drop path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images, tiny_model

from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.train import TrainConfig, init_state, learning_rate, make_optimizer, set_up, train_step
from ge2mst_jax.train.step import average, decayed, gradients_of

SHAPE, EXAMPLES = (4, 4, 2), 64
IMAGES = random_images(8, SHAPE)
LABELS = np.arange(8, dtype=np.int32) % 5
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def config_of(**changes):
    return TrainConfig(**(dict(batch_size=8, epochs=2.0, warmup_epochs=0.5, augment=AugmentConfig()) | changes))


def model_of(**changes):
    return tiny_model("2x1", **({"stages": (("attention", 16, 1),)} | changes))


@functools.cache
def first_state(config):
    """Made in one program: operation by operation it takes fifteen seconds."""
    return jax.jit(
        lambda seed: init_state(model_of(), make_optimizer(config, EXAMPLES), SHAPE, seed),
        compiler_options=FAST_COMPILE,
    )(0)


def gradients(config, model=None, images=IMAGES, labels=LABELS, batch_stats=None, state=None):
    """Of a batch: gradients, BatchNorm statistics, metrics."""
    state, model = state or first_state(config_of()), model or model_of()
    state = state if batch_stats is None else state.replace(batch_stats=batch_stats)
    call = jax.jit(
        lambda state, x, y, key: gradients_of(state, x, y, None, key, model, config), compiler_options=FAST_COMPILE
    )
    found, (stats, metrics) = call(state, images, jax.nn.one_hot(labels, 5), jax.random.key(3))
    return found, stats, metrics


def distance(a, b):
    """Between two trees, relative to the second's length."""
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b)]
    return np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])


def test_rate_warms_up_to_its_peak_and_ends_at_its_share():
    config = config_of(base_learning_rate=0.32, final_learning_rate=0.01)  # peak 0.01, 16 steps, 4 of warm-up
    rate = learning_rate(config, EXAMPLES)
    np.testing.assert_allclose([rate(0), rate(2), rate(4), rate(16)], [0, 0.005, 0.01, 1e-4], rtol=1e-6, atol=1e-12)
    assert learning_rate(config_of(warmup_epochs=0.0), EXAMPLES)(0) == pytest.approx(config_of().learning_rate)


def test_kernels_alone_are_decayed():
    mask = decayed(first_state(config_of()).params)
    flat = {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_flatten_with_path(mask)[0]}
    assert {name.rsplit("'", 2)[-2] for name, value in flat.items() if value} == {"kernel"}
    assert {name.rsplit("'", 2)[-2] for name, value in flat.items() if not value} == {"scale", "bias", "raw"}


def test_average_follows_quickly_first_and_slowly_later():
    old, new = {"a": jnp.zeros(2)}, {"a": jnp.ones(2)}
    np.testing.assert_allclose(average(old, new, 0, 0.99)["a"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(average(old, new, 10**6, 0.99)["a"], 0.01, rtol=1e-4)


def test_accumulated_gradient_is_the_mean_of_its_parts():
    found, stats, metrics = gradients(config_of(accumulate=2))
    even, between, first = gradients(config_of(), images=IMAGES[::2], labels=LABELS[::2])
    odd, last, second = gradients(config_of(), images=IMAGES[1::2], labels=LABELS[1::2], batch_stats=between)
    assert distance(found, jax.tree.map(lambda a, b: (a + b) / 2, even, odd)) < 1e-5
    assert distance(stats, last) < 1e-6  # one part's after the other's
    assert float(metrics["loss"]) == pytest.approx((float(first["loss"]) + float(second["loss"])) / 2, rel=1e-5)


@pytest.mark.slow
def test_rematerialised_gradient_is_the_gradient():
    found, _, _ = gradients(config_of(), model_of(remat="nothing_saveable"))
    assert distance(found, gradients(config_of())[0]) < 1e-5


@pytest.mark.slow
def test_bfloat16_operands_give_float32_gradients_near_those_of_float32():
    state = init_state(model_of(neuron="relu"), make_optimizer(config_of(), EXAMPLES), SHAPE, 0)
    # Without levels, of which a rounded weight would flip some: then the gradients of so small a batch are others.
    found, _, metrics = gradients(config_of(), model_of(dtype="bfloat16", neuron="relu"), state=state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    exact, _, exactly = gradients(config_of(), model_of(neuron="relu"), state=state)
    assert float(metrics["loss"]) == pytest.approx(float(exactly["loss"]), rel=0.02)
    assert 0 < distance(found, exact) < 0.1


@pytest.mark.slow
def test_drop_path_drops_in_training_alone():
    model = model_of(drop_path=0.5, stages=(("attention", 16, 2),))
    variables = model.init(jax.random.key(0), IMAGES)
    plain = model_of(stages=(("attention", 16, 2),))
    np.testing.assert_array_equal(model.apply(variables, IMAGES)[0], plain.apply(variables, IMAGES)[0])
    call = jax.jit(
        lambda key: model.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0][0]
    )
    one, same, other = (call(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)


def test_step_learns_a_batch_by_heart():
    config = config_of(epochs=10.0, base_learning_rate=0.2, label_smoothing=0.0, spike_budget=0.4)
    model, optimizer = model_of(), make_optimizer(config, EXAMPLES)
    step = jax.jit(
        functools.partial(
            train_step, model=model, optimizer=optimizer, schedule=learning_rate(config, EXAMPLES), config=config
        ),
        compiler_options=FAST_COMPILE,
    )
    state, batch, losses = first_state(config), {"image": IMAGES, "label": LABELS}, []
    for _ in range(40):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    assert int(state.step) == 40
    assert set(metrics) == {
        "loss", "accuracy", "spikes_per_neuron", "gradient_norm", "learning_rate", "penalty",
    }  # fmt: skip
    assert float(state.budget.rate) > 0


def compiled_step(neuron, code, side=8, batch=4, **changes):
    config = TrainConfig(
        data="digits", neuron=neuron, code=code, batch_size=batch, mesh_data=1, augment=AugmentConfig(), **changes
    )
    setup = set_up(config, (side, side, 3), 10, 1000)
    return setup.step.lower(setup.abstract_state, setup.abstract_batch(), jax.random.key(0)).compile()


@pytest.mark.slow
def test_cost_of_the_trainers_step_does_not_depend_on_the_steps_of_time():
    costs = set()
    for code in ("1x1", "2x2", "4x2", "16x1"):
        step = compiled_step("expg", code)
        costs.add((step.memory_analysis().temp_size_in_bytes, step.cost_analysis()["bytes accessed"]))
    assert len(costs) == 1


@pytest.mark.slow
def test_trainers_step_needs_less_memory_than_that_of_the_ann():
    twin, ann = (compiled_step(neuron, "2x2", side=32, batch=8).memory_analysis() for neuron in ("expg", "relu"))
    assert twin.temp_size_in_bytes < 0.75 * ann.temp_size_in_bytes


@pytest.mark.slow
def test_a_spike_budget_needs_hardly_more_memory():
    """Its gradient is there at once for all layers: made of it too early, it would be a float of every neuron."""
    without, budget = (
        compiled_step("expg", "2x2", side=32, batch=8, spike_budget=given).memory_analysis().temp_size_in_bytes
        for given in (None, 0.3)
    )
    assert budget < 1.15 * without
