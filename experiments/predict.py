"""Classifies image files with a deployed network.

python experiments/predict.py --checkpoint runs/quickstart/checkpoint IMAGE [IMAGE ...]
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table

from ge2mst_jax.convert import load_net
from ge2mst_jax.train.command import run_command


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classifies image files with a deployed network."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files of the network's own size; colour is turned to grey where the network takes one channel."""
    checkpoint: Path = Path("runs/quickstart/checkpoint")
    """What a run wrote."""
    execution: Literal["dense", "spiking"] = "spiking"
    """One pass on levels, or spikes over time: the answer is the same."""


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """One image file as uint8 `[H, W, C]`.

    Raises:
        ValueError: no such file, not an image, or one of another size.
    """
    if not path.is_file():
        raise ValueError(f"no image file at {path}")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if shape[2] == 1 else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
    if pixels.shape[:2] != shape[:2]:
        raise ValueError(
            f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels: this network takes {shape[1]}x{shape[0]}"
        )
    return pixels.reshape(shape)


def main(options: Predict) -> None:
    if not options.images:
        raise ValueError("no image: name at least one image file")
    net = load_net(options.checkpoint)
    images = np.stack([read_image(path, net.image_shape) for path in options.images])
    logits, _ = net(jnp.asarray(images), execution=options.execution)
    table = Table("image", "class", "probability")
    for path, row in zip(options.images, np.asarray(jax.nn.softmax(logits)), strict=True):
        table.add_row(str(path), str(row.argmax()), f"{row.max():.3f}")
    Console().print(table)


if __name__ == "__main__":
    run_command(main, Predict)
