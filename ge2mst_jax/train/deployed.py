"""A network from whatever a run left, deployed or as it was trained: the folder of a run, or of a deployed network."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from ge2mst_jax.checks import check_choice, one_line, shown
from ge2mst_jax.convert import ConversionError, DeployedNet, check_network, deploy, load_net
from ge2mst_jax.convert.storage import CheckpointError
from ge2mst_jax.data import BatchPlan, DecodeConfig, eval_batches
from ge2mst_jax.energy import SpikeCounter
from ge2mst_jax.folders import folder, is_folder
from ge2mst_jax.nn import check_images
from ge2mst_jax.train.config import from_json
from ge2mst_jax.train.restore import load_averaged
from ge2mst_jax.train.scores import Scores, tally

#: How a run's network can be executed: as deployed, twice, or as it was trained.
EXECUTIONS = ("dense", "spiking", "trained")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNet:
    """A network as it was trained, in floating numbers, called as a `DeployedNet` is: for those that are not deployed.

    Args:
        model, variables: from `load_averaged`.
        image_shape: `(H, W, C)`.
        about: as of a `DeployedNet`.
    """

    model: Any
    variables: Any
    image_shape: tuple[int, int, int]
    about: dict
    digest = None

    def __call__(self, images, execution: str = "trained", capture: str = "counts"):
        check_choice("execution of a network as it was trained", execution, ("trained",))
        check_images(images, tuple(self.image_shape))
        return _apply(self.model.clone(capture=capture), self.variables, jnp.asarray(images))


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, images):
    return model.apply(variables, images)


def load_network(path, execution: str, step: int | None = None) -> DeployedNet | TrainedNet:
    """The network of a folder for an execution, one of `EXECUTIONS`; raises as `load_deployed` does.

    Raises:
        ConversionError: it cannot be deployed; says that it can be run as it was trained.
        ValueError: `"trained"` of a deployed network.
    """
    if execution != "trained":
        try:
            return load_deployed(path, step)
        except ConversionError as error:
            raise ConversionError(f"{error} (--execution trained runs it as it was trained)") from error
    path = folder(path)
    if is_folder(path) and not is_folder(path / "checkpoints"):
        raise ValueError(f"execution is 'trained': {one_line(path)} is no run, which alone holds what was trained")
    model, variables, about = load_averaged(path, "best" if step is None else step)
    return TrainedNet(model, variables, tuple(about["image_shape"]), about_images(about))


def load_deployed(path, step: int | None = None) -> DeployedNet:
    """Reads a deployed network, or deploys the averaged network of a training run's checkpoint.

    Args:
        path: a folder that `save_net` wrote, or that of a training run.
        step: of the run's checkpoint; the best one if none.

    Returns:
        The network, checked; of a run, `about` holds `data`, `data_dir`, `classes`, `decode` and `on_corrupt`.

    Raises:
        CheckpointError: there is no such folder, or nothing in it can be read.
        ValueError: a step of a deployed network, which has none.
        ConversionError: a run's network cannot be deployed.
    """
    path = folder(path)
    if not is_folder(path):
        raise CheckpointError(
            f"no checkpoint at {path}: there is no such folder; give that of a training run or of a deployed network, "
            "e.g. runs/quickstart/checkpoint"
        )
    if not is_folder(path / "checkpoints"):
        if step is not None:
            raise ValueError(f"step is {step}: {path} is no folder of a training run, which alone has steps")
        return load_net(path)
    model, variables, about = load_averaged(path, "best" if step is None else step)
    net = deploy(model, variables, about["image_shape"], about=about_images(about))
    check_network(net)
    return net


def about_images(about: dict) -> dict:
    """What a deployed network says of its images, from what a run's checkpoint says of the run.

    `decode` is none where the run's images were arrays in memory, which have one size and are not decoded.
    """
    config, classes = from_json(about["config"]), about["classes"]
    decoded = list(about["image_shape"][:2]) == [config.decode.image_size] * 2
    return {
        "data": config.data,
        "data_dir": None if config.data_dir is None else str(config.data_dir),
        "classes": classes if isinstance(classes, list) else None,
        "decode": dataclasses.asdict(config.decode) if decoded else None,
        "on_corrupt": config.on_corrupt,
    }


def decoding(net: DeployedNet | TrainedNet) -> DecodeConfig | None:
    """How image files become arrays for a network; none where it takes images of its own size alone.

    Raises:
        ValueError: what the network says of it is no `DecodeConfig`, or makes images of another size.
    """
    fields = net.about.get("decode")
    if fields is None:
        return None
    try:
        config = DecodeConfig(**fields)
    except TypeError as error:
        raise ValueError(f"decode of this network is {shown(fields)}: {one_line(error)}") from error
    if tuple(net.image_shape[:2]) != (config.image_size,) * 2:
        raise ValueError(f"decode of this network makes images of {config.image_size}: it takes {net.image_shape}")
    return config


def class_names(net: DeployedNet | TrainedNet) -> list[str] | None:
    """Of a network's classes, in order; none where it doesn't know them.

    Raises:
        ValueError: they are not as many texts as the network has classes.
    """
    names = net.about.get("classes")
    if names is None:
        return None
    number = net.model.num_classes
    if not isinstance(names, list | tuple) or len(names) != number or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes of this network are {shown(names)}: they must be the names of its {number}")
    return list(names)


def first_images(source, plan: BatchPlan, number: int):
    """`(images, labels)`: the first of a split, as evaluation sees them."""
    images, labels, left = [], [], number
    for batch in eval_batches(source, plan):
        seen = np.flatnonzero(batch["mask"])[:left]
        images.append(batch["image"][seen])
        labels.append(batch["label"][seen])
        left -= len(seen)
        if not left:
            break
    return np.concatenate(images), np.concatenate(labels)


def run_over(
    net: DeployedNet | TrainedNet,
    source,
    plan: BatchPlan,
    execution: str,
    limit: int | None,
    console: Console,
    confusion=False,
):
    """A network on a split, every image once, a bar on the console.

    Args:
        net: from `load_network` or `deploy`.
        source: from `open_source`.
        plan: of its batches.
        execution: one of `EXECUTIONS` that the network has.
        limit: the first so many images alone; all if none.
        console: for the bar.
        confusion: whether to count who is taken for whom.

    Returns:
        `(Scores, SpikeCounter)`; the scores also hold how many images were `skipped`: they can't be decoded.

    Raises:
        ValueError: not one image can be decoded.
    """
    network = functools.partial(net, execution=execution)
    return count_over(network, source, plan, f"test, {execution}", limit, console, confusion)


def count_over(
    network, source, plan: BatchPlan, title: str, limit: int | None, console: Console, confusion: bool = False
):
    """`run_over` of any network, from images to `(logits, aux)`; the bar has a title."""
    scores, counter = Scores(), SpikeCounter()
    left = len(source) if limit is None else min(limit, len(source))
    steps = -(-left // plan.batch_size)
    batches = itertools.islice(eval_batches(source, plan), steps)
    for batch in track(batches, title, steps, console=console):
        here = np.arange(len(batch["mask"])) < left
        left -= len(here)
        mask = batch["mask"] * here
        scores.add({"skipped": batch["skipped"][here].sum()})
        if not mask.any():
            continue
        logits, aux = network(jnp.asarray(batch["image"]))
        scores.add(tally(logits, batch["label"], mask, confusion))
        counter.add(aux, np.flatnonzero(mask))
    if not counter.images:
        raise ValueError(f"not one image of the {source.split} split of {source.name} can be decoded")
    return scores, counter
