"""A deployed network from whatever a run left: the folder of a training run, or of a deployed network."""

import dataclasses
from pathlib import Path

from ge2mst_jax.checks import one_line, shown
from ge2mst_jax.convert import DeployedNet, check_network, deploy, load_net
from ge2mst_jax.convert.storage import CheckpointError
from ge2mst_jax.data.decode import DecodeConfig
from ge2mst_jax.train.config import from_json
from ge2mst_jax.train.restore import load_averaged


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
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"no checkpoint at {path}: there is no such folder; give that of a training run or of a deployed network, "
            "e.g. runs/quickstart/checkpoint"
        )
    if not (path / "checkpoints").is_dir():
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


def decoding(net: DeployedNet) -> DecodeConfig | None:
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


def class_names(net: DeployedNet) -> list[str] | None:
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
