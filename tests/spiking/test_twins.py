"""Twins: the neuron theorem on every code, and each hand-written backward pass against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ge2mst_jax.spiking import (
    SpikeCode,
    expg_fire,
    expg_spike_count,
    expg_twin,
    expg_twin_kept,
    halves_to_even,
    kept_levels,
    ladder_levels,
    qcfs_twin,
    sfa_twin,
)

CODES = ("1x4", "2x2", "4x1", "2x3/1", "1x1", "2x2+2,0", "2x2+1,0", "1x8")
NEURONS = 24  # currents of one example

_fire = jax.jit(lambda i, theta, code: code.decode(expg_fire(i, theta, code)), static_argnums=2)
_ladder = jax.jit(ladder_levels, static_argnums=2)
_twin = jax.jit(expg_twin, static_argnums=2)


def exact_levels(currents, threshold, code):
    """`project(clip(⌊I/θ + ½⌋, 0, L))` of whole numbers, in whole numbers."""
    n = np.clip((currents + threshold // 2) // threshold, 0, code.max_level)
    levels = np.array(code.levels)
    return levels[np.searchsorted(levels, n, side="right") - 1]


DEPLOYED, TRAINED = (_fire, _ladder), (_twin, expg_twin)


def check_theorem(code, fraction_bits, threshold, currents, forms):
    """Levels of currents `i·2^-f` under a threshold `t·2^-f`, `t` even, against whole numbers."""
    currents = np.resize(np.asarray(currents, np.int64), NEURONS)
    limit = 2**24
    assert threshold > 0
    assert threshold % 2 == 0
    assert code.max_level * threshold < limit
    assert (np.abs(currents) + threshold // 2 < limit).all()
    expected = exact_levels(currents, threshold, code)
    grid = np.float64(2.0) ** -fraction_bits
    i, theta = jnp.asarray(currents * grid, jnp.float32), jnp.float32(threshold * grid)
    np.testing.assert_array_equal(np.float64(i), currents * grid)
    for levels in forms:
        np.testing.assert_array_equal(levels(i, theta, code), expected)


@st.composite
def on_one_grid(draw, code):
    """`(f, t, currents)` inside the bound; half of the currents next to a tie, or on it."""
    limit, top = 2**24, code.max_level
    most = (limit - 1) // top // 2  # of t/2
    threshold = 2 * draw(st.integers(1, most) | st.integers(1, min(most, 64)) | st.integers(max(1, most - 64), most))
    room = limit - 1 - threshold // 2
    anywhere = st.integers(-room, room)
    near_a_tie = st.builds(
        lambda level, step: min(max(level * threshold - threshold // 2 + step, -room), room),
        st.integers(-1, top + 1),
        st.integers(-1, 1),
    )
    return draw(st.integers(0, 23)), threshold, draw(st.lists(anywhere | near_a_tie, min_size=1, max_size=NEURONS))


def check_any_grid(code, forms):
    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(on_one_grid(code))
    @example((12, 2, [-1, 0, 1]))
    @example((12, 82, [287]) if code.max_level >= 4 else (12, 2, [0]))  # 287/82 = 3.5 exactly, not so 287·(1/82)
    def holds(drawn):
        check_theorem(code, *drawn, forms)

    holds()


def check_ties(code, fraction_bits, forms):
    largest = (2**24 - 1) // code.max_level // 2 * 2
    for threshold in (2, 6, 10, 82, 122, largest, largest - 2):
        ties = [level * threshold - threshold // 2 + step for level in range(code.max_level + 2) for step in (-1, 0, 1)]
        ties = [tie for tie in ties if abs(tie) + threshold // 2 < 2**24]
        for start in range(0, min(len(ties), 6 * NEURONS), NEURONS):
            check_theorem(code, fraction_bits, threshold, ties[start : start + NEURONS], forms)


@pytest.mark.parametrize("text", CODES)
def test_neuron_theorem(text):
    """What the deployed executions fire and count: the neuron's train and the ladder, on any grid in the bound."""
    check_any_grid(SpikeCode.parse(text), DEPLOYED)


@pytest.mark.parametrize("text", CODES)
def test_neuron_theorem_of_the_twin(text):
    """What training computes, compiled or not: the same levels, so that training and deployment mean one thing."""
    check_any_grid(SpikeCode.parse(text), TRAINED)


@pytest.mark.parametrize("text", CODES)
@pytest.mark.parametrize("fraction_bits", [0, 23])
def test_neuron_theorem_at_every_tie(text, fraction_bits):
    check_ties(SpikeCode.parse(text), fraction_bits, DEPLOYED)


@pytest.mark.parametrize("text", CODES)
def test_neuron_theorem_of_the_twin_at_every_tie(text):
    check_ties(SpikeCode.parse(text), 12, TRAINED)


@pytest.mark.parametrize("text", CODES)
def test_neuron_theorem_at_the_edge_of_its_bound(text):
    code = SpikeCode.parse(text)
    largest = (2**24 - 1) // code.max_level // 2 * 2
    for threshold in (2, largest):
        room = 2**24 - 1 - threshold // 2
        check_theorem(code, 23, threshold, [room, room - 1, -room, 1 - room, 0], DEPLOYED + TRAINED)


@pytest.mark.parametrize("text", CODES)
def test_neuron_theorem_with_a_threshold_per_channel(text):
    code, random = SpikeCode.parse(text), np.random.default_rng(0)
    thresholds = 2 * random.integers(1, 2**23 // code.max_level // 2, (NEURONS,))
    levels = random.integers(-1, code.max_level + 2, (40, NEURONS))
    currents = levels * thresholds - thresholds // 2 + random.integers(-1, 2, (40, NEURONS))
    expected = exact_levels(currents, thresholds, code)
    assert len(np.unique(expected)) == len(np.unique(code.projection)) or code.max_level == 255
    i, theta = jnp.float32(currents * 2.0**-9), jnp.float32(thresholds * 2.0**-9)
    for form in DEPLOYED + TRAINED:
        np.testing.assert_array_equal(form(i, theta, code), expected)


def test_bound_is_needed():
    # One grid step below its tie, I + θ/2 = 2^24 + 3 needs 25 bits and rounds up to θ: the neuron fires.
    code, threshold, current = SpikeCode.parse("1x1"), 2**24 + 4, 2**23 + 1
    assert exact_levels(np.array([current]), threshold, code) == 0
    assert float(_fire(jnp.float32([current]), jnp.float32(threshold), code)[0]) == 1


@pytest.mark.parametrize("text", ["1x4", "2x2", "2x3/1"])
def test_twin_with_a_threshold_that_the_compiler_knows(text):
    """A closed-over threshold: XLA would like to multiply by its reciprocal, and miss ties."""
    code = SpikeCode.parse(text)
    threshold = 2 * np.random.default_rng(0).integers(1, 500, 4000)
    levels = np.random.default_rng(1).integers(1, code.max_level + 1, 4000)
    ties = levels * threshold - threshold // 2
    theta = np.float32(threshold * 2.0**-12)
    found = jax.jit(lambda i: expg_twin(i, theta, code))(np.float32(ties * 2.0**-12))
    np.testing.assert_array_equal(found, np.array(code.projection)[levels])


def test_levels_by_hand():
    i = jnp.array([-9.0, -0.25, 0.0, 0.24, 0.25, 1.2, 3.3, 3.75, 4.1, 99.0])
    np.testing.assert_array_equal(expg_twin(i, 0.5, SpikeCode.parse("2x2")), [0, 0, 0, 0, 1, 2, 6, 6, 6, 6])
    np.testing.assert_array_equal(expg_twin(i, 0.5, SpikeCode.parse("2x3/1")), [0, 0, 0, 0, 1, 2, 6, 8, 8, 8])
    np.testing.assert_array_equal(ladder_levels(i, 0.5, SpikeCode.parse("2x3/1")), [0, 0, 0, 0, 1, 2, 6, 8, 8, 8])
    np.testing.assert_array_equal(expg_twin(i, 0.5, SpikeCode.parse("1x1")), [0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(qcfs_twin(i, 0.5, SpikeCode.parse("4x1")), [0, 0, 0, 0, 1, 2, 4, 4, 4, 4])
    np.testing.assert_array_equal(sfa_twin(i, SpikeCode.parse("4x1")), [0, 0, 0, 0, 0, 1, 3, 4, 4, 4])
    assert expg_twin(i, 0.5, SpikeCode.parse("2x2")).dtype == jnp.float32


# --- backward passes --------------------------------------------------------------------------------------------------

# θ = 0.5, L = 6, so the range is [0, 3]; edges included, outside excluded.
CURRENT = np.float32([-0.5, 0.0, 0.2, 1.3, 3.0, 3.2, 9.0])
WEIGHT = np.float32([1.0, 2.0, 3.0, 5.0, 7.0, 11.0, 13.0])
THETA, CODE = np.float32(0.5), SpikeCode.parse("2x2")


def value_gradients(twin, current=CURRENT, theta=THETA, weight=WEIGHT):
    """Gradients of `Σ weight · θ·n`, the outer θ held: what a synapse with these weights sees."""

    def loss(i, t):
        return jnp.sum(weight * (jax.lax.stop_gradient(t) * twin(i, t, CODE)))

    return jax.grad(loss, (0, 1))(jnp.asarray(current), theta)


def test_expg_gradient_is_the_stated_one():
    to_current, to_threshold = value_gradients(expg_twin)
    np.testing.assert_allclose(to_current, [0, 2, 3, 5, 7, 0, 0])
    # Only the saturated move θ, by L each.
    np.testing.assert_allclose(to_threshold, 6 * (11 + 13), rtol=1e-6)


def test_qcfs_gradient_is_the_stated_one():
    to_current, to_threshold = value_gradients(qcfs_twin)
    np.testing.assert_allclose(to_current, [0, 2, 3, 5, 7, 0, 0])
    # The rounding error n - I/θ inside (0, -0.4, 0.4, 0), L where saturated.
    np.testing.assert_allclose(to_threshold, 3 * -0.4 + 5 * 0.4 + 6 * (11 + 13), rtol=1e-5)


@pytest.mark.parametrize("twin", [expg_twin, qcfs_twin])
def test_levels_come_in_another_type_with_the_same_gradient(twin):
    assert twin(jnp.asarray(CURRENT), THETA, CODE, jnp.bfloat16).dtype == jnp.bfloat16
    np.testing.assert_array_equal(twin(CURRENT, THETA, CODE, jnp.bfloat16), twin(CURRENT, THETA, CODE))

    def wide(i, t, code):
        return twin(i, t, code, jnp.bfloat16).astype(jnp.float32)

    for found, expected in zip(value_gradients(wide), value_gradients(twin), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2**-7)


def test_sfa_gradient_is_one_inside():
    gradient = jax.grad(lambda i: jnp.sum(WEIGHT * sfa_twin(i, SpikeCode.parse("4x1"))))(
        jnp.array([-0.1, 0.0, 0.2, 1.3, 4.0, 4.1, 9.0])
    )
    np.testing.assert_allclose(gradient, [0, 2, 3, 5, 7, 0, 0])


def test_thresholds_per_head_gather_their_own_channels():
    # [2 images, 3 tokens, 4 channels], two heads of two channels, one of them saturated.
    current = jnp.ones((2, 3, 4)) * jnp.array([9.0, 9.0, 1.0, 9.0])[None, None]
    theta = jnp.array([0.5, 0.25])
    weight = jnp.arange(24.0).reshape(2, 3, 4)

    def loss(i, t):
        threshold = jnp.repeat(t, 2)
        return jnp.sum(weight * jax.lax.stop_gradient(threshold)[None, None] * expg_twin(i, threshold, CODE))

    to_current, to_threshold = jax.grad(loss, (0, 1))(current, theta)
    channels = np.asarray(weight).sum((0, 1))
    np.testing.assert_allclose(to_threshold, [6 * (channels[0] + channels[1]), 6 * channels[3]])
    np.testing.assert_allclose(to_current, np.asarray(weight) * [0, 0, 1, 0])


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (3, 1), (3, 4), (1, 1, 4), (2, 3, 4)])
@pytest.mark.parametrize("twin", [expg_twin, qcfs_twin, expg_spike_count])
def test_threshold_gradient_has_the_threshold_shape(twin, shape):
    current = jnp.asarray(np.random.default_rng(0).uniform(-1, 6, (2, 3, 4)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4)), jnp.float32)

    def full(t):
        return jnp.sum(weight * twin(current, t, CODE))

    everywhere = np.asarray(jax.grad(full)(jnp.full((2, 3, 4), 0.5)))
    found = jax.grad(full)(jnp.full(shape, 0.5))
    aligned = (1,) * (3 - len(shape)) + shape
    axes = tuple(axis for axis in range(3) if aligned[axis] == 1)
    expected = everywhere.sum(axes, keepdims=True).reshape(shape)
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["2x2", "2x3/1", "1x4"])
def test_spike_count_is_exact_forward(text):
    code = SpikeCode.parse(text)
    current = jnp.linspace(-1.0, (code.max_level + 1) / 2, 301)
    expected = expg_fire(current, 0.5, code).sum(0)
    np.testing.assert_array_equal(expg_spike_count(current, 0.5, code), expected)


def test_spike_count_gradient_is_the_slope_of_the_count_table():
    # Counts of "2x2" are 0 1 1 2 3 3 4: slopes 1 0 1 1 0 1 between levels, 0 outside.
    levels = np.float32([-0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    slopes = np.float32([0, 1, 0, 1, 1, 0, 1, 0])

    def count(i, t):
        return jnp.sum(expg_spike_count(i, t, CODE))

    to_current, to_threshold = jax.grad(count, (0, 1))(jnp.asarray(levels * 0.5), jnp.float32(0.5))
    np.testing.assert_allclose(to_current, slopes / 0.5)
    np.testing.assert_allclose(to_threshold, -np.sum(slopes * levels) / 0.5)
    # The integral of the slope is what the count climbs by, over all levels: 4 spikes.
    fine = np.float32(np.arange(600) / 100 + 0.005)
    gradient = jax.grad(count)(jnp.asarray(fine), jnp.float32(1.0))
    np.testing.assert_allclose(np.sum(np.float64(gradient)) / 100, 4.0, rtol=1e-6)


@pytest.mark.parametrize("twin", [expg_twin, qcfs_twin, expg_spike_count])
def test_backward_keeps_the_current_and_the_threshold_alone(twin):
    current, threshold = jnp.ones((7, 5)), jnp.full((5,), 0.5)
    _, pull = jax.vjp(lambda i, t: twin(i, t, CODE), current, threshold)
    kept = [leaf for leaf in jax.tree.leaves(pull) if np.ndim(leaf) > 1]  # not the code's own table
    assert sorted(leaf.shape for leaf in kept) == [(1, 5), (7, 5)]
    assert all(any(leaf is own for own in (current, threshold)) for leaf in kept) or all(
        np.array_equal(leaf, current if leaf.shape == (7, 5) else threshold[None]) for leaf in kept
    )


@pytest.mark.parametrize("text", [*CODES, "16x1"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 5)])
def test_twin_that_keeps_bytes_is_the_twin(text, shape):
    code, random = SpikeCode.parse(text), np.random.default_rng(0)
    threshold = jnp.asarray(random.uniform(0.3, 0.9, shape), jnp.float32)
    top = float(code.max_level * jnp.max(threshold))
    current = random.uniform(-0.3 * top, 1.3 * top, (40, 3, 4, 5)).astype(np.float32)
    current[0, 0, 0] = [np.nan, np.inf, -np.inf, 0.0, top]
    pull = jnp.asarray(random.normal(size=current.shape), jnp.float32)
    outputs = {}
    for name, twin in (
        ("kept", lambda i, t: expg_twin_kept(i, t, code)[0]),
        ("twin", lambda i, t: expg_twin(i, t, code)),
    ):
        levels, back = jax.vjp(twin, current, threshold)
        outputs[name] = (levels, *back(pull))
    for found, expected in zip(outputs["kept"][:2], outputs["twin"][:2], strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(outputs["kept"][2], outputs["twin"][2], rtol=1e-5, atol=1e-4)
    levels, kept, spikes = expg_twin_kept(current, threshold, code)
    assert kept.dtype == (jnp.uint8 if code.max_level < 128 else jnp.uint16)
    np.testing.assert_array_equal(kept_levels(kept), levels)
    np.testing.assert_array_equal(spikes, code.count(levels))


@pytest.mark.parametrize("text", [*CODES, "16x1", "2x4/2"])
def test_spikes_of_kept_levels_have_the_mean_gradient_of_the_currents_that_fire_them(text):
    code = SpikeCode.parse(text)
    fine = (np.arange(64 * code.max_level) + 0.5) / 64  # of I/θ, inside
    current, theta = jnp.asarray(0.5 * fine, jnp.float32), jnp.float32(0.5)
    levels = np.asarray(expg_twin(current, theta, code)).astype(int)
    traced = np.float64(jax.grad(lambda i: expg_spike_count(i, theta, code).sum())(current))
    means = np.bincount(levels, traced) / np.maximum(np.bincount(levels), 1)
    weight = jnp.asarray(np.random.default_rng(0).normal(size=len(fine)), jnp.float32)
    to_current, to_theta = jax.grad(lambda i, t: jnp.sum(weight * expg_twin_kept(i, t, code)[2]), (0, 1))(
        current, theta
    )
    np.testing.assert_allclose(to_current, means[levels] * weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_theta, -np.sum(means[levels] * levels * np.asarray(weight)), rtol=1e-3)
    out = jnp.float32([-0.1, 0.51 * code.max_level])
    assert jax.grad(lambda i: expg_twin_kept(i, theta, code)[2].sum())(out).tolist() == [0.0, 0.0]


def test_both_gradients_of_the_twin_that_keeps_bytes_add_up():
    current, theta = jnp.linspace(-1.0, 5.0, 61), jnp.float32(0.7)
    of = [lambda i, t, n=n: jnp.sum(jnp.sin(jnp.arange(61)) * expg_twin_kept(i, t, "2x3/1")[n]) for n in (0, 2)]
    value, spikes = (jax.grad(f, (0, 1))(current, theta) for f in of)
    both = jax.grad(lambda i, t: of[0](i, t) + of[1](i, t), (0, 1))(current, theta)
    for one, other, total in zip(value, spikes, both, strict=True):
        np.testing.assert_allclose(one + other, total, rtol=1e-5, atol=1e-5)


def test_thresholds_that_mean_nothing_pass_no_gradient_through_bytes():
    current, threshold = jnp.array([1.0, 99.0, 1.0]), jnp.array([-1.0, jnp.nan, 0.5])
    total = jax.jit(lambda i, t: expg_twin_kept(i, t, "2x2")[0].sum())
    to_current, to_threshold = jax.grad(total, (0, 1))(current, threshold)
    assert (to_current.tolist(), to_threshold.tolist()) == ([0.0, 0.0, 2.0], [0.0, 0.0, 0.0])


def test_backward_of_the_twin_that_keeps_bytes_keeps_bytes_alone():
    _, pull = jax.vjp(lambda i: expg_twin_kept(i, 0.5, "2x2")[0], jnp.ones((64, 64)))
    kept = [x for x in jax.tree.leaves(pull) if getattr(x, "size", 0) > 1]
    assert [(x.dtype.name, x.shape) for x in kept] == [("uint8", (64, 64))]


def test_cost_of_the_twin_does_not_depend_on_the_steps():
    def operations(text):
        jaxpr = jax.make_jaxpr(lambda i: expg_twin(i, 0.5, SpikeCode.parse(text)))(jnp.ones(3))
        return str(jaxpr).count("\n")

    assert operations("2x2") == operations("1x8") == operations("200x1")


def test_halves_go_to_the_even_level_and_nothing_else_moves():
    """As `np.round` has it; what lies an ulp beside a half goes to the nearer level."""
    halves = np.arange(-2, 6, dtype=np.float32) + np.float32(0.5)
    beside = np.concatenate([np.nextafter(halves, np.float32(side)) for side in (-9, 9)])
    others = np.linspace(-2, 6, 97, dtype=np.float32) + np.float32(0.003)
    currents = np.concatenate([halves, beside, others])
    levels = sfa_twin(halves_to_even(currents), "4x1")
    np.testing.assert_array_equal(levels, np.clip(np.round(currents), 0, 4))
    assert sfa_twin(np.float32([0.5, 1.5, 2.5]), "4x1").tolist() == [1, 2, 3]  # a ladder takes them up
    np.testing.assert_array_equal(halves_to_even(others), others)
    gradient = jax.grad(lambda i: jnp.sum(sfa_twin(halves_to_even(i), "4x1")))(currents)
    inside = (currents >= 0) & (currents <= 4)
    np.testing.assert_array_equal(gradient, inside.astype(np.float32))
