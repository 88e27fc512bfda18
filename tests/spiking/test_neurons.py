"""Neurons: one step equals the scan equals numbers worked out by hand; the reset passes no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax.spiking import (
    ExpGParams,
    ExpGState,
    LIFParams,
    LIFSettings,
    SpikeCode,
    align,
    charge_step,
    expg_charge,
    expg_fire,
    fire_step,
    if_params,
    lif_fire,
    lif_params,
    lif_step,
    plif_params,
    scan_time,
)

# Currents of two neurons over five steps, in eighths, so that float32 is exact.
CURRENTS = np.array([[0.75, -0.5], [0.75, 1.5], [0.5, 2.0], [0.0, 0.0], [1.25, 0.25]], np.float32)


def by_hand(params, currents):
    """The equations, in numpy, one step after another."""
    membrane, spikes, membranes = np.zeros_like(currents[0]), [], []
    for current in currents:
        membrane = params.leak * membrane + params.gain * current
        fired = membrane >= params.threshold
        membrane = membrane - params.threshold * fired if params.reset == "soft" else membrane * ~fired
        spikes.append(fired)
        membranes.append(membrane)
    return np.array(spikes, np.float32), np.array(membranes, np.float32)


@pytest.mark.parametrize(
    ("params", "spikes", "membranes"),
    [
        (
            if_params(),
            [[0, 0], [1, 1], [1, 1], [0, 1], [1, 0]],
            [[0.75, -0.5], [0.5, 0.0], [0.0, 1.0], [0.0, 0.0], [0.25, 0.25]],
        ),
        (
            if_params(reset="hard"),
            [[0, 0], [1, 1], [0, 1], [0, 0], [1, 0]],
            [[0.75, -0.5], [0.0, 0.0], [0.5, 0.0], [0.5, 0.0], [0.0, 0.25]],
        ),
        (
            lif_params(2.0, threshold=0.5),
            [[0, 0], [1, 1], [0, 1], [0, 0], [1, 0]],
            [[0.375, -0.25], [0.0625, 0.125], [0.28125, 0.5625], [0.140625, 0.28125], [0.1953125, 0.265625]],
        ),
        (
            lif_params(2.0, threshold=0.5, reset="hard"),
            [[0, 0], [1, 1], [0, 1], [0, 0], [1, 0]],
            [[0.375, -0.25], [0.0, 0.0], [0.25, 0.0], [0.125, 0.0], [0.0, 0.125]],
        ),
        (
            plif_params(jnp.array(0.0), threshold=0.5),  # σ(0) = 1/2: the leak of τ = 2
            [[0, 0], [1, 1], [0, 1], [0, 0], [1, 0]],
            [[0.375, -0.25], [0.0625, 0.125], [0.28125, 0.5625], [0.140625, 0.28125], [0.1953125, 0.265625]],
        ),
    ],
    ids=["if", "if-hard", "lif", "lif-hard", "plif"],
)
def test_step_equals_scan_equals_literals(params, spikes, membranes):
    membrane, found = jnp.zeros(2), []
    for current, expected in zip(CURRENTS, membranes, strict=True):
        membrane, fired = lif_step(params, membrane, jnp.asarray(current))
        np.testing.assert_array_equal(membrane, np.float32(expected))
        found.append(np.asarray(fired))
    np.testing.assert_array_equal(found, spikes)
    np.testing.assert_array_equal(lif_fire(jnp.asarray(CURRENTS), params), spikes)
    np.testing.assert_array_equal(jax.jit(lambda x: lif_fire(x, params))(CURRENTS), spikes)


@pytest.mark.parametrize("steps", [4, 20])  # unrolled, and not
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("make", [if_params, lif_params], ids=["if", "lif"])
def test_long_random_trains(make, reset, steps):
    currents = np.float32(np.random.default_rng(steps).integers(-8, 16, (steps, 3, 5)) / 8)
    params = make(reset=reset)
    expected, _ = by_hand(params, currents)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(lif_fire(jnp.asarray(currents), params), expected)


def test_constants_of_the_neurons():
    assert if_params() == LIFParams(1.0, 1.0, 1.0, "soft", "triangle")
    assert (lif_params(4.0).leak, lif_params(4.0).gain) == (0.75, 0.25)
    assert (lif_params(1.0).leak, lif_params(1.0).gain) == (0.0, 1.0)
    plif = plif_params(jnp.array(np.log(3.0), jnp.float32))
    np.testing.assert_allclose([plif.leak, plif.gain], [0.25, 0.75], rtol=1e-6)


@pytest.mark.parametrize("tau", [0.5, 0.0, -1.0, float("nan"), float("inf"), [2.0, 0.5], True, "2"])
def test_time_constant_that_is_none_is_refused(tau):
    with pytest.raises(ValueError, match=r"tau is .*: it must be"):
        lif_params(tau)


def test_unknown_reset_and_surrogate_are_refused_with_those_known():
    with pytest.raises(ValueError, match="unknown reset 'none': known are soft, hard"):
        lif_fire(jnp.zeros((2, 1)), if_params(reset="none"))
    with pytest.raises(ValueError, match="unknown surrogate 'none': known are triangle"):
        lif_fire(jnp.zeros((2, 1)), if_params(surrogate="none"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tau": 1.0}, "lif.tau is 1.0: it must be a number above 1"),
        ({"tau": float("nan")}, "lif.tau is nan"),
        ({"tau": "2"}, "lif.tau is '2'"),
        ({"threshold": 0.0}, "lif.threshold is 0.0: it must be a number above 0"),
        ({"width": -1.0}, "lif.width is -1.0: it must be a number above 0"),
        ({"width": True}, "lif.width is True"),
        ({"reset": "firm"}, "unknown lif.reset 'firm': known are soft, hard"),
        ({"surrogate": "atan"}, "unknown lif.surrogate 'atan': known are triangle, arctan, sigmoid"),
    ],
    ids=str,
)
def test_settings_that_are_none_are_refused_in_one_line(fields, says):
    with pytest.raises(ValueError, match=f"^{says}") as error:
        LIFSettings(**fields)
    assert "\n" not in str(error.value)


def test_a_width_is_the_surrogates():
    for width in (0.5, 2.0):
        slope = jax.grad(lambda x, w=width: lif_fire(x[None], if_params(width=w))[0])(jnp.float32(1.0))
        assert float(slope) == 1 / width


def test_a_membrane_may_be_charged_before_the_first_step():
    currents = jnp.full((4, 2), 0.75)
    np.testing.assert_array_equal(
        lif_fire(currents, if_params(), jnp.array([0.5, 0.0])).T, [[1, 1, 0, 1], [0, 1, 1, 1]]
    )
    np.testing.assert_array_equal(lif_fire(currents, if_params(), 0.0), lif_fire(currents, if_params()))
    with pytest.raises(ValueError, match=r"membrane of shape \(3,\) does not fit shape \(2,\)"):
        lif_fire(currents, if_params(), jnp.zeros(3))


def test_reset_passes_no_gradient():
    # Two steps, both fire: V1 = x1, V2 = V1 - θ·s1 + x2. With the reset detached ∂s2/∂x1 = h(V2 - θ)·1 alone; with it
    # attached there would be another -θ·h(V1 - θ)·h(V2 - θ).
    first, second = 1.25, 1.0  # V1 - θ = 0.25, V2 = 0.25 + 1.0, V2 - θ = 0.25: both bumps are 0.75

    def last_spike(x, reset):
        return lif_fire(jnp.stack([x, jnp.float32(second)]), if_params(reset=reset))[1]

    assert float(jax.grad(last_spike)(first, "soft")) == 0.75
    # Hard: V2 = V1·(1 - s1) + x2 forgets V1 altogether; attached it would be -V1·0.75·0.75.
    assert float(jax.grad(last_spike)(first, "hard")) == 0.0


def test_gradient_through_time_by_hand():
    # No spike: V2 = 0.5·(0.5·x1) + 0.5·x2 = 0.7, so ∂s2/∂(x1, x2) = h(-0.3)·(0.25, 0.5), h(-0.3) = 0.7.
    gradient = jax.grad(lambda x: lif_fire(x, lif_params(2.0))[1])(jnp.array([1.0, 0.9], jnp.float32))
    np.testing.assert_allclose(gradient, [0.175, 0.35], rtol=1e-5)
    # The learned leak: V1 = σ·x, ∂V1/∂raw = σ(1-σ)·x = 0.25·1.
    gradient = jax.grad(lambda raw: lif_fire(jnp.ones((1,)), plif_params(raw))[0])(0.0)
    np.testing.assert_allclose(gradient, 0.5 * 0.25, rtol=1e-6)


# --- ExpG-IF ----------------------------------------------------------------------------------------------------------


def test_charging_by_hand():
    code = SpikeCode.parse("2x2")
    spikes = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])  # levels 4 and 4
    weights = jnp.array([[0.5, -1.0, 0.25], [2.0, 0.125, 0.0]])
    membrane = jnp.zeros(3)
    for step, weight in enumerate(code.step_weights):
        membrane, nothing = charge_step(None, membrane, (weight, spikes[step] @ weights))
        assert nothing is None
    expected = [4 * 0.5 + 4 * 2.0, -4.0 + 0.5, 1.0]
    np.testing.assert_array_equal(membrane, expected)
    np.testing.assert_array_equal(expg_charge(lambda s: s @ weights, spikes, code), expected)


@pytest.mark.parametrize("text", ["1x1", "1x4", "2x2", "4x1", "2x3/1", "2x2+1,0", "1x8", "9x1"])
def test_charging_brings_what_the_levels_bring(text):
    code = SpikeCode.parse(text)
    levels = jnp.asarray(np.resize(code.levels, (4, 6)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (6, 3)) / 8, jnp.float32)
    found = expg_charge(lambda s: s @ weights, code.encode(levels), code)
    np.testing.assert_array_equal(found, np.asarray(levels) @ np.asarray(weights))


@pytest.mark.parametrize(
    ("text", "currents", "trains"),
    [
        ("2x2", [0.49, 0.5, 2.5, 3.5, 9.0], ["0000", "0100", "1100", "1101", "1111"]),
        ("1x4", [-5.0, 4.4, 7.5, 14.49, 14.5], ["0000", "0100", "1000", "1110", "1111"]),
        ("4x1", [0.5, 1.5, 2.49, 3.5, 99.0], ["1000", "1100", "1100", "1111", "1111"]),
        ("2x3/1", [2.5, 5.5, 6.5, 7.49, 7.5], ["010001", "100010", "100010", "100010", "100100"]),
        ("1x1", [-1.0, 0.0, 0.49, 0.5, 7.0], ["0", "0", "0", "1", "1"]),
        ("2x2+1,0", [6.5, 7.5, 8.5, 0.5, 1.5], ["1101", "1110", "1111", "0001", "0100"]),
    ],
)
def test_fire_step_equals_scan_equals_literals(text, currents, trains):
    code = SpikeCode.parse(text)
    expected = np.array([[int(spike) for spike in train] for train in trains], np.float32).T
    np.testing.assert_array_equal(expg_fire(jnp.array(currents), 1.0, code), expected)
    # Currents and threshold scale together; half is exact in float32.
    np.testing.assert_array_equal(expg_fire(jnp.array(currents) / 2, 0.5, code), expected)
    state = ExpGState(jnp.array(currents) + 0.5, jnp.zeros(5))
    for t, weight in enumerate(code.step_weights):
        inputs = jnp.float32(weight), t % code.steps_per_group == 0
        state, spikes = fire_step(ExpGParams(jnp.ones(()), code.cap), state, inputs)
        np.testing.assert_array_equal(spikes, expected[t])


def test_fire_step_state_by_hand():
    params = ExpGParams(jnp.float32(0.5), 1)
    state, spikes = fire_step(
        params, ExpGState(jnp.array([2.25, 0.5]), jnp.array([0.0, 0.0])), (jnp.float32(4.0), True)
    )
    np.testing.assert_array_equal(spikes, [1, 0])
    np.testing.assert_array_equal(state.membrane, [0.25, 0.5])
    np.testing.assert_array_equal(state.fired, [1, 0])
    # The same group: the first neuron is refractory, though its membrane would do.
    state, spikes = fire_step(params, state, (jnp.float32(0.5), False))
    np.testing.assert_array_equal(spikes, [0, 1])
    np.testing.assert_array_equal(state.membrane, [0.25, 0.25])
    np.testing.assert_array_equal(state.fired, [1, 1])
    # The next group: both may fire again.
    state, spikes = fire_step(params, state, (jnp.float32(0.5), True))
    np.testing.assert_array_equal(spikes, [1, 1])
    np.testing.assert_array_equal(state.fired, [1, 1])


def test_thresholds_per_channel_are_aligned_with_the_last_axes():
    currents = jnp.ones((2, 3, 4)) * 3.0
    thresholds = jnp.array([1.0, 2.0, 4.0, 8.0])
    code = SpikeCode.parse("1x4")
    # 3/θ + ½ = 3.5, 2, 1.25, 0.875.
    found = code.decode(expg_fire(currents, thresholds, code))
    np.testing.assert_array_equal(found, np.broadcast_to([3, 2, 1, 0], (2, 3, 4)))
    assert align(jnp.ones(()), currents).shape == (1, 1, 1)
    assert align(jnp.ones((3, 4)), currents).shape == (1, 3, 4)


@pytest.mark.parametrize("length", [1, 8, 9, 30])
def test_scan_time_is_a_loop(length):
    inputs = np.arange(length, dtype=np.float32)
    state, outputs = scan_time(lambda p, v, x: (v + p * x, v), 2.0, jnp.float32(1.0), jnp.asarray(inputs))
    np.testing.assert_array_equal(outputs, 1 + 2 * np.concatenate([[0], np.cumsum(inputs)[:-1]]))
    assert float(state) == 1 + 2 * inputs.sum()


def test_scan_time_compiles_one_step_of_a_long_train():
    text = [str(jax.make_jaxpr(lambda x: lif_fire(x, if_params()))(jnp.zeros((steps, 2)))) for steps in (8, 9)]
    assert "unroll=8" in text[0]
    assert "unroll=1" in text[1]
