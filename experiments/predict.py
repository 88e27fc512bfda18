"""Classifies image files with a deployed network, or with the best network of a training run.

python experiments/predict.py --checkpoint runs/quickstart/checkpoint IMAGE [IMAGE ...]
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ge2mst_jax.checks import one_line
from ge2mst_jax.data.decode import decode, decode_whole, read_file
from ge2mst_jax.folders import as_folders
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.deployed import class_names, decoding, load_deployed

BATCH = 100


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classifies image files with a deployed network."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, turned as their EXIF data say. A network that was trained on files crops and resizes them as in its
    evaluation; another takes its own size alone. Colour is turned to grey where the network takes one channel."""
    checkpoint: Path = Path("runs/quickstart/checkpoint")
    """What a run wrote: the folder of a training run (its best checkpoint is deployed) or of a deployed network."""
    execution: Literal["dense", "spiking"] = "spiking"
    """One pass on levels, or spikes over time: the answer is the same."""

    def __post_init__(self):
        as_folders(self, "checkpoint")


def read_image(path: Path, image_shape: tuple[int, int, int], config=None) -> np.ndarray:
    """One image file as the uint8 `[H, W, C]` that evaluation would make of it.

    Args:
        path: of the file.
        image_shape: what the network takes.
        config: a `DecodeConfig`; if none, the file must be of that size.

    Raises:
        ValueError: no such file, not an image, or one of another size.
    """
    data, channels = read_file(path), image_shape[2]
    if config is not None:
        return decode(data, config, where=str(path), channels=channels)
    pixels = decode_whole(data, where=str(path), channels=channels)
    if pixels.shape != tuple(image_shape):
        height, width, _ = pixels.shape
        raise ValueError(
            f"{path} is {width}x{height} pixels: this network takes {image_shape[1]}x{image_shape[0]} and has no rule "
            "for other sizes (it was not trained on image files)"
        )
    return pixels


def classify(net, images: tuple[Path, ...], execution: str) -> np.ndarray:
    """Probabilities of the classes, `[images, classes]`, a batch of files at a time."""
    config, found = decoding(net), []
    for start in range(0, len(images), BATCH):
        batch = np.stack([read_image(path, net.image_shape, config) for path in images[start : start + BATCH]])
        found.append(np.asarray(jax.nn.softmax(net(jnp.asarray(batch), execution=execution)[0])))
    return np.concatenate(found)


def main(options: Predict) -> None:
    if not options.images:
        raise ValueError("no image: name at least one image file")
    net = load_deployed(options.checkpoint)
    names = class_names(net)
    table = Table("image", "class", "probability")
    for path, row in zip(options.images, classify(net, options.images, options.execution), strict=True):
        best = int(row.argmax())
        name = "" if names is None else f" {names[best]}"
        table.add_row(Text(one_line(path)), Text(one_line(f"{best}{name}")), f"{row[best]:.3f}")
    Console().print(table)
    if names is None:
        print("classes are numbered in the order of the training data's labels: this network does not hold their names")


if __name__ == "__main__":
    run_command(main, Predict)
