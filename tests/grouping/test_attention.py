"""GW-SSA against slow loops in whole numbers, both orders of its products, and its exact synop counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax import create_model
from ge2mst_jax.grouping import (
    Scale,
    attention,
    attention_halves,
    attention_synops,
    group_attention,
    gw_attention,
    keys_first,
    share_heads,
    ssa,
)
from ge2mst_jax.spiking import SpikeCode, expg_charge

attend = jax.jit(
    lambda q, k, v, scales, precision=None: gw_attention(q, k, v, scales, precision, grid=q.shape[:2]),
    static_argnums=(3, 4),
)
synops = jax.jit(lambda q, k, v, scales: attention_synops(q, k, v, scales, grid=q.shape[:2]), static_argnums=3)
attend_whole = jax.jit(lambda q, k, v, precision=None: ssa(q, k, v, precision, grid=q.shape[:2]), static_argnums=3)


def spikes(*shape, rate=0.4, seed=0):
    return (np.random.default_rng(seed).random(shape) < rate).astype(np.float32)


def levels(*shape, top=6, seed=1):
    return np.random.default_rng(seed).integers(0, top + 1, shape).astype(np.float32)


def members(scale, height, width):
    """Token positions of each group, from the definition of the partitions alone."""
    rows, columns = scale.window
    groups = {}
    for y in range(height):
        for x in range(width):
            if scale.partition == "block":
                key = (y // rows, x // columns)
            else:
                key = (y % (height // rows), x % (width // columns))
            groups.setdefault(key, []).append((y, x))
    return list(groups.values())


def slow_attention(q, k, v, scales):
    """`o_i = Σ_j (q_i · k_j) v_j` over the tokens `j` of `i`'s group, head by head, in int64."""
    q, k, v = (x.astype(np.int64) for x in (q, k, v))
    height, width, heads, _ = v.shape
    out = np.zeros_like(v)
    for head in range(heads):
        for group in members(scales[head * len(scales) // heads], height, width):
            for i in group:
                for j in group:
                    out[(*i, head)] += np.dot(q[(*i, head)], k[(*j, head)]) * v[(*j, head)]
    return out


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((4, 4, 2, 3), "block2"),
        ((4, 6, 1, 8), "grid2x3"),
        ((4, 4, 4, 3), "block2 grid4"),
        ((6, 4, 3, 5), "block3x2 grid3x4 grid1x2"),
        ((4, 4, 4, 2), "block4 block2x1 grid2 block1"),
    ],
)
def test_attention_is_the_loop_over_groups_and_heads(shape, scales):
    scales = tuple(Scale.parse(text) for text in scales.split())
    q, k, v = spikes(*shape), spikes(*shape, seed=2), levels(*shape)
    out = attend(q, k, v, scales)
    assert out.dtype == jnp.float32
    expected = slow_attention(q, k, v, scales)
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(out, expected)


def test_each_scale_has_its_own_heads_in_order():
    ones = jnp.ones((4, 4, 4, 1))
    found = attend(ones, ones, ones, (Scale("block", 2), Scale("grid", (1, 2))))
    np.testing.assert_array_equal(found, np.broadcast_to([4.0, 4.0, 2.0, 2.0], (4, 4, 4))[..., None])


def test_token_hears_its_own_group_alone():
    q = k = np.ones((4, 4, 1, 1), np.float32)
    v = np.zeros((4, 4, 1, 1), np.float32)
    v[1, 2] = 3
    block = attend(q, k, v, (Scale("block", 2),))[..., 0, 0]
    grid = attend(q, k, v, (Scale("grid", 2),))[..., 0, 0]
    np.testing.assert_array_equal(block, [[0, 0, 3, 3], [0, 0, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(grid, [[0, 0, 0, 0], [3, 0, 3, 0], [0, 0, 0, 0], [3, 0, 3, 0]])


@pytest.mark.parametrize(("tokens", "width"), [(4, 8), (8, 4), (5, 5)])
@pytest.mark.parametrize("precision", [None, "highest"])
def test_both_orders_of_products_agree_exactly_on_spikes(tokens, width, precision, monkeypatch):
    q, k, v = spikes(tokens, width), spikes(tokens, width, seed=2), levels(tokens, width)
    expected = (q.astype(int) @ k.astype(int).T) @ v.astype(int)
    for first in (True, False):
        monkeypatch.setattr(attention, "keys_first", lambda *_, first=first: first)
        traced = jax.make_jaxpr(lambda *x: group_attention(*x, precision))(q, k, v)
        shapes = [e.outvars[0].aval.shape for e in traced.eqns if e.primitive.name == "dot_general"]
        assert shapes[0] == ((width, width) if first else (tokens, tokens))
        np.testing.assert_array_equal(group_attention(q, k, v, precision), expected)


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (4, 3), (3, 4), (49, 32), (16, 32), (196, 32), (32, 32)])
def test_cheaper_order_is_chosen(tokens, width):
    keys, queries = 2 * tokens * width * width, 2 * tokens * tokens * width
    assert keys_first(tokens, width) == (keys < queries)


@pytest.mark.parametrize("rates", [(0.17, 0.17, 0.63), (0.05, 0.3, 1.5), (0.9, 0.1, 0.2)])
@pytest.mark.parametrize("side", [2, 3, 4, 6])
@pytest.mark.parametrize("width", [4, 16, 32])
def test_order_costs_fewer_spikes_where_they_fire_as_expected(side, width, rates):
    """On random spikes of those rates the order that is chosen has the smaller count, where the two are not close."""
    random = np.random.default_rng(0)
    q, k = (jnp.asarray(random.random((8, side, side, 2, width)) < rate) for rate in rates[:2])
    v = jnp.asarray(random.poisson(rates[2], q.shape))
    either = [
        int(attention_synops(q, k, v, f"block{side}", grid=(side, side), rates=given).sum())
        for given in ((0, 0, 1), (1, 0, 0))
    ]
    found = int(attention_synops(q, k, v, f"block{side}", grid=(side, side), rates=rates).sum())
    assert found in either and found <= 1.1 * min(either)


@pytest.mark.parametrize("rates", [None, (1, 1), (1, 1, -1), (1, 1, float("nan")), (1, 1, "1"), 0.2])
def test_rates_that_are_none_are_refused(rates):
    x = jnp.ones((2, 2, 1, 3))
    with pytest.raises(ValueError, match="rates"):
        gw_attention(x, x, x, "block2", grid=(2, 2), rates=rates)
    with pytest.raises(ValueError, match="rates"):
        create_model("ge2mst_nano", attention_rates=rates)


def test_order_that_is_chosen_is_the_one_that_runs():
    for tokens, width in ((8, 3), (3, 8)):
        x = jnp.ones((tokens, width))
        traced = jax.make_jaxpr(group_attention)(x, x, x)
        first = next(e for e in traced.eqns if e.primitive.name == "dot_general")
        assert first.outvars[0].aval.shape == (3, 3)


def test_ssa_is_attention_with_one_group():
    shape = (2, 3, 2, 4)
    q, k, v = spikes(*shape), spikes(*shape, seed=2), levels(*shape)
    flat = [x.reshape(6, 2, 4).astype(int) for x in (q, k, v)]
    expected = np.stack([flat[0][:, h] @ flat[1][:, h].T @ flat[2][:, h] for h in range(2)], 1).reshape(shape)
    np.testing.assert_array_equal(attend_whole(q, k, v), expected)
    for name in ("block", "grid"):
        np.testing.assert_array_equal(attend(q, k, v, (Scale(name, (2, 3)),)), expected)


@pytest.mark.parametrize("width", [32, 200])
def test_all_14x14_tokens_as_one_group_are_exact_whole_numbers(width):
    """Counts up to 196·d·255, the most that a group of this size can make; `d` below and above `m`."""
    shape = (14, 14, 1, width)
    full = jnp.ones(shape)
    np.testing.assert_array_equal(
        attend_whole(full, full, 255 * full, "highest"), np.full(shape, {32: 1599360, 200: 9996000}[width], np.float64)
    )
    q, k, v = spikes(*shape, rate=0.9), spikes(*shape, rate=0.9, seed=2), levels(*shape, top=255)
    flat = [x.reshape(196, width).astype(np.int64) for x in (q, k, v)]
    expected = (flat[0] @ flat[1].T) @ flat[2]
    assert expected.max() > 2**19
    np.testing.assert_array_equal(attend_whole(q, k, v, "highest"), expected.reshape(shape))


def test_bfloat16_operands_give_exact_float32_counts():
    """256 and more coincidences are not all bfloat16 numbers: products must be added up in float32."""
    for shape in ((9, 9, 1, 32), (3, 3, 1, 300)):
        q, k, v = spikes(*shape, rate=0.9), spikes(*shape, rate=0.9, seed=2), levels(*shape)
        expected = slow_attention(q, k, v, (Scale("block", shape[:2]),))
        out = attend_whole(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, expected)


def test_attention_of_a_spike_train_adds_up_to_that_of_its_levels():
    code = SpikeCode.parse("2x2")
    shape = (2, 4, 2, 3)
    q, k, v = spikes(*shape), spikes(*shape, seed=2), levels(*shape)
    scales = (Scale("block", 2), Scale("grid", (1, 2)))
    steps = [attend(q, k, s, scales) for s in code.encode(v)]
    total = sum(weight * step for weight, step in zip(code.step_weights, steps, strict=True))
    np.testing.assert_array_equal(total, slow_attention(q, k, v, scales))


def test_heads_are_shared_out_equally_and_in_order():
    scales = tuple(Scale("block", w) for w in (1, 2, 4))
    assert share_heads(6, scales) == (slice(0, 2), slice(2, 4), slice(4, 6))
    assert share_heads(5, scales[:1]) == (slice(0, 5),)


@pytest.mark.parametrize(
    ("heads", "count", "message"),
    [
        (3, 2, "3 heads cannot be shared out equally among 2 scales"),
        (2, 3, "2 heads cannot be shared out equally among 3 scales"),
        (4, 0, "4 heads cannot be shared out equally among 0 scales"),
    ],
)
def test_heads_that_cannot_be_shared_are_refused(heads, count, message):
    scales = tuple(Scale("block", 2) for _ in range(count))
    x = jnp.ones((4, 4, heads, 2))
    for attempt in (
        lambda: share_heads(heads, scales),
        lambda: gw_attention(x, x, x, scales, grid=(4, 4)),
        lambda: attention_synops(x, x, x, scales, grid=(4, 4)),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_scale_that_does_not_divide_the_grid_is_refused():
    x = jnp.ones((4, 6, 1, 2))
    for attempt in (gw_attention, attention_synops):
        with pytest.raises(ValueError, match="scale grid4 does not divide the 4x6 token grid"):
            attempt(x, x, x, (Scale("grid", 4),), grid=(4, 6))


@pytest.mark.parametrize("wrong", [0, 1])
def test_shapes_that_differ_are_refused(wrong):
    operands = [jnp.ones((2, 2, 1, 3 + (i == wrong))) for i in range(3)]
    with pytest.raises(ValueError, match=r"must be \[..., H, W, h, d\]"):
        gw_attention(*operands, (Scale("block", 2),), grid=(2, 2))


def test_operands_without_heads_are_refused():
    x = jnp.ones((2, 2, 4))
    with pytest.raises(ValueError, match=r"must be \[..., H, W, h, d\]"):
        gw_attention(x, x, x, (Scale("block", 2),), grid=(2, 2))


# --- synops -----------------------------------------------------------------------------------------------------------


def brute_synops(q, k, trains, scales):
    """Every accumulate of one image, one at a time; all three are spike trains, `[T, H, W, h, d]`."""
    height, width, heads, d = q.shape[1:]
    total = 0
    for head in range(heads):
        scale = scales[head * len(scales) // heads]
        for group in members(scale, height, width):
            if d < len(group):  # k and v meet first: [d, d] sums, then q's spikes each add a row of width d
                for j in group:
                    for a in range(d):
                        for b in range(d):
                            total += sum(int(s[(*j, head, a)] and t[(*j, head, b)]) for s in k for t in trains)
                total += sum(d for step in q for i in group for a in range(d) if step[(*i, head, a)])
            else:  # q and k meet first: [m, m] counts, then v's spikes each add a column of height m
                pairs = [(s, t, i, j) for s in q for t in k for i in group for j in group]
                total += sum(int(s[(*i, head, a)] and t[(*j, head, a)]) for s, t, i, j in pairs for a in range(d))
                total += sum(len(group) for step in trains for j in group for b in range(d) if step[(*j, head, b)])
    return total


def test_synops_of_two_tokens_are_those_counted_by_hand():
    # One group of 2 tokens, width 2: m = d, so q and k meet first.
    q = jnp.array([[1.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    k = jnp.array([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 1, 2)
    v = jnp.array([[2.0, 0.0], [1.0, 3.0]]).reshape(1, 2, 1, 2)  # spikes of each neuron over its steps
    # A = [[1, 2], [1, 1]]: 5 coincidences; 6 spikes of v, each added to 2 tokens.
    assert int(synops(q, k, v, (Scale("block", (1, 2)),))) == 5 + 2 * 6
    # Groups of one token: A = [1], [1]; each spike of v is added to one token.
    assert int(synops(q, k, v, (Scale("block", 1),))) == 1 + 1 + 6


def test_synops_with_keys_first_are_those_counted_by_hand():
    # One group of 3 tokens, width 2: k and v meet first.
    q = jnp.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]).reshape(3, 1, 1, 2)
    k = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]).reshape(3, 1, 1, 2)
    v = jnp.array([[1.0, 2.0], [0.0, 4.0], [5.0, 5.0]]).reshape(3, 1, 1, 2)
    # Token by token, k spikes times v spikes: 1·3 + 2·4 + 0·10; then 3 spikes of q add rows of width 2.
    assert int(synops(q, k, v, (Scale("block", (3, 1)),))) == 3 + 8 + 0 + 2 * 3


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((4, 4, 2, 5), "block2"),  # m = 4 < d: q and k first
        ((4, 4, 2, 3), "grid4"),  # m = 16 > d: k and v first
        ((4, 6, 4, 5), "block2 grid4x3"),  # both at once
    ],
)
def test_synops_are_the_accumulates_counted_one_by_one(shape, scales):
    scales = tuple(Scale.parse(text) for text in scales.split())
    codes = [SpikeCode.parse(text) for text in ("1x2", "1x2", "2x2")]
    trains = [np.asarray(code.encode(levels(*shape, top=code.max_level, seed=i))) for i, code in enumerate(codes)]
    for train in trains:
        assert train.sum() > np.count_nonzero(train.sum(0))  # some neurons spike twice and more
    found = synops(*(train.sum(0) for train in trains), scales)
    assert found.dtype == jnp.int32
    assert int(found) == brute_synops(*trains, scales)


@pytest.mark.parametrize("text", ["block2", "grid4"])  # d above m, and below
def test_spike_trains_of_queries_and_keys_meet_as_their_levels_do(text):
    code, shape = SpikeCode.parse("2x2+1,0"), (2, 4, 4, 2, 5)
    q, k, v = (levels(*shape, top=code.max_level, seed=seed) for seed in range(3))
    of_values, of_queries = attention_halves(
        code.encode(q), code.encode(k), text, grid=(4, 4), weights=code.step_weights
    )
    np.testing.assert_array_equal(of_queries(of_values(v)), gw_attention(q, k, v, text, grid=(4, 4)))


def test_silent_attention_costs_nothing():
    none = jnp.zeros((2, 2, 1, 2))
    assert int(synops(none, none, none, (Scale("block", 2),))) == 0


# --- halves, batches, grids, texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["block2", "grid4"])  # d above m, and below
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_halves_are_attention_and_run_the_queries_once(text, dtype):
    code, shape = SpikeCode.parse("2x3/1"), (4, 4, 2, 5)
    q, k = (spikes(*shape, seed=s).astype(dtype) for s in (0, 2))
    v = np.array(code.levels)[levels(*shape).astype(int)].astype(dtype)

    def accumulated(q, k, train):
        of_values, of_queries = attention_halves(q, k, text, grid=(4, 4))
        return of_queries(expg_charge(of_values, train, code))

    found = accumulated(q, k, code.encode(v))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, slow_attention(q, k, v, (Scale.parse(text),)))
    np.testing.assert_array_equal(found, gw_attention(q, k, v, text, grid=(4, 4)))
    traced = jax.make_jaxpr(accumulated)(q, k, code.encode(v))
    outside = [e for e in traced.eqns if e.primitive.name in ("dot_general", "scan")]
    # The first step's product of v, the scan of the others, and the one product of q outside.
    assert [e.primitive.name for e in outside].count("dot_general") == 2
    scan = next(e for e in outside if e.primitive.name == "scan")
    assert str(scan.params["jaxpr"]).count("dot_general") == 1


def test_batch_axes_are_images_of_their_own():
    shape, scales = (2, 3, 4, 6, 2, 3), ("block2", "grid2x3")
    q, k, v = spikes(*shape), spikes(*shape, seed=2), levels(*shape)
    found = gw_attention(q, k, v, scales, grid=(4, 6))
    counted = attention_synops(q, k, v, scales, grid=(4, 6))
    assert counted.shape == (2, 3)
    for at in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[at], gw_attention(q[at], k[at], v[at], scales, grid=(4, 6)))
        assert counted[at] == attention_synops(q[at], k[at], v[at], scales, grid=(4, 6))


@pytest.mark.parametrize("function", [gw_attention, attention_synops, lambda q, k, v, scales, **kw: ssa(q, k, v, **kw)])
@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((2, 16, 1, 3), None),  # [B, N, h, d]
        ((2, 16, 1, 3), (4, 4)),
        ((16, 16, 1, 3), (4, 4)),  # as many images as tokens
        ((2, 4, 4, 1, 3), None),
        ((4, 6, 1, 3), None),
        ((16, 16, 1, 3), None),
        ((4, 4, 1, 3), (4, 6)),
        ((4, 4, 1, 3), 4),
        ((4, 4, 3), (4, 4)),
    ],
)
def test_token_grid_that_is_not_the_operands_is_refused(function, shape, grid):
    x = jnp.ones(shape)
    with pytest.raises(ValueError, match=r"must be \[..., H, W, h, d\]") as caught:
        function(x, x, x, "block2", grid=grid)
    assert "\n" not in str(caught.value)


def test_token_grid_is_never_guessed():
    """A batch of 4 images of 4 tokens looks like a grid of 4x4."""
    x = jnp.ones((4, 4, 1, 3))
    for attempt in (gw_attention, attention_synops):
        with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'grid'"):
            attempt(x, x, x, "block2")


@pytest.mark.parametrize("scales", ["block", ("block2", 7), (None,), 2])
def test_what_is_no_scale_is_refused(scales):
    x = jnp.ones((4, 4, 2, 3))
    with pytest.raises(ValueError, match="is not a scale: write block or grid"):
        gw_attention(x, x, x, scales, grid=(4, 4))


def test_bools_are_counted_and_complex_refused():
    x = jnp.ones((4, 4, 1, 3), bool)
    assert int(gw_attention(x, x, x, "block2", grid=(4, 4))[0, 0, 0, 0]) == 12
    with pytest.raises(ValueError, match="q is of type complex64"):
        gw_attention(x + 0j, x, x, "block2", grid=(4, 4))
