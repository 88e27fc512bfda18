"""Values that are wider or narrower than queries and keys: both orders, both forms, gradients, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import attend, levels, slow_attention, spikes

from ge2mst_jax.grouping import (
    Scale,
    attention_synops,
    gw_attention,
    keys_first,
    masked_attention,
    training_attention,
)


def values_first(first, v):
    """The shape of the first product."""
    q = k = jnp.ones((*v.shape[:-1], 3))
    rates = (0, 0, 1) if first else (1, 0, 0)
    traced = jax.make_jaxpr(lambda *x: gw_attention(*x, "block4", grid=(4, 4), rates=rates))(q, k, v)
    return next(e for e in traced.eqns if e.primitive.name == "dot_general").outvars[0].aval.shape[-2:]


@pytest.mark.parametrize("width", [1, 6, 12])
def test_values_may_be_of_another_width(width):
    scales = (Scale("block", 2), Scale("grid", 4))
    q, k, v = spikes(4, 4, 2, 3), spikes(4, 4, 2, 3, seed=2), levels(4, 4, 2, width)
    expected = slow_attention(q, k, v, scales)
    for found in (attend(q, k, v, scales), masked_attention(q, k, v, scales, grid=(4, 4))):
        np.testing.assert_array_equal(found, expected)
    slopes = jax.grad(lambda *x: jnp.vdot(training_attention(*x, scales, grid=(4, 4)), v), (0, 1, 2))(q, k, v)
    assert [slope.shape for slope in slopes] == [x.shape for x in (q, k, v)]
    # v·o with the one v held is linear in q, in k and in the other v.
    np.testing.assert_allclose([np.vdot(s, x) for s, x in zip(slopes, (q, k, v), strict=True)], np.vdot(expected, v))
    assert [values_first(first, jnp.asarray(v)) for first in (True, False)] == [(3, width), (16, 16)]


def test_order_and_synops_of_wide_values():
    """4 tokens of width 4, all of whose neurons fire once: values of 8 columns meet 16 pairs of spikes, or 4 tokens."""
    ones, wide = jnp.ones((2, 2, 1, 4)), jnp.ones((2, 2, 1, 8))
    found = [
        int(attention_synops(ones, ones, wide, "block2", grid=(2, 2), rates=rates)) for rates in ((1, 0, 0), (0, 0, 1))
    ]
    assert found == [4 * 4 * 4 + 4 * 32, 4 * (4 * 8) + 8 * 16]
    for tokens, width, values in np.ndindex(9, 9, 9):
        costs = 2 * width * values, tokens * (width + values)
        if min(tokens, width, values) > 0 and costs[0] != costs[1]:
            assert keys_first(tokens, width, value_width=values) == (costs[0] < costs[1])
