"""Evaluates a checkpoint as it would be deployed: fixed point, dense or spiking, every test image once.

    python experiments/evaluate.py CHECKPOINT [--execution dense|spiking]

CHECKPOINT is the folder of a run (its best checkpoint is taken, or --step N) or one that the quickstart saved. Prints
accuracy and energy; writes evaluation.json and confusion.png beside the checkpoint, or into --out.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ge2mst_jax.convert import check_network, deploy, load_net
from ge2mst_jax.data import BatchPlan, DecodeConfig, eval_batches, open_source
from ge2mst_jax.energy import CONVENTIONS, SpikeCounter, audit, energy
from ge2mst_jax.files import write_whole
from ge2mst_jax.report import confusion_figure
from ge2mst_jax.train import from_json, load_averaged
from ge2mst_jax.train.command import run_command


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluates a checkpoint as it would be deployed: accuracy, confusion matrix, energy."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of a training run, or of a deployed network."""
    execution: Literal["dense", "spiking"] = "spiking"
    """One pass on levels, or spikes over time: the answer is the same."""
    step: int | None = None
    """Of a run's checkpoint; the best one if none."""
    data: str | None = None
    """Data set; the run's own if none (needed for a deployed network)."""
    data_dir: Path | None = None
    """Where TFDS sets lie, if not where the run found them."""
    batch_size: int = 100
    """Images at a time."""
    limit: int | None = None
    """Evaluate the first so many images only."""
    out: Path | None = None
    """Where evaluation.json and confusion.png go; beside the checkpoint if none."""

    def __post_init__(self):
        for name in ("batch_size", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


def load(options: Evaluate):
    """The deployed network, where its test images are, and how files among them are decoded."""
    if not (options.checkpoint / "checkpoints").is_dir():
        if options.data is None:
            raise ValueError("data: name the data set of a deployed network, such as --data digits")
        return load_net(options.checkpoint), options.data, options.data_dir, DecodeConfig()
    model, variables, about = load_averaged(options.checkpoint, "best" if options.step is None else options.step)
    config = from_json(about["config"])
    data, data_dir = options.data or config.data, options.data_dir or config.data_dir
    net = deploy(model, variables, about["image_shape"])
    check_network(net)
    return net, data, data_dir, config.decode


def run(net, source, options: Evaluate, decode, console):
    """`(confusion, counter)` over the test split."""
    classes = net.model.num_classes
    confusion, counter = np.zeros((classes, classes), int), SpikeCounter()
    batches = eval_batches(source, BatchPlan(options.batch_size, decode=decode))
    left = len(source) if options.limit is None else min(options.limit, len(source))
    for batch in track(batches, "evaluate", console=console, total=-(-left // options.batch_size)):
        seen = np.flatnonzero(batch["mask"])[:left]
        left -= len(seen)
        if not len(seen):
            break
        logits, aux = net(jnp.asarray(batch["image"]), execution=options.execution)
        np.add.at(confusion, (batch["label"][seen], np.argmax(jax.device_get(logits), -1)[seen]), 1)
        counter.add(aux, seen)
    return confusion, counter


def main(options: Evaluate) -> None:
    console = Console()
    net, data, data_dir, decode = load(options)
    source = open_source(data, "test", data_dir)
    if len(source.classes) != net.model.num_classes:
        raise ValueError(f"{data} has {len(source.classes)} classes: this network tells {net.model.num_classes}")
    confusion, counter = run(net, source, options, decode, console)
    energies = {name: energy(counter, c, net.model.code.num_steps) for name, c in CONVENTIONS.items()}
    found = {
        "data": data, "execution": options.execution, "images": counter.images, "digest": net.digest,
        "accuracy": float(np.trace(confusion) / confusion.sum()), "confusion": confusion.tolist(),
        "spikes_per_neuron": counter.spikes_per_neuron, "energy": energies,
        "audit": audit(net, options.execution).as_dict(),
    }  # fmt: skip
    out = options.out or options.checkpoint
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "evaluation.json", json.dumps(found, indent=1) + "\n")
    write_whole(out / "confusion.png", confusion_figure(confusion, source.classes))
    table = Table("what", title=f"{options.checkpoint}, {options.execution}, {counter.images} images of {data}")
    table.add_column("found", justify="right")
    table.add_row("accuracy", f"{100 * found['accuracy']:.2f} %")
    for name, e in energies.items():
        table.add_row(f"energy an image, {name}", f"{1e3 * e['total_mj']:.3f} µJ")
    table.add_row("spikes per neuron and image", f"{counter.spikes_per_neuron:.3f}")
    console.print(table)
    console.print(f"confusion matrix: {out / 'confusion.png'}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main, Evaluate)
