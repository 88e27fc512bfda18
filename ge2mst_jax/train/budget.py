"""The spike budget: a controller that steers the spike penalty's weight until the network spends what it may."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_number
from ge2mst_jax.nn import NeuronRecord


class BudgetState(NamedTuple):
    """Of the controller, part of the train state.

    `rate`: smoothed spikes per neuron of the batches (negative before the first); `integral`: of the relative error;
    `ratio`: the averaged network's rate over the training batches' (augmented, batch statistics), smoothed likewise.
    """

    rate: jax.Array
    integral: jax.Array
    ratio: jax.Array


def spike_rate(aux):
    """Mean spikes per neuron and image over every neuron layer but the input code, float32, differentiable.

    Args:
        aux: of a forward pass.

    Returns:
        Scalar.
    """
    records = [r for r in aux.values() if isinstance(r, NeuronRecord) and r.parts]
    neurons = sum(r.shape[0] * r.shape[1] * r.shape[2] for r in records)
    return sum(jnp.mean(r.activity) for r in records) / neurons


def init_budget() -> BudgetState:
    """No rate seen, no integral, and a ratio of 1."""
    return BudgetState(jnp.full((), -1.0), jnp.zeros(()), jnp.ones(()))


def relative_error(state: BudgetState, budget: float):
    """`r̄·ratio/budget - 1`, 0 before the first batch.

    >>> float(relative_error(BudgetState(jnp.array(0.5), jnp.array(0.0), jnp.array(1.2)), 0.3))
    1.0
    """
    return jnp.where(state.rate < 0, 0.0, state.rate * state.ratio / budget - 1)


def penalty(state: BudgetState, budget: float, gain: float):
    """The weight of the spike penalty, `λ = gain·(e + ∫e)`; negative where the network spends too little.

    The proportional half is the gradient of `gain·budget/2·e²`: it pulls towards the budget from both sides; the
    integral removes the error that a steady pull leaves.
    """
    check_number("budget", budget, 0, 8, above=True)
    check_number("gain", gain, 0, 1e6)
    return gain * (relative_error(state, budget) + state.integral)


def steer(state: BudgetState, rate, budget: float, smoothing: float = 0.9, pace: float = 0.01) -> BudgetState:
    """One step of the controller, after a batch that spent `rate` spikes per neuron.

    The integral grows by `pace·clip(e, -0.2, 0.2)`: far from the budget the proportional half does the work, and
    nothing winds up.

    >>> state = steer(init_budget(), jnp.array(0.6), 0.3)
    >>> float(state.rate), float(state.integral)
    (0.6000000238418579, 0.0020000000949949026)
    """
    check_number("budget", budget, 0, 8, above=True)
    check_number("smoothing", smoothing, 0, 1)
    check_number("pace", pace, 0, 1)
    state = state._replace(rate=jnp.where(state.rate < 0, rate, smoothing * state.rate + (1 - smoothing) * rate))
    error = jnp.clip(relative_error(state, budget), -0.2, 0.2)
    return state._replace(integral=state.integral + pace * error)


def calibrate(state: BudgetState, averaged_rate, rate, smoothing: float = 0.8) -> BudgetState:
    """Takes in what the averaged network spends on the images of a batch that spent `rate`: the budget is its.

    >>> float(calibrate(init_budget(), jnp.array(0.6), jnp.array(0.5), smoothing=0.0).ratio)
    1.2000000476837158
    """
    check_number("smoothing", smoothing, 0, 1)
    measured = averaged_rate / jnp.maximum(rate, 1e-6)
    return state._replace(ratio=smoothing * state.ratio + (1 - smoothing) * measured)
