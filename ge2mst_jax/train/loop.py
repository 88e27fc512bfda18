"""The loop: epochs of train steps over images in memory."""

import functools

import jax
import numpy as np

from ge2mst_jax.data import Dataset, epoch_batches
from ge2mst_jax.train.budget import calibrate, spike_rate
from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.step import TrainState, init_state, make_optimizer, train_step

#: Training images on which the budget's controller measures the evaluated network, once an epoch.
CALIBRATION_IMAGES = 512


@functools.partial(jax.jit, static_argnames="model")
def evaluated_rate(model, variables, images):
    """Spikes per neuron of the network as it is evaluated, scalar."""
    return spike_rate(model.apply(variables, images)[1])


class DivergedError(ValueError):
    """The loss is not finite; the message names the epoch."""


def fit(model, dataset: Dataset, config: TrainConfig, on_epoch=None) -> tuple[TrainState, list[dict]]:
    """Trains a network; the result depends on the model, the data set and the config alone.

    Args:
        model: from `create_model`.
        dataset: its training images are used.
        config: of the run.
        on_epoch: called with each epoch's metrics (means over its steps).

    Returns:
        The last state (deploy `state.ema`) and every epoch's metrics.

    Raises:
        DivergedError: a loss that is not finite.
    """
    steps_per_epoch = len(dataset.train_images) // config.batch_size
    optimizer = make_optimizer(config, steps_per_epoch)
    state = init_state(model, optimizer, dataset.image_shape, config.seed)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    history = []
    for epoch in range(config.epochs):
        metrics = []
        for images, labels in epoch_batches(
            dataset.train_images, dataset.train_labels, config.batch_size, config.seed, epoch
        ):
            state, step_metrics = train_step(
                state, images, labels, key, model=model, optimizer=optimizer, config=config
            )
            metrics.append(step_metrics)
        metrics = jax.device_get(metrics)
        means = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}
        history.append({"epoch": epoch + 1, **means})
        if not np.isfinite(means["loss"]):
            raise DivergedError(f"the loss is {means['loss']} in epoch {epoch + 1}: lower learning_rate")
        if config.spike_budget is not None:
            rate = evaluated_rate(model, state.ema, dataset.train_images[:CALIBRATION_IMAGES])
            state = state.replace(budget=calibrate(state.budget, rate))
        if on_epoch is not None:
            on_epoch(history[-1])
    return state, history
