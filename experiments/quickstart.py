"""From nothing to a certified spiking transformer: train, convert, certify, count, report, on real digits.

    python experiments/quickstart.py

Trains `ge2mst_nano` on the handwritten digits that scikit-learn carries, deploys it in integers, proves on every
test image that its dense and its spiking execution are equal bit for bit, counts its energy and writes
`report.html`, `report.json`, pictures and a checkpoint into the run directory. About 2 minutes on 2 CPU cores.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ge2mst_jax.convert import certify, deploy, save_net
from ge2mst_jax.data import load_digits, open_source
from ge2mst_jax.energy import SpikeCounter, audit
from ge2mst_jax.folders import as_folders
from ge2mst_jax.report import build_report, summary_table, write_report
from ge2mst_jax.train import TrainConfig, as_json, read_metrics, train
from ge2mst_jax.train.command import run_command

#: Images that the plain NumPy reference runs too.
REFERENCE_IMAGES = 20


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Trains, converts, certifies and reports Ge²mS-T on scikit-learn's handwritten digits."""

    run_dir: Path = Path("runs/quickstart")
    """Where the report, the pictures and the checkpoint go; a run that is there already goes on."""
    train: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(eval_every_epochs=6.0))
    """The training run."""

    def __post_init__(self):
        as_folders(self, "run_dir")


class Phases:
    """A progress bar for each phase, and the seconds that each took."""

    def __init__(self, console: Console):
        self.seconds: dict[str, float] = {}
        self.progress = Progress(
            TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=console,
        )  # fmt: skip

    @contextlib.contextmanager
    def phase(self, name: str, total: int):
        """Yields `advance(completed, note)`."""
        task = self.progress.add_task(name, total=total, note="")
        start = time.perf_counter()
        yield lambda completed, note="": self.progress.update(task, completed=completed, note=note)
        self.progress.update(task, completed=total)
        self.seconds[name] = round(time.perf_counter() - start, 2)


def count(net, images, batch_size: int = 120, advance=None) -> SpikeCounter:
    """Exact counts of the spiking execution over all images."""
    counter = SpikeCounter()
    for start in range(0, len(images), batch_size):
        _, aux = net(jnp.asarray(images[start : start + batch_size]), execution="spiking")
        counter.add(aux)
        if advance is not None:
            advance(min(start + batch_size, len(images)))
    return counter


def epochs_of(metrics: list[dict], steps_per_epoch: float) -> list[dict]:
    """Means over the steps of each epoch, from the lines of `metrics.jsonl`, and the evaluation in it, if any.

    >>> epochs_of([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}, {"step": 2, "test": {"accuracy": 0.5}}], 2)
    [{'epoch': 1, 'loss': 2.0, 'test': {'accuracy': 0.5}}]
    """
    epochs: dict[int, list[dict]] = {}
    tests: dict[int, dict] = {}
    for line in metrics:
        epoch = int((line["step"] - 1) // steps_per_epoch) + 1
        if "loss" in line:
            epochs.setdefault(epoch, []).append(line)
        else:
            tests[epoch] = {"test": line["test"]}
    return [
        {"epoch": epoch, **{key: float(np.mean([line[key] for line in lines])) for key in lines[0] if key != "step"}}
        | tests.get(epoch, {})
        for epoch, lines in epochs.items()
    ]


def main(options: Quickstart) -> None:
    if options.train.data != "digits":
        raise ValueError(
            f"data is {options.train.data!r}: the quickstart is for digits; experiments/train.py takes others"
        )
    console, config, data = Console(), options.train, load_digits()
    phases = Phases(console)
    start = time.perf_counter()
    trained = train(config, options.run_dir, console)
    if trained.signal is not None:
        sys.exit(128 + trained.signal)
    phases.seconds["train"] = round(time.perf_counter() - start, 2)
    state, model, input_code = trained.state, trained.setup.model, config.input_code
    with phases.progress:
        with phases.phase("convert", 1):
            classes = list(open_source(config.data, "test").classes)
            about = {"data": config.data, "classes": classes, "decode": None}  # in memory: nothing is decoded
            calibration = data.train_images, data.train_labels
            net = deploy(model, state.ema, data.image_shape, calibration, about=about)
        with phases.phase("certify", len(data.test_images)) as advance:
            certificate = certify(
                net, data.test_images, data.test_labels, batch_size=120, progress=advance, reference=REFERENCE_IMAGES
            )
        with phases.phase("count", len(data.test_images)) as advance:
            counter = count(net, data.test_images, advance=advance)
            products = audit(net)
            if input_code == "1x8":
                products.check()
        with phases.phase("report", 1):
            save_net(options.run_dir / "checkpoint", net, config.model)
            about_data = data.name, len(data.train_images), len(data.test_images)
            report = build_report(
                dataset=about_data, model_name=config.model, net=net, certificate=certificate, counter=counter,
                audit=products, seconds=phases.seconds, training=as_json(config),
            )  # fmt: skip
            lines = read_metrics(options.run_dir / "metrics.jsonl")
            history = epochs_of(lines, len(data.train_images) / config.batch_size)
            write_report(options.run_dir, report, net, data.test_images, history)
    console.print(summary_table(report))
    console.print(f"report: {options.run_dir / 'report.html'}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main, Quickstart)
