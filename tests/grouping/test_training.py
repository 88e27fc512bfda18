"""Attention in training: masked and grouped forms are one function with one gradient, and each machine gets its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax.grouping import Scale, gw_attention, masked_attention, training_attention
from ge2mst_jax.grouping.training import group_mask

RATES = (0.17, 0.17, 0.63)
CASES = [
    ((4, 4, 2, 3), ("block2", "grid2")),
    ((2, 4, 6, 4, 5), ("block1x3", "grid4x1")),
    ((4, 4, 2, 8), ("block4", "grid4")),
]


def operands(shape, dtype=jnp.float32):
    random = np.random.default_rng(0)
    q, k = (random.random(shape) < 0.4 for _ in "qk")
    return [jnp.asarray(x, dtype) for x in (q, k, random.integers(0, 7, shape))]


@pytest.mark.parametrize("scale", ["block2", "grid2", "block1x4", "grid4x1", "grid4"])
def test_mask_joins_tokens_of_one_group(scale):
    scale = Scale.parse(scale)
    mask = group_mask(scale, 4, 8)
    (rows, columns), (height, width) = scale.window, (4, 8)
    for a, b in np.ndindex(mask.shape):
        (y, x), (v, u) = divmod(a, width), divmod(b, width)
        if scale.partition == "block":
            together = (y // rows, x // columns) == (v // rows, u // columns)
        else:
            together = (y % (height // rows), x % (width // columns)) == (v % (height // rows), u % (width // columns))
        assert mask[a, b] == together


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "scales"), CASES, ids=str)
def test_both_forms_are_one_function_with_one_gradient(shape, scales, dtype):
    q, k, v = operands(shape, dtype)
    weights = jnp.asarray(np.random.default_rng(1).integers(-4, 5, shape), jnp.float32)
    found = []
    for form in (gw_attention, masked_attention, training_attention):

        def loss(q, k, v, form=form):
            return jnp.sum(weights * form(q, k, v, scales, grid=shape[-4:-2]))

        value = form(q, k, v, scales, grid=shape[-4:-2])
        assert value.dtype == jnp.float32
        found.append([value, *jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.dtype == b.dtype
            tolerance = 0 if dtype == jnp.float32 else 2.0**-6 * float(jnp.abs(a).max())
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=tolerance)


def test_real_numbers_of_narrow_types_neither_overflow_nor_lose_a_pair():
    """As the ANN sends them: pairs of 32 products of 50 by 50 are no float16 numbers."""
    x = jnp.full((4, 4, 2, 32), 50, jnp.float16)
    for form in (gw_attention, masked_attention):
        np.testing.assert_array_equal(form(x, x, x, "block2", grid=(4, 4)), np.full(x.shape, 4 * 32 * 50.0**3))
    x = jnp.ones((4, 4, 2, 300), jnp.bfloat16)  # a count of 300, between two bfloat16 numbers
    np.testing.assert_array_equal(masked_attention(x, x, x, "block2", grid=(4, 4)), np.full(x.shape, 1200.0))


@pytest.mark.parametrize(
    ("grid", "scales", "rates", "pairs"),
    [
        ((4, 4), ("block1x2", "grid2x1"), RATES, True),
        ((4, 4), ("block4", "grid4"), RATES, False),  # 16 tokens of width 8: keys first
        ((32, 32), ("block1x2", "grid2x1"), RATES, False),  # too many pairs
    ],
)
def test_an_accelerator_computes_pairs_where_queries_come_first_and_a_cpu_groups(grid, scales, rates, pairs):
    x = jax.ShapeDtypeStruct((1, *grid, 2, 8), jnp.float32)
    traced = jax.jit(lambda *x: training_attention(*x, scales, grid=grid, rates=rates)).trace(x, x, x)
    tokens = grid[0] * grid[1]
    of_all = f"x{tokens}x{tokens}xf32>"
    assert (of_all in traced.lower(lowering_platforms=("tpu",)).as_text()) == pairs
    assert of_all not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_what_is_no_attention_is_refused():
    x = jnp.ones((4, 4, 2, 3))
    with pytest.raises(ValueError, match="grid"):
        training_attention(x, x, x, "block2", grid=(2, 8))
    with pytest.raises(ValueError, match="does not divide"):
        training_attention(x, x, x, "block3", grid=(4, 4))
    with pytest.raises(ValueError, match="rates"):
        training_attention(x, x, x, "block2", grid=(4, 4), rates=(1, 1))
