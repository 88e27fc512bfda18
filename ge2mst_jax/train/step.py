"""Train state and the train step, a pure function."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util

from ge2mst_jax.checks import shown
from ge2mst_jax.data.augment import augment
from ge2mst_jax.train.budget import BudgetState, calibrate, init_budget, penalty, spike_rate, steer
from ge2mst_jax.train.config import TrainConfig

#: The averaged network's spikes are measured every so many steps, where there is a budget.
CALIBRATE_STEPS = 8


@struct.dataclass(eq=False)
class TrainState:
    """All that a step changes."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # running mean of params and batch_stats: what is evaluated and deployed
    budget: BudgetState


def trained(params, freeze: str | None = None):
    """Which parameters are trained: those in whose path the regular expression `freeze` is not found.

    Raises:
        ValueError: no regular expression, or one that is found in no path or in all.

    >>> trained({"a": {"kernel": 1}, "b": {"bias": 2}}, "^a/")
    {'a': {'kernel': False}, 'b': {'bias': True}}
    """
    try:
        found = traverse_util.path_aware_map(
            lambda path, _: freeze is None or not re.search(freeze, "/".join(path)), params
        )
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"freeze is {shown(freeze)}: no regular expression ({error})") from error
    leaves = jax.tree.leaves(found)
    if freeze is not None and (all(leaves) or not any(leaves)):
        which = "no parameter's path" if all(leaves) else "every parameter's path, so that nothing is left to train"
        some = ", ".join(sorted("/".join(path) for path in traverse_util.flatten_dict(params))[:3])
        raise ValueError(f"freeze is {shown(freeze)}: it is found in {which} (they are {some}, ...)")
    return found


def decayed(params, freeze: str | None = None):
    """Which parameters get weight decay: kernels alone, of those that are trained.

    >>> decayed({"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}, "^b/")
    {'a': {'kernel': True, 'bias': False}, 'b': {'kernel': False}}
    """
    return traverse_util.path_aware_map(
        lambda path, free: free and path[-1].startswith("kernel"), trained(params, freeze)
    )


def learning_rate(config: TrainConfig, examples: int) -> optax.Schedule:
    """Linear warm-up, then a cosine, then its last value; of a run over `examples` training images."""
    total = config.num_steps(examples)
    warmup = min(config.in_steps(config.warmup_epochs, examples), total - 1)
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, total, config.final_learning_rate * peak
    )


def make_optimizer(config: TrainConfig, examples: int) -> optax.GradientTransformation:
    """AdamW, gradients clipped by their global norm."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, examples),
            weight_decay=config.weight_decay,
            mask=functools.partial(decayed, freeze=config.freeze),
        ),
    )


def init_state(model, optimizer, image_shape, seed: int) -> TrainState:
    """Parameters from a seed, everything else at its start; jit it with `out_shardings`."""
    variables = dict(model.init(jax.random.key(seed), jnp.zeros((1, *image_shape), jnp.uint8)))
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


#: Logits are divided by so much where a network learns from another's.
TEMPERATURE = 2.0


def distance(logits, taught):
    """`T² · KL(softmax(taught/T) ‖ softmax(logits/T))`, mean over a batch: 0 where both say the same.

    Source: Hinton et al., 2015 (knowledge distillation).

    >>> float(distance(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])))
    0.0
    """
    ours, theirs = (jax.nn.log_softmax(x / TEMPERATURE) for x in (logits, taught))
    return TEMPERATURE**2 * jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - ours), -1))


def loss_function(params, batch_stats, budget, images, targets, taught, key, model, config: TrainConfig):
    """Cross-entropy, or with a teacher's logits `taught` a mean of that and their distance; plus `λ · mean spikes per
    neuron` where there is a budget."""
    (logits, aux), updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key} if config.drop_path else None,
    )
    smoothed = optax.smooth_labels(targets, config.label_smoothing)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, smoothed))
    if taught is not None:
        loss = (1 - config.distill_weight) * loss + config.distill_weight * distance(logits, taught)
    right = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
    metrics = {"loss": loss, "accuracy": jnp.mean(right)}
    if config.spike_budget is not None:
        metrics["spikes_per_neuron"] = rate = spike_rate(aux)
        metrics["penalty"] = penalty(budget, config.spike_budget, config.budget_gain)
        loss = loss + metrics["penalty"] * rate
    return loss, (updates["batch_stats"], metrics)


def gradients_of(state: TrainState, images, targets, taught, key, model, config: TrainConfig):
    """Gradients, new BatchNorm statistics and metrics of a batch, in `config.accumulate` parts one after another."""
    gradient = jax.grad(loss_function, has_aux=True)
    if config.accumulate == 1:
        return gradient(state.params, state.batch_stats, state.budget, images, targets, taught, key, model, config)

    def part(carry, inputs):
        total, batch_stats = carry
        grads, (batch_stats, metrics) = gradient(
            state.params, batch_stats, state.budget, *inputs, model, config
        )  # fmt: skip
        return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

    # Every part takes every `accumulate`th image, so that a batch sharded over devices is cut on each of them.
    def cut(x):
        return jnp.moveaxis(x.reshape(-1, config.accumulate, *x.shape[1:]), 1, 0)

    parts = jax.tree.map(cut, (images, targets, taught))
    start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
    (total, batch_stats), metrics = jax.lax.scan(part, start, (*parts, jax.random.split(key, config.accumulate)))
    mean = jax.tree.map(lambda g: g / config.accumulate, total)
    return mean, (batch_stats, jax.tree.map(lambda m: jnp.mean(m, 0), metrics))


def augmented(batch, step, key, num_classes: int, config: TrainConfig):
    """`(images, targets, key of what else is random)` of a batch at a step: what trains, and what a teacher sees."""
    augment_key, drop_key = jax.random.split(jax.random.fold_in(key, step))
    return *augment(augment_key, batch["image"], batch["label"], num_classes, config.augment), drop_key


def train_step(state: TrainState, batch, key, *, model, optimizer, schedule, config: TrainConfig):
    """One step: augment, gradients, update, steer the budget.

    Args:
        state: what the step changes.
        batch: `image` `[B, H, W, C]` uint8, `label` `[B]` int32, and, of a network that is taught, `taught`
            `[B, classes]`, from `teach`.
        key: of the run; the step's randomness is `fold_in(key, step)`.
        model, optimizer, schedule, config: static.

    Returns:
        The next state and metrics, float32 scalars: `loss`, `accuracy`, `gradient_norm`, `learning_rate`, and, where
        there is a budget, `penalty` and `spikes_per_neuron`: a step counts spikes only for what acts on them
        (evaluation counts them in any case). Gradients are those of the parameters that are not frozen.
    """
    images, targets, drop_key = augmented(batch, state.step, key, model.num_classes, config)
    taught = batch.get("taught")
    gradients, (batch_stats, metrics) = gradients_of(state, images, targets, taught, drop_key, model, config)
    if config.freeze is not None:
        free = trained(state.params, config.freeze)
        gradients = jax.tree.map(lambda g, free: g if free else jnp.zeros_like(g), gradients, free)
    metrics |= {"gradient_norm": optax.tree.norm(gradients), "learning_rate": jnp.float32(schedule(state.step))}
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = average(state.ema, {"params": params, "batch_stats": batch_stats}, state.step, config.ema_decay)
    budget = state.budget
    if config.spike_budget is not None:
        rate = metrics["spikes_per_neuron"]
        measured = functools.partial(calibrate_on, budget, rate, model, ema, batch["image"])
        budget = jax.lax.cond(state.step % CALIBRATE_STEPS == 0, measured, lambda: budget)
        budget = steer(budget, rate, config.spike_budget)
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema, budget), metrics


def teach(variables, step, batch, key, *, model, config: TrainConfig):
    """What a teacher says of a batch as `train_step` will augment it at that step: logits `[B, classes]` float32.

    Args:
        variables: of the teacher.
        step: the state's.
        batch, key: as in `train_step`.
        model, config: the teacher; the config of the network that is taught. Static.
    """
    images, _, _ = augmented(batch, step, key, model.num_classes, config)
    return model.apply(variables, images)[0]


def calibrate_on(budget: BudgetState, rate, model, ema, images) -> BudgetState:
    """The controller after the averaged network has been run on a batch, as it is evaluated."""
    return calibrate(budget, spike_rate(model.apply(ema, images)[1]), rate)
