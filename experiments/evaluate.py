"""Evaluates a checkpoint as it would be deployed: integers, dense or spiking, every test image once.

    python experiments/evaluate.py CHECKPOINT [--execution dense|spiking|trained] [--certify IMAGES]

CHECKPOINT is the folder of a run (its best checkpoint is taken, or --step N) or one that the quickstart saved. Prints
accuracy, the classes that are confused most and energy (of the spiking execution, whatever was run: the spikes are the
same); writes evaluation.json, confusion.csv (a row a label, a column a prediction) and confusion.png beside the
checkpoint, or into --out.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ge2mst_jax.checks import check_whole, cut, one_line
from ge2mst_jax.convert import certify
from ge2mst_jax.data import BatchPlan, DecodeConfig, open_source
from ge2mst_jax.energy import CONVENTIONS, audit, energy
from ge2mst_jax.files import write_whole
from ge2mst_jax.folders import as_folders, make
from ge2mst_jax.report import add_drift, confusion_figure, differing
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.deployed import class_names, decoding, first_images, load_network, run_over
from ge2mst_jax.train.scores import confused


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluates a checkpoint as it would be deployed: accuracy, confusion matrix, energy."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of a training run, or of a deployed network."""
    execution: Literal["dense", "spiking", "trained"] = "spiking"
    """Deployed, in one pass on levels or in spikes over time, with the same answer; or in floating numbers as it was
    trained, as networks are run that are not deployed: peers, lif, plif, if, qcfs and relu neurons."""
    step: int | None = None
    """Of a run's checkpoint; the best one if none."""
    data: str | None = None
    """Data set; the one that the network was trained on if none."""
    data_dir: Path | None = None
    """Where TFDS sets lie, if not where the run found them."""
    on_corrupt: Literal["raise", "skip"] | None = None
    """At an image that can't be decoded: stop, or leave it out and count it; as the run did if none."""
    batch_size: int = 100
    """Images at a time."""
    workers: int = 0
    """Processes that decode image files; 0 decodes between the batches."""
    limit: int | None = None
    """Evaluate the first so many images only."""
    certify: int = 0
    """Also certify so many test images, the first ones: both executions compared spike by spike, and the drift from the
    trained network; writes certificate.json."""
    out: Path | None = None
    """Where evaluation.json, confusion.csv and confusion.png go; beside the checkpoint if none."""

    def __post_init__(self):
        as_folders(self, "checkpoint", "out")
        check_whole("batch_size", self.batch_size, 1, 2**20)
        check_whole("workers", self.workers, 0, 1024)
        check_whole("certify", self.certify, 0, 2**20)
        if self.certify and self.execution == "trained":
            raise ValueError("certify: what is certified is a deployed network, not one as it was trained")
        for name in ("limit", "step"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, 2**40)


def open_images(net, options: Evaluate):
    """The test split, and a plan that decodes it as the network's own evaluation did.

    Raises:
        ValueError: no data set is known, or it has other images or classes than the network.
    """
    data, data_dir = options.data or net.about.get("data"), options.data_dir or net.about.get("data_dir")
    if data is None:
        raise ValueError("data: name the data set of a deployed network, such as --data digits")
    source = open_source(data, "test", data_dir, options.on_corrupt or net.about.get("on_corrupt", "raise"))
    plan = BatchPlan(options.batch_size, 0, 1, options.workers, decoding(net) or DecodeConfig(net.image_shape[0]))
    if plan.shape(source) != tuple(net.image_shape):
        raise ValueError(f"{data} has images {plan.shape(source)}: this network takes {tuple(net.image_shape)}")
    if len(source.classes) != net.model.num_classes:
        raise ValueError(f"{data} has {len(source.classes)} classes: this network tells {net.model.num_classes}")
    return source, plan


def check_order(source, names, data: str, console: Console) -> None:
    """Classes are compared by number: refuses the network's own in another order, says so where names differ."""
    if names is None or list(source.classes) == names:
        return
    label = next(i for i, pair in enumerate(zip(source.classes, names, strict=True)) if pair[0] != pair[1])
    says = f"class {label} is {source.classes[label]} in {data}, but {names[label]} in this network"
    if set(source.classes) == set(names):
        raise ValueError(f"{says}: its classes have another order")
    console.print(Text(one_line(f"note: {says}; classes are compared by number")), soft_wrap=True)


def certificate_of(net, source, plan: BatchPlan, options: Evaluate, console: Console):
    """The certificate of the first test images, progress on the console."""
    images, labels = first_images(source, plan, options.certify)
    with Progress(console=console) as progress:
        task = progress.add_task("certify", total=len(images))
        return certify(net, images, labels, options.batch_size, lambda done: progress.update(task, completed=done))


def main(options: Evaluate) -> None:
    console = Console()
    net = load_network(options.checkpoint, options.execution, options.step)
    trained = options.execution == "trained"
    source, plan = open_images(net, options)
    data = options.data or net.about["data"]
    check_order(source, class_names(net), data, console)
    scores, counter = run_over(net, source, plan, options.execution, options.limit, console, confusion=True)
    energies = {name: energy(counter, c, net.model.num_steps) for name, c in CONVENTIONS.items()}
    found = {
        "data": data, "execution": options.execution, "images": counter.images,
        "skipped": scores.total("skipped"), "digest": net.digest, **scores.shares,
        "confused": confused_classes(scores.confusion, source.classes),
        "spikes_per_neuron": counter.spikes_per_neuron,
        "energy": energies, "energy_execution": "trained" if trained else "spiking",
        "audit": None if trained else audit(net, options.execution).as_dict(),
    }  # fmt: skip
    out = options.out or options.checkpoint
    make(out)
    write_whole(out / "evaluation.json", json.dumps(found, indent=1) + "\n")
    write_whole(out / "confusion.csv", confusion_csv(scores.confusion, source.classes))
    write_whole(out / "confusion.png", confusion_figure(scores.confusion, source.classes))
    table = summary(found, energies, options)
    if options.certify:
        certificate = certificate_of(net, source, plan, options, console).as_dict()
        write_whole(out / "certificate.json", json.dumps(certificate, indent=1) + "\n")
        table.add_section()
        table.add_row("images certified", str(certificate["images"]))
        table.add_row("spikes, levels, logits that differ", differing(certificate))
        add_drift(table, certificate)
    console.print(table)
    console.print(Text(one_line(f"confusion matrix: {out / 'confusion.png'}, {out / 'confusion.csv'}")), soft_wrap=True)


def confused_classes(confusion, classes) -> list[dict]:
    """The pairs of classes that are confused most, by name, with the images of the label."""
    return [
        {"label": classes[label], "prediction": classes[guess], "images": images, "of": int(confusion[label].sum())}
        for label, guess, images in confused(confusion)
    ]


def confusion_csv(confusion, classes) -> str:
    """The matrix with the names of its rows, the labels, and columns, the predictions."""
    file, names = io.StringIO(), [one_line(name) for name in classes]
    rows = ([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))
    csv.writer(file, lineterminator="\n").writerows([["label", *names], *rows])
    return file.getvalue()


def summary(found: dict, energies: dict, options: Evaluate) -> Table:
    """What was found. The energies are the spiking execution's, whose spikes are the same: dense multiplies levels."""
    title = f"{options.checkpoint}, {options.execution}, {found['images']} images of {found['data']}"
    table = Table("what", title=Text(one_line(title)))
    table.add_column("found", justify="right")
    table.add_row("accuracy, top-1", f"{100 * found['accuracy']:.2f} %")
    if "top5" in found:
        table.add_row("accuracy, top-5", f"{100 * found['top5']:.2f} %")
    if found["skipped"]:
        table.add_row("images left out: they can't be decoded", str(found["skipped"]))
    of = " were it run in spikes" if options.execution == "dense" else ""
    for name, e in energies.items():
        table.add_row(f"energy an image{of}, {name}", f"{1e3 * e['total_mj']:.3f} µJ")
    table.add_row("spikes per neuron and image", f"{found['spikes_per_neuron']:.3f}")
    if found["confused"]:
        table.add_section()
    for pair in found["confused"]:
        label, prediction = (cut(one_line(pair[name]), 40) for name in ("label", "prediction"))
        table.add_row(Text(f"{label} taken for {prediction}"), f"{pair['images']} of {pair['of']}")
    return table


if __name__ == "__main__":
    run_command(main, Evaluate)
