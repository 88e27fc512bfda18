"""What people give: types, ranges and shapes that neuron and twin compute alike, or refuse with one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge2mst_jax.spiking import (
    LIFParams,
    SpikeCode,
    expg_activation,
    expg_charge,
    expg_fire,
    expg_spike_count,
    expg_twin,
    heaviside,
    ladder_levels,
    lif_fire,
    lif_params,
    lif_step,
    plif_params,
    qcfs_twin,
    scan_time,
    sfa_twin,
)

CODE = SpikeCode(2, 2)
CODES = ("2x2", "1x4", "4x1", "2x3/1", "1x1")
FUNCTIONS = (expg_twin, expg_fire, qcfs_twin, expg_spike_count, ladder_levels, expg_activation)

_all = jax.jit(
    lambda i, t, code: (
        expg_twin(i, t, code, jnp.float32),
        code.decode(expg_fire(i, t, code)),
        ladder_levels(i, t, code),
        expg_spike_count(i, t, code),
    ),
    static_argnums=2,
)


@pytest.mark.parametrize("current", [[0, 1, 2, 3], np.arange(4), np.arange(4, dtype=np.uint8)])
def test_integer_currents_are_their_values(current):
    for levels in (
        expg_twin(current, 0.5, CODE),
        qcfs_twin(current, 0.5, CODE),
        ladder_levels(current, 0.5, CODE),
        CODE.decode(expg_fire(current, 0.5, CODE)),
        expg_activation(current, 0.5, CODE)[1],
    ):
        assert levels.dtype == jnp.float32
        np.testing.assert_array_equal(levels, [0, 2, 4, 6])
    np.testing.assert_array_equal(expg_spike_count(current, 0.5, CODE), [0, 1, 3, 4])
    np.testing.assert_array_equal(sfa_twin(current, CODE), [0, 1, 2, 3])
    np.testing.assert_array_equal(expg_twin([True, False], 0.5, CODE), [2, 0])


@pytest.mark.parametrize("text", CODES)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_integers_with_an_integer_threshold_are_exact(text, data):
    code = SpikeCode.parse(text)
    theta = data.draw(st.integers(1, (2**31 - 1) // 256) | st.integers(1, 99))
    near = st.builds(lambda n, d: min(n * theta - theta // 2 + d, 2**31 - 1), st.integers(-1, 300), st.integers(-2, 2))
    current = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1) | near, min_size=8, max_size=8))
    n = np.clip([(2 * i + theta) // (2 * theta) for i in current], 0, code.max_level)
    expected = np.array(code.projection)[n]
    found = _all(jnp.asarray(current, jnp.int32), jnp.int32(theta), code)
    for levels in found[1:3]:
        assert levels.dtype == jnp.int32
    for levels in found[:3]:
        np.testing.assert_array_equal(levels, expected)


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@pytest.mark.parametrize("text", CODES)
@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.lists(floats, min_size=8, max_size=8),
    floats | st.floats(2.0**-99, 2.0**99, width=32) | st.floats(0.125, 8, width=32),
)
def test_neuron_and_twin_agree_on_every_float(text, currents, theta):
    """Never by kind; and exactly, but for one level where the current is within some ulps of a tie."""
    code = SpikeCode.parse(text)
    currents = np.float32(currents)
    twin, fired, ladder, counts = map(np.asarray, _all(currents, np.float32(theta), code))
    if not 1e-30 <= np.float32(theta) <= 1e30:
        for found in (twin, fired, ladder, counts):
            np.testing.assert_array_equal(found, np.zeros(8))
        return
    for found in (twin, fired, ladder):
        assert np.isin(found, code.levels).all()
        assert not found[np.isnan(currents)].any()
    scaled = np.clip(np.float64(currents) / np.float64(np.float32(theta)), -1e9, 1e9)
    far = ~(np.abs((scaled + 0.5) - np.round(scaled + 0.5)) < 1e-4)
    np.testing.assert_array_equal(twin[far], fired[far])
    np.testing.assert_array_equal(ladder[far], fired[far])
    index = np.searchsorted(code.levels, [twin, fired, ladder])
    assert (index.max(0) - index.min(0) <= 1).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("text", [*CODES, "1x8"])
def test_16_bit_numbers_agree_exactly(dtype, text):
    code, random = SpikeCode.parse(text), np.random.default_rng(0)
    theta = jnp.asarray(np.exp(random.normal(size=64)), dtype)
    ties = (np.arange(code.max_level + 2)[:, None] - 0.5) * np.float32(theta)
    current = jnp.asarray(ties, dtype)
    twin, fired, ladder, _ = _all(current, theta, code)
    assert fired.dtype == ladder.dtype == dtype
    n = np.clip(np.floor(np.float64(current) / np.float64(theta) + 0.5), 0, code.max_level).astype(int)
    for found in (twin, fired, ladder):
        np.testing.assert_array_equal(np.float32(found), np.array(code.projection)[n])


@pytest.mark.parametrize("types", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")])
def test_mixed_precision_works_and_gradients_have_their_own_type(types):
    current, theta = jnp.asarray([0.3, 1.3, 9.0], types[0]), jnp.asarray(0.5, types[1])
    for function in (expg_twin, qcfs_twin, expg_spike_count, lambda *a: expg_activation(*a)[0]):
        assert function(current, theta, CODE).dtype == current.dtype
        found = jax.grad(lambda i, t, f=function: f(i, t, CODE).astype(jnp.float32).sum(), (0, 1))(current, theta)
        assert [g.dtype for g in found] == [current.dtype, theta.dtype]
    np.testing.assert_array_equal(
        CODE.decode(expg_fire(current, theta, CODE)).astype(float), expg_twin(current, theta, CODE).astype(float)
    )
    spikes = lif_fire(current[None], plif_params(theta))
    assert spikes.dtype == current.dtype
    assert (
        jax.grad(lambda raw: lif_fire(current[None], plif_params(raw)).astype(jnp.float32).sum())(theta).dtype
        == types[1]
    )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("theta", [0.0, -1.9, np.nan, np.inf, 1e-40, 0, -2, 2**30])
def test_threshold_that_is_none_is_refused_where_known_and_silent_where_not(function, theta):
    current = jnp.asarray([0, 1, 3]) if isinstance(theta, int) else jnp.array([0.0, 1.0, 99.0])
    with pytest.raises(ValueError, match=r"threshold is .*: it must be above 0") as caught:
        function(current, theta, CODE)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="threshold is"):
        jax.jit(lambda i: function(i, theta, CODE))(current)
    for leaf in jax.tree.leaves(jax.jit(lambda i, t: function(i, t, CODE))(current, theta)):
        assert not np.asarray(leaf).any()


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if f not in (expg_fire, ladder_levels)])
@pytest.mark.parametrize("theta", [0.0, -1.9, np.nan, np.inf, 0.5])
def test_gradients_are_finite_on_every_input(function, theta):
    def loss(i, t):
        return sum(jnp.sum(x) for x in jax.tree.leaves(function(i, t, CODE)))

    current = jnp.array([np.nan, np.inf, -np.inf, 1e38, -1e38, 0.0])
    to_current, to_theta = jax.jit(jax.grad(loss, (0, 1)))(current, jnp.float32(theta))
    assert np.isfinite(to_current).all()
    assert np.isfinite(to_theta)
    if theta != 0.5:
        assert not to_current.any()
        assert to_theta == 0


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("current", "theta", "says"),
    [
        (jnp.ones(3), jnp.ones((2, 3)), r"shape \(2, 3\) does not fit shape \(3,\)"),
        (jnp.ones((2, 3)), jnp.ones(2), r"shape \(2,\) does not fit shape \(2, 3\)"),
        (1j, 1.0, "current is of type complex64"),
        (1.0, 1j, "threshold is of type complex64"),
        ("1", 1.0, "current is '1'"),
        (None, 1.0, "current is None"),
        ([1, [2]], 1.0, r"current is \[1, \[2\]\]"),
        (2**40, 1.0, "current is 1099511627776"),
        (np.array([2**40]), 1.0, "current holds int64 numbers beyond int32"),
        (jnp.ones(2, jnp.float8_e4m3fn), 1.0, "current is of type float8_e4m3fn"),
    ],
)
def test_what_is_no_current_or_threshold_is_refused_in_one_line(function, current, theta, says):
    with pytest.raises(ValueError, match=says) as caught:
        function(current, theta, CODE)
    assert "\n" not in str(caught.value)


def test_activation_has_the_value_and_every_gradient():
    theta, current = 0.3, jnp.array([-0.5, 0.0, 0.2, 1.3, 1.79, 1.81, 9.0])
    value, levels = expg_activation(current, theta, CODE)
    np.testing.assert_array_equal(levels, expg_twin(current, theta, CODE))
    np.testing.assert_array_equal(value, np.float32(theta) * levels)
    weight = jnp.arange(1.0, 8.0)
    found = jax.grad(lambda i, t: jnp.sum(weight * expg_activation(i, t, CODE)[0]), (0, 1))(current, theta)
    np.testing.assert_array_equal(found[0], [0, 2, 3, 4, 5, 0, 0])
    assert float(found[1]) == 6 * (6 + 7)


@pytest.mark.parametrize("twin", [expg_twin, qcfs_twin, expg_spike_count, lambda *a: expg_activation(*a)[0]])
def test_forward_mode_is_the_transpose_of_reverse_mode(twin):
    current, theta = jnp.array([-0.5, 0.2, 1.3, 2.6, 9.0]), jnp.float32(0.5)
    for argument in (0, 1):
        forward, reverse = (
            mode(lambda i, t: twin(i, t, CODE), argument)(current, theta) for mode in (jax.jacfwd, jax.jacrev)
        )
        np.testing.assert_allclose(forward, reverse, rtol=1e-6)

    def loss(x):
        return jnp.sum(jnp.sin(twin(x[:-1], x[-1], CODE)))

    # Not symmetric, as the derivatives are stated ones; but the same in both modes.
    x = jnp.append(current, theta)
    np.testing.assert_allclose(jax.jacfwd(jax.grad(loss))(x), jax.jacrev(jax.grad(loss))(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [expg_fire, ladder_levels])
def test_firing_raises_where_a_gradient_is_asked_for(function):
    current = jnp.array([0.2, 1.3])

    def loss(i, t):
        return jnp.sum(function(i, t, CODE))

    for argument in (0, 1):
        for asked in (jax.grad, jax.jacfwd, lambda f, a: jax.grad(jax.jit(f), a)):
            with pytest.raises(ValueError, match="a firing neuron passes no gradient: train with its twin"):
                asked(loss, argument)(current, 0.5)

    def fired_on_the_side(i):
        return jnp.sum(i * i), jax.jit(loss)(jax.lax.stop_gradient(i), 0.5)

    gradient, fired = jax.grad(fired_on_the_side, has_aux=True)(current)
    np.testing.assert_array_equal(gradient, 2 * current)
    assert fired > 0
    np.testing.assert_array_equal(
        jax.vmap(lambda i: loss(i, 0.5))(current[:, None]), [loss(i[None], 0.5) for i in current]
    )
    assert jax.eval_shape(loss, current, 0.5).shape == ()


def test_time_constant_a_neuron_and_under_jit():
    currents, tau = jnp.full((5, 2, 3), 1.7), jnp.array([1.0, 2.0, 4.0])
    expected = np.stack([lif_fire(currents[..., i], lif_params(float(t))) for i, t in enumerate(tau)], -1)
    np.testing.assert_array_equal(lif_fire(currents, lif_params(tau)), expected)
    np.testing.assert_array_equal(jax.jit(lambda x, t: lif_fire(x, lif_params(t)))(currents, tau), expected)
    np.testing.assert_array_equal(lif_fire(jnp.ones((2, 1), int), lif_params(1)), [[1.0], [1.0]])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lif_fire(jnp.ones((2, 3)), LIFParams(1.0, 1.0, 0.0)), "threshold is 0.0: it must be above 0"),
        (lambda: lif_fire(jnp.ones((2, 3)), LIFParams(np.nan, 1.0)), "leak is nan: it must be finite"),
        (lambda: lif_fire(jnp.ones((2, 3)), LIFParams(1.0, np.inf)), "gain is inf: it must be finite"),
        (lambda: lif_fire(jnp.ones((2, 3)), lif_params(jnp.full(2, 2.0))), "does not fit shape"),
        (lambda: lif_fire(jnp.ones((2, 3)), LIFParams(1.0, 1.0, reset=["soft"])), "unknown reset"),
        (lambda: lif_fire(jnp.ones((2, 3)), LIFParams(1.0, 1.0, surrogate=["relu"])), "unknown surrogate"),
        (lambda: lif_fire(jnp.ones(()), lif_params()), r"currents of shape \(\)"),
        (lambda: lif_fire(jnp.ones((0, 3)), lif_params()), r"currents of shape \(0, 3\)"),
        (lambda: lif_step(lif_params(), jnp.ones(2), jnp.ones(3)), "they must be equal"),
        (lambda: heaviside(1.0, width=0.0), "width is 0.0: it must be a number above 0"),
        (lambda: heaviside(1.0, width=np.inf), "width is inf"),
        (lambda: heaviside(1.0, width=True), "width is True"),
        (lambda: heaviside("x"), "x is 'x'"),
        (lambda: scan_time(None, None, None, ()), "all must be"),
        (lambda: scan_time(None, None, None, (jnp.ones(2), jnp.ones(3))), "all must be"),
        (lambda: expg_charge(lambda s: s, jnp.ones((3, 1)), CODE), "the first axis must be T = 4"),
        (lambda: SpikeCode(True, 2), "groups is True: it must be a whole number"),
        (lambda: SpikeCode(2.0, 2), "groups is 2.0: it must be a whole number"),
        (lambda: SpikeCode(2, "2"), "steps_per_group is '2'"),
        (lambda: SpikeCode(2, 2, cap=1.0), "cap is 1.0"),
        (lambda: SpikeCode(2, 2, shifts="10"), "shifts are '10'"),
        (lambda: SpikeCode(2, 2, shifts=(1.0, 0)), "shift is 1.0"),
        (lambda: SpikeCode.parse("9" * 5000 + "x2"), "is not a spike code"),
        (lambda: expg_twin(1.0, 1.0, CODE, jnp.int8), "dtype of levels is int8"),
        (lambda: CODE.encode("x"), "levels is 'x'"),
    ],
)
def test_wrong_calls_are_refused_in_one_line(make, says):
    with pytest.raises(ValueError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_code_of_other_whole_numbers_is_the_same_value():
    assert SpikeCode(np.int64(2), np.int32(2), shifts=[np.int64(1), 0]) == SpikeCode.parse("2x2+1,0")
    hash(SpikeCode(2, 2, shifts=[1, 0]))


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int8, jnp.uint8, jnp.float32])
def test_charging_adds_up_narrow_types_and_pytrees(dtype):
    code = SpikeCode.parse("1x8")
    spikes = jnp.ones((8, 2), dtype)
    found = expg_charge(lambda s: {"a": s, "b": (s * 2,)}, spikes, code)
    np.testing.assert_array_equal(found["a"], [255, 255])
    np.testing.assert_array_equal(found["b"][0], [510, 510])


@pytest.mark.parametrize("function", [expg_twin, expg_fire, ladder_levels, expg_spike_count, qcfs_twin])
def test_code_may_be_its_text(function):
    current = jnp.linspace(-1, 9, 40)
    np.testing.assert_array_equal(function(current, 0.5, "2x3/1"), function(current, 0.5, SpikeCode(2, 3, 1)))
    for wrong in ("2by2", None, 22, ("2x2",)):
        with pytest.raises(ValueError, match="is not a spike code: a spike code is written GxK"):
            function(current, 0.5, wrong)


@pytest.mark.parametrize("tau", [-(2**63), 0, 0.5, float("nan"), float("inf"), True], ids=str)
def test_time_constant_that_is_none_is_refused(tau):
    with pytest.raises(ValueError, match="tau is"):
        lif_params(tau)
