"""Where a run starts when it is not from a seed: the averaged network of another run."""

import functools

import jax

from ge2mst_jax.checks import shown
from ge2mst_jax.data.pipeline import train_batches
from ge2mst_jax.data.plan import BatchPlan
from ge2mst_jax.data.prefetch import local_part, prefetch_to_device
from ge2mst_jax.train.from_ann import BATCHES, spiking_start
from ge2mst_jax.train.restore import load_averaged
from ge2mst_jax.train.setup import Setup
from ge2mst_jax.train.sharding import batch_sharding, replicated
from ge2mst_jax.train.step import TrainState, teach

#: Neurons that learn a threshold, which a network of relu neurons gives them to start with.
LEARNED = ("expg", "qcfs")


def batches_of(setup: Setup, source):
    """A run's training batches, from its first."""
    config, sharding = setup.config, batch_sharding(setup.mesh)
    plan = BatchPlan(config.batch_size, *local_part(sharding, config.batch_size), config.workers, config.decode)
    return train_batches(source, plan, config.seed)


def teacher_of(setup: Setup, classes):
    """`(teach, step)`: the teacher of a run, `(step, batch, key) -> logits`, and of which step its network is.

    Args:
        setup: of the run; its config has `distill_from`.
        classes: names of the run's classes, in order.

    Raises:
        CheckpointError: no such run.
        ValueError: a teacher of other images or classes.
    """
    config, mesh = setup.config, setup.mesh
    model, variables, about = load_averaged(config.distill_from, mesh=mesh)
    for what, its, ours in (
        ("images", tuple(about["image_shape"]), tuple(setup.image_shape)),
        ("classes", about["classes"], list(classes)),
    ):
        if its != ours:
            raise ValueError(
                f"distill_from: the network of {config.distill_from} knows {what} {shown(its)}, not {shown(ours)}"
            )
    model = model.clone(capture="none", drop_path=0.0)
    # Its variables are an argument: as constants they would be compiled into the program.
    logits = jax.jit(functools.partial(teach, model=model, config=config), out_shardings=batch_sharding(mesh))
    return functools.partial(logits, jax.device_put(variables, replicated(mesh))), about["step"]


def from_another_run(setup: Setup, state: TrainState, batches, say) -> TrainState:
    """The state of a run that starts from the averaged network of `setup.config.init_from`.

    Args:
        setup: of the run.
        state: its own first one.
        batches: makes its training batches.
        say: is told, in a line, what was done beside copying.

    Raises:
        CheckpointError: no such run.
        ValueError: a network of other parameters, or of neurons that give this one's no thresholds.
    """
    config, mesh = setup.config, setup.mesh
    found, ema, about = load_averaged(config.init_from, mesh=mesh)
    if found.neuron == "relu" and config.neuron in LEARNED:
        with prefetch_to_device(batches(), batch_sharding(mesh), 1) as stream:
            images = [next(stream)["image"] for _ in range(BATCHES)]
        try:
            ema = spiking_start(found, ema, setup.model, state.ema, images)
        except ValueError as error:
            raise ValueError(f"init_from: {error}") from error
        say(f"thresholds of {config.neuron} neurons from the activations of {BATCHES} batches in a network of relu")
    elif found.neuron == "relu" != config.neuron:
        raise ValueError(
            f"init_from: {config.init_from} is a run of relu neurons, whose activations give thresholds to "
            f"{' and '.join(LEARNED)} neurons, not to {config.neuron}"
        )
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (ema, state.ema)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"init_from: the network of {config.init_from} ({about['config']['model']}) has other parameters"
        )
    copies = jax.tree.map(lambda new, like: jax.device_put(new, like.sharding), ema, state.ema)
    return state.replace(
        params=jax.tree.map(lambda x: x.copy(), copies["params"]),
        batch_stats=jax.tree.map(lambda x: x.copy(), copies["batch_stats"]),
        ema=copies,
    )
