"""What a network costs: the memory of its compiled training step, and its time in turns with others."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax import create_model
from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.train import TrainConfig, set_up
from ge2mst_jax.train.sharding import batch_sharding, replicated


def keep_to_one_core() -> None:
    """What starts from now on, XLA's threads too, runs on one core, where the system can do that.

    Sums then have one order, and a rounding that flips a spike does so again.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def one_core_clock():
    """CPU time of this process where it has one core and no accelerator: what others do on that core is left out.

    Elsewhere time as it passes.
    """
    alone = jax.default_backend() == "cpu" and len(os.sched_getaffinity(0)) == 1
    return time.process_time if alone else time.perf_counter


def medians(alternatives: dict, rounds: int, clock=time.perf_counter) -> dict[str, float]:
    """Seconds of each alternative, the median over turns that alternate; the first call of each is not counted."""
    for run in alternatives.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            start = clock()
            jax.block_until_ready(run())
            seconds[name].append(clock() - start)
    return {name: float(np.median(turns)) for name, turns in seconds.items()}


def random_batch(batch_size: int, image_shape, classes: int = 10):
    """Images and labels."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, *image_shape), np.uint8)
    return jnp.asarray(images), jnp.asarray(random.integers(0, classes, batch_size, np.int32))


def random_network(name: str, images, **changes):
    """A network that leaves nothing but logits, and random variables of it."""
    model = create_model(name, capture="none", **changes)
    return model, jax.jit(model.init)(jax.random.key(0), images)


def plain_config(model: str, batch_size: int, **changes) -> TrainConfig:
    """A run's defaults in float32, without augmentation, on one device unless told otherwise."""
    fields = dict(model=model, batch_size=batch_size, dtype="float32", mesh_data=1, augment=AugmentConfig())
    return TrainConfig(**fields | changes)


def training_step(config, image_shape, classes: int = 10):
    """The trainer's own compiled step, and a call of it on one batch."""
    images, labels = random_batch(config.batch_size, image_shape, classes)
    setup = set_up(config, image_shape, classes, 2**16)
    key, states = jax.device_put(jax.random.key(0), replicated(setup.mesh)), [setup.init()]
    batch = jax.device_put({"image": images, "label": labels}, batch_sharding(setup.mesh))
    compiled = setup.step.lower(setup.abstract_state, setup.abstract_batch(), key).compile()

    def run():
        state, metrics = compiled(states.pop(), batch, key)  # which donates the state
        states.append(state)
        return metrics

    return compiled, run


def temporary_bytes(compiled) -> int:
    """Of its temporary arrays, as the compiler says."""
    return compiled.memory_analysis().temp_size_in_bytes
