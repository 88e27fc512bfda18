"""Train state and the train step, a pure function."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from ge2mst_jax.data import random_shift
from ge2mst_jax.train.budget import BudgetState, init_budget, penalty, spike_rate, steer
from ge2mst_jax.train.config import TrainConfig


@struct.dataclass
class TrainState:
    """All that a step changes."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # running mean of params and batch_stats: what is evaluated and deployed
    budget: BudgetState


def decayed(params):
    """Which parameters get weight decay: kernels alone.

    >>> decayed({"a": {"kernel": 1, "bias": 2}})
    {'a': {'kernel': True, 'bias': False}}
    """
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def learning_rate(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to 1 % of the peak."""
    warmup, total = int(config.warmup_epochs * steps_per_epoch), config.epochs * steps_per_epoch
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.learning_rate,
        config.learning_rate,
        warmup,
        max(total, warmup + 1),
        config.learning_rate / 100,
    )


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW with gradients clipped to norm 1."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate(config, steps_per_epoch), weight_decay=config.weight_decay, mask=decayed),
    )


def init_state(model, optimizer, image_shape, seed: int) -> TrainState:
    """Parameters from a seed, everything else at its start."""
    variables = model.init(jax.random.key(seed), jnp.zeros((1, *image_shape), jnp.uint8))
    return TrainState(
        jnp.zeros((), jnp.int32),
        variables["params"],
        variables["batch_stats"],
        optimizer.init(variables["params"]),
        jax.tree.map(jnp.copy, variables),  # a copy: a donated buffer may be given once
        init_budget(),
    )


def average(ema, variables, step, decay: float):
    """One step of the exponential moving average, `min(decay, (1 + step)/(10 + step))` of it old."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, variables)


def loss_function(params, batch_stats, budget, images, labels, model, config: TrainConfig):
    """Cross-entropy, plus `λ · mean spikes per neuron` where there is a budget."""
    variables = {"params": params, "batch_stats": batch_stats}
    (logits, aux), updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    targets = optax.smooth_labels(jax.nn.one_hot(labels, model.num_classes), config.label_smoothing)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
    rate = spike_rate(aux)
    metrics = {"loss": loss, "accuracy": jnp.mean(jnp.argmax(logits, -1) == labels), "spikes_per_neuron": rate}
    if config.spike_budget is not None:
        metrics["penalty"] = penalty(budget, config.spike_budget, config.budget_gain)
        loss = loss + metrics["penalty"] * rate
    return loss, (updates["batch_stats"], metrics)


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "config"), donate_argnames=("state",))
def train_step(state: TrainState, images, labels, key, *, model, optimizer, config: TrainConfig):
    """One step: augment, gradients, update, steer the budget.

    Args:
        state: donated.
        images: `[B, H, W, C]` uint8.
        labels: `[B]` int32.
        key: of the run; the step's randomness is `fold_in(key, step)`.

    Returns:
        The next state and metrics (scalars).
    """
    images = random_shift(jax.random.fold_in(key, state.step), images, config.max_shift)
    gradient = jax.grad(loss_function, has_aux=True)
    gradients, (batch_stats, metrics) = gradient(
        state.params, state.batch_stats, state.budget, images, labels, model, config
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    budget = state.budget
    if config.spike_budget is not None:
        budget = steer(budget, metrics["spikes_per_neuron"], config.spike_budget)
    params = optax.apply_updates(state.params, updates)
    ema = average(state.ema, {"params": params, "batch_stats": batch_stats}, state.step, config.ema_decay)
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema, budget), metrics
