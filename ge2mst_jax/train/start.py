"""Where a run starts when it is not from a seed: the averaged network of another run."""

import functools
import logging
import os

import jax
import jax.numpy as jnp
from flax import traverse_util

from ge2mst_jax.checks import shown
from ge2mst_jax.data.pipeline import train_batches
from ge2mst_jax.data.plan import BatchPlan
from ge2mst_jax.data.prefetch import local_part, prefetch_to_device
from ge2mst_jax.models import PEERS, Ge2mST
from ge2mst_jax.nn import TIMED
from ge2mst_jax.train.from_ann import BATCHES, of_other_codes, spiking_start
from ge2mst_jax.train.restore import load_averaged
from ge2mst_jax.train.setup import Setup
from ge2mst_jax.train.sharding import batch_sharding, replicated
from ge2mst_jax.train.step import TrainState, teach

log = logging.getLogger(__name__)

#: Neurons that learn a threshold, which a network of relu neurons gives them to start with.
LEARNED = ("expg", "qcfs")
#: Fields of a network that change what it computes, and none of its parameters.
COMPUTED = ("neuron", "code", "qk_code", "attention", "scales", "lif", "input_code")
#: Of our networks, whose images may have another number of channels; peers, whose images are shifted, may not.
STEM = "params/stem/synapse/kernel"


def batches_of(setup: Setup, source):
    """A run's training batches, from its first."""
    config, sharding = setup.config, batch_sharding(setup.mesh)
    plan = BatchPlan(config.batch_size, *local_part(sharding, config.batch_size), config.workers, config.decode)
    return train_batches(source, plan, config.seed)


def teacher_of(setup: Setup, classes, which: int | str = "best"):
    """`(teach, step)`: the teacher of a run, `(step, batch, key) -> logits`, and of which step its network is.

    Args:
        setup: of the run; its config has `distill_from`.
        classes: names of the run's classes, in order.
        which: of the teacher's checkpoints.

    Raises:
        CheckpointError: no such run.
        ValueError: a teacher of other images or classes.
    """
    config, mesh = setup.config, setup.mesh
    model, variables, about = load_averaged(config.distill_from, which, mesh)
    for what, its, ours in (
        ("images", tuple(about["image_shape"]), tuple(setup.image_shape)),
        ("classes", about["classes"], list(classes)),
    ):
        if its != ours:
            raise ValueError(
                f"distill_from: the network of {config.distill_from} knows {what} {shown(its)}, not {shown(ours)}"
            )
    if others(about, list(classes), config.data):
        log.warning(
            "%s, the teacher, was trained on %s: its classes have the same numbers, but are they the same?",
            config.distill_from,
            about["config"]["data"],
        )
    model = model.clone(capture="none")
    # Its variables are an argument: as constants they would be compiled into the program.
    logits = jax.jit(functools.partial(teach, model=model, config=config), out_shardings=batch_sharding(mesh))
    return functools.partial(logits, jax.device_put(variables, replicated(mesh))), about["step"]


def from_another_run(setup: Setup, state: TrainState, classes, batches, say) -> TrainState:
    """The state of a run that starts from the averaged network of `setup.config.init_from`.

    Every array is copied, but for: the head, which starts anew where the classes are others; a stem of another number
    of channels (`fit_channels`); and thresholds. Those of neurons that learn one come from activations where the other
    run's are relu (`spiking_start`), and keep the largest value `θ·L` where its code was another. Where neurons, codes
    or attention changed, BatchNorm's statistics are measured anew.

    Args:
        setup: of the run.
        state: its own first one.
        classes: names of the run's classes, in order.
        batches: makes its training batches.
        say: is told, in a line, what was done beside copying.

    Raises:
        CheckpointError: no such run.
        ValueError: a network of other arrays, or of neurons that give this one's no thresholds.
    """
    config, mesh, model = setup.config, setup.mesh, setup.model
    found, given, about = load_averaged(config.init_from, mesh=mesh)
    found = found.clone(num_classes=model.num_classes)  # as its arrays will be
    from_ann = found.neuron == "relu" != config.neuron
    if from_ann and config.neuron not in LEARNED:
        raise ValueError(
            f"init_from: {config.init_from} is a run of relu neurons, whose activations give thresholds to "
            f"{' and '.join(LEARNED)} neurons, not to {config.neuron}"
        )
    anew = others(about, list(classes), config.data)
    fitted = fit_to(given, state.ema, about, anew, config.init_from, from_ann, say)
    fields = [name for name in COMPUTED if name != "lif" or model.neuron in TIMED]
    ours = isinstance(model, Ge2mST) and isinstance(found, Ge2mST)  # a peer's arrays are what it is, whatever T
    changed = [name for name in fields if getattr(found, name) != getattr(model, name)] if ours else []
    if changed:
        with prefetch_to_device(batches(), batch_sharding(mesh), 1) as stream:
            images = [next(stream)["image"] for _ in range(BATCHES)]
    if from_ann:
        fitted = spiking_start(found, fitted, model, state.ema, images)
        say(f"thresholds of {config.neuron} neurons from the activations of {BATCHES} batches in a network of relu")
    elif changed:
        fitted = of_other_codes(found, fitted, model, images)
    if changed:
        say(f"other {', '.join(changed)}: BatchNorm's statistics are those of {BATCHES} batches")
    copies = jax.tree.map(lambda new, like: jax.device_put(new, like.sharding), fitted, state.ema)
    return state.replace(
        params=jax.tree.map(lambda x: x.copy(), copies["params"]),
        batch_stats=jax.tree.map(lambda x: x.copy(), copies["batch_stats"]),
        ema=copies,
    )


def others(about: dict, classes: list[str], data: str) -> bool:
    """Whether classes are others than those of another run: by name; numbers are names within one data set alone.

    >>> about = {"classes": ["0", "1"], "config": {"data": "digits"}}
    >>> others(about, ["0", "1"], "digits"), others(about, ["0", "1"], "folder:clothes")
    (False, True)
    """
    numbers = all(name.isdecimal() for name in classes)
    return about["classes"] != classes or (numbers and data_set(about["config"]["data"]) != data_set(data))


def data_set(data: str) -> str:
    """A data set's address, however it is spelled: folders by where they are, TFDS sets without their version.

    >>> data_set("tfds:mnist:3.0.1"), data_set("folder:/a/../b/")
    ('tfds:mnist', 'folder:/b')
    """
    kind, _, place = data.partition(":")
    if kind in ("folder", "idx"):
        return f"{kind}:{os.path.realpath(place)}"
    return ":".join(data.split(":")[:2])


def fit_to(given, initial, about: dict, anew: bool, path, from_ann: bool, say) -> dict:
    """Another run's variables as those of this one; `initial`'s where the other's have no meaning here, as the head
    where it starts `anew`.

    Raises:
        ValueError: names what else differs.
    """
    if anew:
        say(f"the head starts anew: the {len(about['classes'])} classes of {path} are others")
    given, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (given, initial))
    if from_ann:
        wanted = {name: like for name, like in wanted.items() if not name.endswith("/raw")}
    made, differing = {}, [f"{name} is there and not here" for name in given.keys() - wanted.keys()]
    for name, like in wanted.items():
        array = given.get(name)
        if anew and name.startswith("params/head/"):
            array = like
        elif name == STEM and array is not None and array.shape != like.shape:
            array = fit_channels(array, like.shape[2])
        if array is None or array.shape != like.shape:
            differing.append(f"{name} is {getattr(array, 'shape', 'absent')} there, {like.shape} here")
        made[name] = array
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        config = about["config"]
        network = config["model"] if config["model"] in PEERS else f"{config['model']}, {config['neuron']}"
        raise ValueError(
            f"init_from: the network of {path} ({network}) does not fit: {'; '.join(sorted(differing)[:3])}{more}"
        )
    if STEM in made and made[STEM].shape != given[STEM].shape:
        say(f"the stem's kernel: {given[STEM].shape[2]} channels of {path} made {made[STEM].shape[2]}")
    return traverse_util.unflatten_dict(made, sep="/")


def fit_channels(kernel, channels: int):
    """A stem's kernel `[k, k, C, C']` for another number of channels: `1 -> n` shares it out equally, `n -> 1` adds it
    up, so that a grey image gives the same currents; another number is left as it is.

    >>> fit_channels(jnp.ones((3, 3, 1, 2)), 3).sum(2)[0, 0].round(5).tolist()
    [1.0, 1.0]
    """
    if kernel.shape[2] == 1:
        return jnp.repeat(kernel, channels, 2) / channels
    return jnp.sum(kernel, 2, keepdims=True) if channels == 1 else kernel
