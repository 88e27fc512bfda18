"""Spiking neurons as pure steps, `step(params, state, input) -> (state, output)`, scanned over time."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_choice, check_number
from ge2mst_jax.spiking.codes import SpikeCode
from ge2mst_jax.spiking.operands import (
    align,
    as_floats,
    as_numbers,
    charged,
    check_known,
    forward_only,
    meant,
    operands,
)
from ge2mst_jax.spiking.scan import scan_time
from ge2mst_jax.spiking.surrogate import SURROGATES, heaviside


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
        inputs: `(w_t, x_t)`: the step's weight and what its spikes brought, `x_t = W s_t`; `V` and `x_t` may be
            pytrees of arrays.

    Returns:
        `(V, None)`.

    >>> charge_step(None, jnp.array(0.5), (2.0, jnp.array(0.25)))[0]
    Array(1., dtype=float32)
    """
    weight, arrived = inputs
    return jax.tree.map(lambda v, x: v + jnp.asarray(weight, x.dtype) * x, membrane, arrived), None


def fire_step(params: ExpGParams, state: ExpGState, inputs):
    """One step of firing, `s_t = [V >= θ w_t]` and not refractory, `V ← V - θ w_t s_t`; it passes no gradient.

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
    membrane = forward_only(state.membrane)
    step = params.threshold * weight
    fired = jnp.where(starts, 0, state.fired)
    fires = membrane >= step
    if params.cap is not None:
        fires = fires & (fired < params.cap)
    spikes = fires.astype(membrane.dtype)
    # Selected, not multiplied: a spike gates the subtraction.
    membrane = jnp.where(fires, membrane - step, membrane)
    return ExpGState(membrane, fired + spikes), spikes


def expg_charge(linear_map, spikes, code: SpikeCode):
    """Current that a spike train causes, `Σ_t w_t · (W s_t)`, one step at a time.

    Args:
        linear_map: `W`, from one step's spikes `[...]` to what arrives: an array, or a pytree of arrays.
        spikes: `[T, ...]`, 0 or 1, floating or integer; bools become int32.
        code: the sender's code.

    Returns:
        The shape of `linear_map(spikes[0])`, in its types; narrow integers are added up in int32.

    Raises:
        ValueError: spikes that are no numbers, or not of the code's `T` steps.

    >>> code = SpikeCode.parse("2x2")
    >>> expg_charge(lambda s: 0.5 * s, code.encode(jnp.array([5.0])), code)
    Array([2.5], dtype=float32)
    """
    code = SpikeCode.of(code)
    spikes = code.check_train(as_numbers("spikes", spikes))
    weights = jnp.asarray(code.step_weights)

    def arrive(arriving):
        return jax.tree.map(widened, linear_map(arriving))

    def step(params, membrane, inputs):
        weight, arriving = inputs
        return charge_step(params, membrane, (weight, arrive(arriving)))

    first = jax.tree.map(lambda x: jnp.asarray(weights[0], x.dtype) * x, arrive(spikes[0]))
    return first if code.num_steps == 1 else scan_time(step, None, first, (weights[1:], spikes[1:]), unroll=False)[0]


def widened(x):
    """Integers that may be too narrow for a sum of levels, as int32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.int32)) if not jnp.issubdtype(x.dtype, jnp.floating) else x


def expg_fire(current, threshold, code: SpikeCode):
    """Spike train of ExpG-IF neurons: the membrane starts at `I + θ/2` and fires greedily.

    `s_t = [V ≥ θ w_t]` (and not refractory), `V ← V - θ w_t s_t`, for `t = 0..T-1`. Layer-synchronous: `current`
    is the sum over the sender's whole spike train, so a layer adds `T` steps of latency. `code.decode` of the result
    is `expg_twin`, exactly, where both are integers, where both are bfloat16 or float16, and where `I`, `θ` and `θ/2`
    lie on one fixed-point grid within its bound; else within a few ulps of a tie.

    Args:
        current: `I`, `[...]`, floating or integer. Integers with an integer threshold are fired in integers; everything
            else in float32 (float64 where an argument is). A nan fires nothing.
        threshold: `θ`, scalar or broadcasting to `current`'s last axes, above 0 and finite, `1e-30..1e30`. One
            that only shows inside `jit` and is not so fires nothing, as its twin's level is 0.
        code: the neuron's, or its text.

    Returns:
        Spikes `[T, ...]`, 0 or 1 in the current's floating type, or int32.

    Raises:
        ValueError: no numbers, a known threshold out of range, one that is broader than the current; or a gradient is
            asked for: firing passes none, train with `expg_activation` or `expg_twin`.

    Source: our reading of the abstract of arXiv:2604.08894; greedy firing as in FS neurons
    (Stöckl & Maass 2021).

    >>> code = SpikeCode.parse("2x2")
    >>> expg_fire(jnp.array([0.9, 2.5, 100.0]), 1.0, code).T
    Array([[0., 1., 0., 0.],
           [1., 1., 0., 0.],
           [1., 1., 1., 1.]], dtype=float32)
    """
    code = SpikeCode.of(code)
    current, theta, dtype = operands(current, threshold, code.max_level)
    current, theta = meant(current, theta, code.max_level)
    membrane = charged(current, theta)
    starts = jnp.asarray([t % code.steps_per_group == 0 for t in range(code.num_steps)])
    weights = jnp.asarray(code.step_weights, membrane.dtype)
    state = ExpGState(membrane, jnp.zeros_like(membrane))
    return scan_time(fire_step, ExpGParams(theta, code.cap), state, (weights, starts))[1].astype(dtype)


class LIFParams(NamedTuple):
    """Of a (leaky) integrate-and-fire neuron: `V ← leak·V + gain·x`, spike at `threshold`."""

    leak: jax.Array | float
    gain: jax.Array | float
    threshold: jax.Array | float = 1.0
    reset: str = "soft"
    surrogate: str = "triangle"
    width: float = 1.0


RESETS = ("soft", "hard")


@dataclasses.dataclass(frozen=True)
class LIFSettings:
    """What all `lif`, `plif` or `if` neurons of a network are set to: by default as spiking transformers set them.

    Source: Spikformer, Spike-driven Transformer and SpikingResformer agree on `τ = 2` with a decayed input, a threshold
    of 1 and a detached hard reset. The surrogate is SpikingResformer's, SpikingJelly's ATan of α = 2; the other two
    train with the Sigmoid of α = 4 that SpikingJelly 0.0.0.0.12 takes by itself, here `sigmoid` of width 1.

    Raises:
        ValueError: a number out of range, an unknown reset or surrogate.

    >>> LIFSettings(tau=0.5)
    Traceback (most recent call last):
    ValueError: lif.tau is 0.5: it must be a number above 1 and at most 1e+06
    """

    tau: float = 2.0
    """Time constant in steps, above 1: a current counts 1/tau. plif learns its own from here; if has none."""
    threshold: float = 1.0
    """Of the membrane, at which a neuron fires."""
    reset: str = "hard"
    """Of the membrane after a spike: hard (0 is left) or soft (what is above the threshold is left)."""
    surrogate: str = "arctan"
    """Of the step function in the backward pass: triangle, arctan or sigmoid."""
    width: float = 1.0
    """Of the surrogate, 1/width being its height: ATan of alpha is arctan of 2/alpha, Sigmoid sigmoid of 4/alpha."""

    def __post_init__(self):
        for name, low in (("tau", 1), ("threshold", 0), ("width", 0)):
            object.__setattr__(self, name, check_number(f"lif.{name}", getattr(self, name), low, 1e6, above=True))
        check_choice("lif.reset", self.reset, RESETS)
        check_choice("lif.surrogate", self.surrogate, SURROGATES)


def if_params(**changes) -> LIFParams:
    """Integrate-and-fire: no leak, `V ← V + x`.

    >>> if_params().leak
    1.0
    """
    return LIFParams(1.0, 1.0, **changes)


def lif_params(tau=2.0, **changes) -> LIFParams:
    """Leaky integrate-and-fire: `V ← V + (x - V)/τ`, `τ >= 1` in steps.

    Args:
        tau: a number, or an array with one for each neuron that broadcasts to the current's last axes; may be traced.
        changes: other fields of `LIFParams`.

    Raises:
        ValueError: a known `τ` that is no finite number of at least 1.

    >>> lif_params(4.0).leak
    0.75
    """
    if isinstance(tau, bool):
        raise ValueError(f"tau is {tau}: it must be finite and at least 1 step")
    tau = float(tau) if isinstance(tau, int | float) else as_floats("tau", tau)
    check_known("tau", jnp.asarray(tau), lambda t: (t >= 1) & (t < jnp.inf), "finite and at least 1 step")
    return LIFParams(1.0 - 1.0 / tau, 1.0 / tau, **changes)


def plif_params(raw_leak, **changes) -> LIFParams:
    """Parametric LIF (Fang et al. 2021): `1/τ = σ(raw_leak)` is learned, one scalar a layer or one a neuron.

    >>> plif_params(jnp.array(0.0)).gain
    Array(0.5, dtype=float32, weak_type=True)
    """
    gain = jax.nn.sigmoid(as_floats("raw_leak", raw_leak))
    return LIFParams(1.0 - gain, gain, **changes)


def lif_step(params: LIFParams, membrane, current):
    """One step: charge `V ← leak·V + gain·x`, fire `s = [V ≥ θ]`, reset `V ← V - θs` (soft) or `V(1-s)` (hard).

    The spike's gradient is the surrogate's; the reset passes none (it is detached). Computed in float32, or float64
    where an argument is.

    Args:
        params: `LIFParams`; its numbers broadcast to the current's last axes.
        membrane: `V`, any shape, floating.
        current: `x`, the same shape, floating; integers become float32.

    Returns:
        `(membrane, spikes)`, in the types of membrane and current.

    Raises:
        ValueError: an unknown reset or surrogate, a width out of range, parameters that do not fit the current or,
            where known, are not finite, a known threshold that is not above 0.

    >>> lif_step(lif_params(2.0), jnp.array([0.0, 1.0]), jnp.array([1.0, 1.5]))
    (Array([0.5 , 0.25], dtype=float32), Array([0., 1.], dtype=float32))
    """
    check_choice("reset", params.reset, RESETS)
    membrane, current = as_floats("membrane", membrane), as_floats("current", current)
    if membrane.shape != current.shape:
        raise ValueError(
            f"current of shape {current.shape} under a membrane of shape {membrane.shape}: they must be equal"
        )
    numbers = {name: as_floats(name, getattr(params, name)) for name in ("leak", "gain", "threshold")}
    for name, x in numbers.items():
        check_known(name, x, jnp.isfinite, "finite")
    check_known("threshold", numbers["threshold"], lambda theta: theta > 0, "above 0")
    kind = jnp.result_type(jnp.float32, membrane, current, *numbers.values())
    leak, gain, threshold = (align(x.astype(kind), current, name) for name, x in numbers.items())
    charge = leak * membrane.astype(kind) + gain * current.astype(kind)
    spikes = heaviside(charge - threshold, params.surrogate, params.width)
    fired = jax.lax.stop_gradient(spikes)
    # Selected, not multiplied, where the reset is hard: a membrane may be infinite.
    after = charge - threshold * fired if params.reset == "soft" else jnp.where(fired > 0, 0, charge)
    return after.astype(membrane.dtype), spikes.astype(current.dtype)


def lif_fire(currents, params: LIFParams, membrane=None):
    """Spike train of (leaky) integrate-and-fire neurons whose current arrives step by step.

    Args:
        currents: `[T, ...]`, floating; integers become float32. The membrane is float32, or float64 with its currents.
        params: from `if_params`, `lif_params` or `plif_params`.
        membrane: `V` before the first step, broadcasting to the current's last axes; 0 if none.

    Returns:
        Spikes `[T, ...]`, in the currents' type.

    Raises: as `lif_step`; currents without a time axis.

    >>> lif_fire(jnp.full((4, 1), 0.6), if_params())[:, 0], lif_fire(jnp.full((4, 1), 0.6), if_params(), 0.5)[:, 0]
    (Array([0., 1., 0., 1.], dtype=float32), Array([1., 0., 1., 0.], dtype=float32))
    """
    currents = as_floats("currents", currents)
    if currents.ndim == 0 or currents.shape[0] == 0:
        raise ValueError(f"currents of shape {currents.shape}: they must be [T, ...], of 1 step or more")
    first = jnp.zeros_like(currents[0], jnp.promote_types(currents.dtype, jnp.float32))
    if membrane is not None:
        first += align(as_floats("membrane", membrane).astype(first.dtype), first, "membrane")
    return scan_time(lif_step, params, first, currents)[1]
