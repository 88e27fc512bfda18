"""Configuration, state, step and loop of training."""

from ge2mst_jax.train.budget import BudgetState, calibrate, init_budget, penalty, spike_rate, steer
from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.loop import DivergedError, fit
from ge2mst_jax.train.step import TrainState, init_state, make_optimizer, train_step

__all__ = [
    "BudgetState",
    "DivergedError",
    "TrainConfig",
    "TrainState",
    "calibrate",
    "fit",
    "init_budget",
    "init_state",
    "make_optimizer",
    "penalty",
    "spike_rate",
    "steer",
    "train_step",
]
