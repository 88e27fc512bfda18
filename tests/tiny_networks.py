"""Tiny random networks that compile in seconds: what the tests of `nn`, `models` and `convert` run on."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ge2mst_jax import create_model

SHAPE = (8, 8, 2)


def tiny_model(code="2x2", **changes):
    """One convolution block on 8x8 positions, one attention block on 4x4 tokens, 5 classes."""
    fields = dict(
        stages=(("conv", 8, 1), ("attention", 16, 1)),
        head_width=8,
        scales=("block2", "grid2"),
        group_width=8,
        num_classes=5,
        qk_code="1x1",
    )
    return create_model("ge2mst_nano", code=code, **(fields | changes))


DRAWS = {
    "kernel": lambda random, a: random.normal(0.0, np.sqrt(2 / np.prod(a.shape[:-1])), a.shape),
    "scale": lambda random, a: random.choice([-1, 1], a.shape) * random.uniform(0.5, 1.5, a.shape),
    "bias": lambda random, a: random.normal(0.2, 0.3, a.shape),
    "mean": lambda random, a: random.normal(0.0, 0.3, a.shape),
    "var": lambda random, a: random.uniform(0.3, 2.0, a.shape),
    "raw": lambda random, a: random.uniform(-2.0, 0.5, a.shape),
    "raw_leak": lambda random, a: random.uniform(-1.0, 1.0, a.shape),
}


def random_variables(model, shape=SHAPE, seed=0, **others):
    """Variables with nothing at its initial value: BatchNorm's statistics, gains of both signs, thresholds.

    Args:
        model, shape, seed: the network, its images, of the numbers.
        **others: in place of the draws above, by the name of a leaf, or more of them.
    """
    random, draws = np.random.default_rng(seed), DRAWS | others
    born = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape), jnp.uint8))
    flat = traverse_util.flatten_dict({key: born[key] for key in ("params", "batch_stats")})
    return traverse_util.unflatten_dict({path: np.float32(draws[path[-1]](random, a)) for path, a in flat.items()})


def random_images(count, shape=SHAPE, seed=0):
    """uint8 images whose pixels use the whole range."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
