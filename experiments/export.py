"""Exports a checkpoint as it would be deployed into one file that runs without this package: jax.export, StableHLO.

    python experiments/export.py CHECKPOINT [--out FILE] [--execution dense|spiking] [--platforms cpu cuda tpu]

CHECKPOINT is the folder of a run (its best checkpoint is taken, or --step N) or one that the quickstart saved. Writes
FILE and FILE.json, which says what it is, then runs FILE without this package and compares. docs/export.md says how to
load it.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ge2mst_jax.checks import check_whole, one_line
from ge2mst_jax.convert import load_exported, save_exported
from ge2mst_jax.folders import as_folders, in_bucket
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.deployed import load_deployed

#: Run by a fresh interpreter, which cannot import this package: arguments are the file, its images and where to write.
ALONE = """
import sys
sys.modules["ge2mst_jax"] = None
import numpy as np
from jax import export
with open(sys.argv[1], "rb") as file:
    network = export.deserialize(bytearray(file.read()))
np.savez(sys.argv[3], **network.call(np.load(sys.argv[2])))
"""


@dataclasses.dataclass(frozen=True)
class Export:
    """Exports a checkpoint as it would be deployed into one file that runs without this package."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of a training run, or of a deployed network."""
    execution: Literal["dense", "spiking"] = "dense"
    """One pass on levels, or spikes over time: the answer is the same."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """Where the file will run."""
    step: int | None = None
    """Of a run's checkpoint; the best one if none."""
    out: Path | None = None
    """The file, on a disk; CHECKPOINT.EXECUTION.jax_export if none, in this folder where CHECKPOINT is in a bucket."""

    def __post_init__(self):
        as_folders(self, "checkpoint", "out")
        if self.out is not None and in_bucket(self.out):
            raise ValueError(
                f"out is {one_line(self.out)}: the file is run here once it is written: name one on a disk"
            )
        if self.step is not None:
            check_whole("step", self.step, 1, 2**40)


def some_images(image_shape) -> np.ndarray:
    """Four: black, white, and two of noise."""
    images = np.random.default_rng(0).integers(0, 256, (4, *image_shape), np.uint8)
    images[0], images[1] = 0, 255
    return images


def alone(file: Path, images: np.ndarray) -> dict:
    """What an exported network gives on the CPU, in a fresh process without this package.

    Raises:
        ValueError: it cannot be run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = os.path.join(folder, "images.npy"), os.path.join(folder, "found.npz")
        np.save(given, images)
        command = [sys.executable, "-P", "-c", ALONE, os.path.abspath(file), given, found]
        ran = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
        if ran.returncode:
            raise ValueError(f"{file} does not run without this package: {(ran.stderr.splitlines() or ['killed'])[-1]}")
        return dict(np.load(found))


def check(file: Path, net, options: Export) -> list[str]:
    """Compares the file with the network, bit for bit, wherever it can be run here; returns where that was.

    Raises:
        ValueError: it cannot be run, or differs.
    """
    images, found, here = some_images(net.image_shape), {}, jax.export.default_export_platform()
    exported = load_exported(file)
    if "cpu" in options.platforms:
        found["cpu, a fresh process without this package"] = alone(file, images)
    if here in options.platforms and here != "cpu":
        found[f"{here}, this process"] = exported(images)
    logits = np.asarray(net(images, execution=options.execution)[0])
    for where, given in found.items():
        if np.asarray(given["logits"]).tobytes() != logits.tobytes():
            raise ValueError(f"{file} does not give the network's logits on {where}: it was deleted")
    return list(found)


def main(options: Export) -> None:
    net = load_deployed(options.checkpoint, options.step)
    name = f"{options.checkpoint.resolve().name}.{options.execution}.jax_export"
    out = options.out or (Path() if in_bucket(options.checkpoint) else options.checkpoint.resolve().parent) / name
    save_exported(out, net, options.execution, options.platforms)
    try:
        places = check(out, net, options)
    except ValueError:
        # What must not be used is not left to be used.
        for path in (out, out.with_name(out.name + ".json")):
            path.unlink(missing_ok=True)
        raise
    table = Table("what", "found", title=Text(one_line(f"{options.checkpoint}, {options.execution}")))
    table.add_row("file", Text(one_line(out)))
    table.add_row("size", f"{out.stat().st_size / 1e6:.2f} MB")
    table.add_row("lowered for", ", ".join(options.platforms))
    for place in places:
        table.add_row("gives the network's logits, bit for bit", place)
    if not places:
        table.add_row("not run", "it is lowered for no platform of this machine")
    Console().print(table)


if __name__ == "__main__":
    run_command(main, Export)
