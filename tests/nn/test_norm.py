"""BatchNorm against Flax's, and its gradient against the one that is traced."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax.nn.norm import BatchNorm, affine, normalize, statistics

SHAPE = (4, 3, 5, 6)


def example(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(2.0, 3.0, SHAPE).astype(np.float32)
    return x, random.normal(size=6).astype(np.float32), random.normal(size=6).astype(np.float32)


def test_gradient_is_the_traced_one():
    x, scale, bias = example()
    pull = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)

    def traced(x, scale, bias):
        return affine(x, *statistics(x), scale, bias)

    found = jax.vjp(lambda *a: normalize(*a)[0], x, scale, bias)[1](pull)
    for ours, theirs in zip(found, jax.vjp(traced, x, scale, bias)[1](pull), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_backward_keeps_the_input_alone():
    x, scale, bias = example()
    _, pull = jax.vjp(lambda *a: normalize(*a)[0], x, scale, bias)
    assert sum(leaf.size == x.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")) == 1


@pytest.mark.parametrize("train", [True, False])
def test_layer_is_that_of_flax(train):
    x, scale, bias = example()
    theirs = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
    variables = theirs.init(jax.random.key(0), x)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": bias + 1, "var": np.abs(scale) + 0.5},
    }
    expected, updates = theirs.apply(variables, x, mutable=["batch_stats"])
    found, ours = BatchNorm().apply(variables, x, train, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for key in ("mean", "var"):
        np.testing.assert_allclose(ours["batch_stats"][key], updates["batch_stats"][key], rtol=1e-6)


def test_layer_starts_as_that_of_flax():
    found, expected = (
        layer.init(jax.random.key(0), jnp.ones(SHAPE), *more)
        for layer, more in ((BatchNorm(), (True,)), (nn.BatchNorm(use_running_average=False), ()))
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, dict(expected)))


def test_constant_input_is_no_division_by_zero():
    y, mean, variance = normalize(jnp.full((2, 3), 7.0), jnp.ones(3), jnp.zeros(3))
    assert (y.tolist(), mean.tolist(), variance.tolist()) == ([[0.0] * 3] * 2, [7.0] * 3, [0.0] * 3)
