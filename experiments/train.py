"""Trains a network by the name of its experiment.

    python experiments/train.py NAME [--run-dir DIR] [--field value ...]
    python experiments/train.py NAME --help

NAME is a file in experiments/configs, whose docstring says what it is, on which hardware, in which time. Every field
of the config can be changed. Interrupted (Ctrl-C, SIGTERM, kill -9), the same command goes on from the last checkpoint.
Exit status: 0 complete, 2 a wrong input, 130 or 143 stopped by SIGINT or SIGTERM.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console

from ge2mst_jax.checks import one_line, shown
from ge2mst_jax.folders import as_folders
from ge2mst_jax.train import TrainConfig, train
from ge2mst_jax.train.command import answered, run_command
from ge2mst_jax.train.distributed import initialize

CONFIGS = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Launch:
    """Trains a network by the name of its experiment; goes on if the folder holds a run already."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run, on a disk or in a bucket (gs://BUCKET/FOLDER); runs/NAME if none."""

    def __post_init__(self):
        as_folders(self, "run_dir")


def config_names() -> list[str]:
    """Every experiment that there is a file for."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def load_config(name: str) -> TrainConfig:
    """The config of an experiment.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    if name not in config_names():
        known = f"known are {', '.join(config_names())}"
        if name.startswith("-"):
            raise ValueError(f"an experiment comes before {shown(name)}: {known}")
        raise ValueError(f"unknown experiment {shown(name)}: {known}")
    return importlib.import_module(f"configs.{name}").CONFIG


def main(launch: Launch) -> None:
    initialize(launch.train)
    console = Console()
    trained = train(launch.train, launch.run_dir, console)
    if trained.signal is not None:
        sys.exit(128 + trained.signal)
    if trained.evaluation is not None and jax.process_index() == 0:
        accuracy = 100 * trained.evaluation["accuracy"]
        found = f"test accuracy {accuracy:.2f} %  in {one_line(launch.run_dir)}"
        console.print(found, soft_wrap=True, markup=False)


def launch_by_name() -> None:
    """Reads NAME, then the fields."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        with answered():
            print(f"{__doc__}\nexperiments: {', '.join(config_names())}")
        return

    def default() -> Launch:
        return Launch(load_config(name), Path("runs") / name)

    run_command(main, Launch, default, sys.argv[2:])


if __name__ == "__main__":
    launch_by_name()
