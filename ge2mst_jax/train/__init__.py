"""Configuration, state, step, sharding, checkpoints and loop of training."""

from ge2mst_jax.train.budget import BudgetState, calibrate, init_budget, penalty, spike_rate, steer
from ge2mst_jax.train.checkpoints import Checkpoints, read_about, read_state
from ge2mst_jax.train.config import TrainConfig, as_json, from_json
from ge2mst_jax.train.evaluate import evaluate
from ge2mst_jax.train.loop import Trained, train
from ge2mst_jax.train.metrics import DivergedError, read_metrics
from ge2mst_jax.train.restore import load_averaged
from ge2mst_jax.train.setup import Setup, build_model, set_up
from ge2mst_jax.train.sharding import RULES, Rule, batch_sharding, infer_shardings, make_mesh, replicated
from ge2mst_jax.train.step import TrainState, init_state, learning_rate, make_optimizer, train_step

__all__ = [
    "RULES",
    "BudgetState",
    "Checkpoints",
    "DivergedError",
    "Rule",
    "Setup",
    "TrainConfig",
    "TrainState",
    "Trained",
    "as_json",
    "batch_sharding",
    "build_model",
    "calibrate",
    "evaluate",
    "from_json",
    "infer_shardings",
    "init_budget",
    "init_state",
    "learning_rate",
    "load_averaged",
    "make_mesh",
    "make_optimizer",
    "penalty",
    "read_about",
    "read_metrics",
    "read_state",
    "replicated",
    "set_up",
    "spike_rate",
    "steer",
    "train",
    "train_step",
]
