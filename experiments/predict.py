"""Classifies image files with a deployed network, or with the best network of a training run.

    python experiments/predict.py --checkpoint runs/quickstart/checkpoint IMAGE_OR_FOLDER [...] [--top 5] [--json True]

Of a folder all images are taken, those of its subfolders too, in alphabetical order. --json prints a JSON object a line
and nothing else: {"image": "a.png", "top": [{"class": 3, "name": "cat", "probability": 0.9}]}, the name null where the
network doesn't know it; of an image that is left out (--on-corrupt skip) {"image": "a.png", "error": "why"}.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import collections
import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from ge2mst_jax.checks import check_whole, cut, one_line
from ge2mst_jax.data.decode import DataError, decode, decode_whole, read_file
from ge2mst_jax.data.folder import images_under
from ge2mst_jax.folders import as_folders
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.deployed import class_names, decoding, load_network

BATCH = 100
UNNAMED = "classes are numbered in the order of the training data's labels: this network does not hold their names"


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classifies image files with the network of a run, or a deployed one."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files and folders of them. Images are turned as their EXIF data say. A network that was trained on files
    crops and resizes them as in its evaluation; another takes its own size alone. Colour is turned to grey where the
    network takes one channel."""
    checkpoint: Path = Path("runs/quickstart/checkpoint")
    """What a run wrote: the folder of a training run (its best checkpoint is deployed) or of a deployed network."""
    execution: Literal["dense", "spiking", "trained"] = "spiking"
    """Deployed, in one pass on levels or in spikes over time, with the same answer; or in floating numbers as it was
    trained, as networks are run that are not deployed."""
    top: int = 1
    """Classes to name of each image, the most probable first."""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """At a file that can't be classified: stop, or say so and go on with the others."""
    json: bool = False
    """Print a JSON object a line in place of the table."""

    def __post_init__(self):
        check_whole("top", self.top, 1, 2**24)
        as_folders(self, "checkpoint")


def read_image(path: Path, image_shape: tuple[int, int, int], config=None) -> np.ndarray:
    """One image file as the uint8 `[H, W, C]` that evaluation would make of it.

    Args:
        path: of the file.
        image_shape: what the network takes.
        config: a `DecodeConfig`; if none, the file must be of that size.

    Raises:
        DataError: no such file, not an image, or one of another size.
    """
    data, channels = read_file(path), image_shape[2]
    if config is not None:
        return decode(data, config, where=str(path), channels=channels)
    pixels = decode_whole(data, where=str(path), channels=channels)
    if pixels.shape != tuple(image_shape):
        height, width, _ = pixels.shape
        raise DataError(
            f"{path} is {width}x{height} pixels: this network takes {image_shape[1]}x{image_shape[0]} and has no rule "
            "for other sizes (it was not trained on image files)"
        )
    return pixels


def files_of(images: tuple[Path, ...]) -> tuple[list[Path], list[Path]]:
    """`(files, others)` that are meant: those of a folder in its place, and what lies there that is no image by its
    suffix.

    Raises:
        ValueError: nothing is named, or a folder holds no images.
    """
    if not images:
        raise ValueError("no image: name at least one image file, or a folder of them")
    files, others = [], []
    for path in images:
        found, beside = images_under(path) if path.is_dir() else ([path], [])
        files += found
        others += beside
    return files, others


def classify(net, files, execution: str, on_corrupt: str = "raise"):
    """Yields `(file, probabilities [classes])` of each file, or `(file, what is wrong with it)`, a batch at a time.

    Raises:
        DataError: a file can't be classified, and is not to be skipped.
    """
    config, size = decoding(net), min(BATCH, len(files))
    for start in range(0, len(files), BATCH):
        batch, wrong = np.zeros((size, *net.image_shape), np.uint8), {}  # of one size: compiled once
        part = files[start : start + BATCH]
        for row, path in enumerate(part):
            try:
                batch[row] = read_image(path, net.image_shape, config)
            except DataError as error:
                if on_corrupt == "raise":
                    raise
                wrong[row] = str(error)
        rows = []
        if len(wrong) < len(part):
            rows = np.asarray(jax.nn.softmax(net(jnp.asarray(batch), execution=execution)[0]))
        yield from ((path, wrong[row] if row in wrong else rows[row]) for row, path in enumerate(part))


def best(probabilities: np.ndarray, names, top: int) -> list[dict]:
    """The most probable classes; of equal ones the lower number first."""
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [
        {"class": n, "name": None if names is None else names[n], "probability": float(probabilities[n])} for n in order
    ]


def said(answers, names, top: int):
    """An object for each answer, as `--json` prints it. What is left out is said on stderr, too.

    Raises:
        ValueError: in the end, if there was not one image.
    """
    seen = collections.Counter()
    for path, answer in answers:
        left_out = isinstance(answer, str)
        seen[left_out] += 1
        if left_out:
            print(f"left out: {answer}", file=sys.stderr)
        yield {"image": str(path)} | ({"error": answer} if left_out else {"top": best(answer, names, top)})
    if not seen[False]:
        raise ValueError(f"not one of {seen[True]} files can be classified")


def table_of(objects) -> Table:
    """A row a class, the name of the image beside the first."""
    table = Table("image", "class", "probability")
    for found in objects:
        for place, guess in enumerate(found.get("top", ())):
            name = f"{guess['class']} {'' if guess['name'] is None else guess['name']}"
            image = one_line(found["image"]) if place == 0 else ""
            table.add_row(Text(image), Text(one_line(name)), f"{guess['probability']:.3f}")
    return table


def main(options: Predict) -> None:
    files, others = files_of(options.images)
    net = load_network(options.checkpoint, options.execution)
    names = class_names(net)
    check_whole(f"top (of {net.model.num_classes} classes)", options.top, 1, net.model.num_classes)
    found = said(classify(net, files, options.execution, options.on_corrupt), names, options.top)
    progress = Console(stderr=True)
    shown = len(files) > BATCH and progress.is_terminal
    found = track(found, "classify", len(files), console=progress, disable=not shown, transient=True)
    if options.json:
        for each in found:
            print(json.dumps(each), flush=True)
    else:
        Console().print(table_of(found))
        if names is None:
            print(UNNAMED)
    if others:
        some = cut(", ".join(map(one_line, others)), 200)
        print(f"passed over, no images by their suffix ({len(others)}): {some}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, Predict)
