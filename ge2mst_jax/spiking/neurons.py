"""Spiking neurons as pure steps, `step(params, state, input) -> (state, output)`, scanned over time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ge2mst_jax.spiking.codes import SpikeCode
from ge2mst_jax.spiking.scan import scan_time
from ge2mst_jax.spiking.surrogate import heaviside


class ExpGParams(NamedTuple):
    """Of ExpG-IF: the threshold `θ > 0` (value of one level) and the most spikes a group may fire."""

    threshold: jax.Array
    cap: int | None = None


class ExpGState(NamedTuple):
    """Of ExpG-IF: the membrane `V` and the spikes fired so far in the current temporal group."""

    membrane: jax.Array
    fired: jax.Array


def charge_step(params, membrane, inputs):
    """One step of charging, `V ← V + w_t · x_t`.

    Args:
        params: unused (`None`): charging has no parameters.
        membrane: `V`, any shape.
        inputs: `(w_t, x_t)`: the step's weight and what its spikes brought, `x_t = W s_t`.

    Returns:
        `(V, None)`.

    >>> charge_step(None, jnp.array(0.5), (2.0, jnp.array(0.25)))[0]
    Array(1., dtype=float32, weak_type=True)
    """
    weight, arrived = inputs
    return membrane + weight * arrived, None


def fire_step(params: ExpGParams, state: ExpGState, inputs):
    """One step of firing, `s_t = [V >= θ w_t]` and not refractory, `V ← V - θ w_t s_t`.

    Args:
        params: `ExpGParams`; the threshold broadcasts against the membrane's last axes.
        state: `ExpGState`.
        inputs: `(w_t, starts)`: the step's weight, and whether it starts a temporal group.

    Returns:
        The next state and the spikes, 0 or 1 in the membrane's dtype.

    >>> state = ExpGState(jnp.array([5.0, 1.0]), jnp.zeros(2))
    >>> fire_step(ExpGParams(jnp.array(1.0)), state, (jnp.array(2.0), True))[1]
    Array([1., 0.], dtype=float32)
    """
    weight, starts = inputs
    step = params.threshold * weight
    fired = jnp.where(starts, 0, state.fired)
    fires = state.membrane >= step
    if params.cap is not None:
        fires = fires & (fired < params.cap)
    spikes = fires.astype(state.membrane.dtype)
    # Selected, not multiplied: a spike gates the subtraction.
    membrane = jnp.where(fires, state.membrane - step, state.membrane)
    return ExpGState(membrane, fired + spikes), spikes


def expg_charge(linear_map, spikes, code: SpikeCode):
    """Current that a spike train causes, `Σ_t w_t · (W s_t)`, one step at a time.

    Args:
        linear_map: `W`, from one step's spikes `[...]` to what arrives.
        spikes: `[T, ...]`, 0 or 1, floating.
        code: the sender's code.

    Returns:
        The shape of `linear_map(spikes[0])`.

    >>> code = SpikeCode.parse("2x2")
    >>> expg_charge(lambda s: 0.5 * s, code.encode(jnp.array([5.0])), code)
    Array([2.5], dtype=float32)
    """
    weights = jnp.asarray(code.step_weights, spikes.dtype)

    def step(params, membrane, inputs):
        weight, arriving = inputs
        return charge_step(params, membrane, (weight, linear_map(arriving)))

    first = weights[0] * linear_map(spikes[0])
    return first if code.num_steps == 1 else scan_time(step, None, first, (weights[1:], spikes[1:]), unroll=False)[0]


def expg_fire(current, threshold, code: SpikeCode):
    """Spike train of ExpG-IF neurons: the membrane starts at `I + θ/2` and fires greedily.

    `s_t = [V ≥ θ w_t]` (and not refractory), `V ← V - θ w_t s_t`, for `t = 0..T-1`. Layer-synchronous: `current`
    is the sum over the sender's whole spike train, so a layer adds `T` steps of latency. Where `I`, `θ`
    and `θ/2` lie on one fixed-point grid within its bound, `code.decode` of the result is `expg_twin`.

    Args:
        current: `I`, `[...]`, floating.
        threshold: `θ > 0`, scalar or broadcasting to `current`.
        code: the neuron's code.

    Returns:
        Spikes `[T, ...]`, 0 or 1 in the current's dtype.

    Source: our reading of the abstract of arXiv:2604.08894; greedy firing as in FS neurons
    (Stöckl & Maass 2021).

    >>> code = SpikeCode.parse("2x2")
    >>> expg_fire(jnp.array([0.9, 2.5, 100.0]), 1.0, code).T
    Array([[0., 1., 0., 0.],
           [1., 1., 0., 0.],
           [1., 1., 1., 1.]], dtype=float32)
    """
    current = jnp.asarray(current)
    threshold = jnp.asarray(threshold, current.dtype)
    membrane = current + align(threshold / 2, current)
    params = ExpGParams(align(threshold, current), code.cap)
    starts = jnp.asarray([t % code.steps_per_group == 0 for t in range(code.num_steps)])
    weights = jnp.asarray(code.step_weights, current.dtype)
    return scan_time(fire_step, params, ExpGState(membrane, jnp.zeros_like(membrane)), (weights, starts))[1]


def align(x, like):
    """Views `x` over the last axes of `like`, rank for rank: broadcasting that says what it means.

    >>> align(jnp.ones(3), jnp.ones((2, 4, 3))).shape
    (1, 1, 3)
    """
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


class LIFParams(NamedTuple):
    """Of a (leaky) integrate-and-fire neuron: `V ← leak·V + gain·x`, spike at `threshold`."""

    leak: jax.Array | float
    gain: jax.Array | float
    threshold: jax.Array | float = 1.0
    reset: str = "soft"
    surrogate: str = "triangle"


RESETS = ("soft", "hard")


def if_params(**changes) -> LIFParams:
    """Integrate-and-fire: no leak, `V ← V + x`.

    >>> if_params().leak
    1.0
    """
    return LIFParams(1.0, 1.0, **changes)


def lif_params(tau: float = 2.0, **changes) -> LIFParams:
    """Leaky integrate-and-fire: `V ← V + (x - V)/τ`, `τ >= 1` in steps.

    >>> lif_params(4.0).leak
    0.75
    """
    if not tau >= 1:
        raise ValueError(f"tau is {tau}: a leaky neuron's time constant is at least 1 step")
    return LIFParams(1.0 - 1.0 / tau, 1.0 / tau, **changes)


def plif_params(raw_leak, **changes) -> LIFParams:
    """Parametric LIF (Fang et al. 2021): `1/τ = σ(raw_leak)` is learned, one scalar a layer.

    >>> plif_params(jnp.array(0.0)).gain
    Array(0.5, dtype=float32, weak_type=True)
    """
    gain = jax.nn.sigmoid(raw_leak)
    return LIFParams(1.0 - gain, gain, **changes)


def lif_step(params: LIFParams, membrane, current):
    """One step: charge `V ← leak·V + gain·x`, fire `s = [V ≥ θ]`, reset `V ← V - θs` (soft) or `V(1-s)` (hard).

    The spike's gradient is the surrogate's; the reset passes none (it is detached).

    Args:
        params: `LIFParams`.
        membrane: `V`, any shape.
        current: `x`, the same shape.

    Returns:
        `(membrane, spikes)`.

    Raises:
        ValueError: an unknown reset.

    >>> lif_step(lif_params(2.0), jnp.array([0.0, 1.0]), jnp.array([1.0, 1.5]))
    (Array([0.5 , 0.25], dtype=float32), Array([0., 1.], dtype=float32))
    """
    if params.reset not in RESETS:
        raise ValueError(f"unknown reset {params.reset!r}: known are {', '.join(RESETS)}")
    membrane = params.leak * membrane + params.gain * current
    spikes = heaviside(membrane - params.threshold, params.surrogate)
    fired = jax.lax.stop_gradient(spikes)
    if params.reset == "soft":
        membrane = membrane - params.threshold * fired
    else:
        membrane = membrane * (1.0 - fired)
    return membrane, spikes


def lif_fire(currents, params: LIFParams):
    """Spike train of (leaky) integrate-and-fire neurons whose current arrives step by step.

    Args:
        currents: `[T, ...]`, floating.
        params: from `if_params`, `lif_params` or `plif_params`.

    Returns:
        Spikes `[T, ...]`.

    >>> lif_fire(jnp.full((4, 1), 0.6), if_params())[:, 0]
    Array([0., 1., 0., 1.], dtype=float32)
    """
    return scan_time(lif_step, params, jnp.zeros_like(currents[0]), currents)[1]
