"""Writes the tables and pictures of docs/results.md, and README.md's, from what was measured and published alone.

    python experiments/tables.py [--docs docs]

Reads DOCS/results/trilemma/*.json (experiments/trilemma.py makes them), DOCS/results/published.json (others' figures,
each with its source) and DOCS/results/peers.json (sizes of peers, experiments/peers.py). What has not changed stays as
it is, to the byte.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import collections
import dataclasses
import io
from pathlib import Path

import numpy as np
from harness.rows import EPOCHS, all_rows, read_result
from harness.sizes import size_of
from matplotlib.figure import Figure
from rich.console import Console

from ge2mst_jax.files import read_json, write_whole
from ge2mst_jax.report.sections import markdown, write_section
from ge2mst_jax.spiking import SpikeCode
from ge2mst_jax.train.command import run_command

NOT_RUN = "not run"
#: Conventions that the table shows.
CHARGED = ("field", "lab", "exact")
#: Networks of ours in the comparison: data, name, image shape, classes.
OURS = (
    ("imagenet", "ge2mst_s", (224, 224, 3), 1000),
    ("imagenet", "ge2mst_b", (224, 224, 3), 1000),
    ("imagenet", "ge2mst_l", (224, 224, 3), 1000),
    ("cifar10", "ge2mst_cifar", (32, 32, 3), 10),
    ("cifar100", "ge2mst_cifar", (32, 32, 3), 100),
)
#: Rows of neurons that README.md shows.
SUMMARY = ("relu", "expg 1x4", "expg 1x4, budget 0.3", "expg 1x4, budget 0.12", "sfa 4x1", "qcfs 4x1", "lif, T = 4")
TITLES = {"imagenet": "ImageNet-1k", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
COLOURS = {
    "relu": "#9aa5b1",
    "expg": "#2b7bba",
    "sfa": "#3d9970",
    "qcfs": "#7b61a8",
    "lif": "#e07b39",
    "plif": "#c0392b",
}

MARKERS = {"expg 2x2": "s", "expg 2x3/1": "D", "expg 4x1": "^", "sfa 4x1": "P"}
#: Where the words stand, from the point that they are about; above it and to the right if not named.
NOTES = {"lif": (2, -9), "expg": (-2, 10)}
#: Neurons whose time steps are told beside their points.
SERIES = ("qcfs", "lif", "plif")


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the tables and pictures of docs/results.md and README.md."""

    docs: Path = Path("docs")
    """Folder of results.md and results/; README.md lies beside it."""


def percent(shares) -> str:
    """A mean, with the standard deviation where there are several.

    >>> percent([0.5]), percent([0.5, 0.52])
    ('50.00 %', '51.00 ± 1.41 %')
    """
    if len(shares) == 1:
        return f"{100 * shares[0]:.2f} %"
    return f"{100 * np.mean(shares):.2f} ± {100 * np.std(shares, ddof=1):.2f} %"


def mean(values, text: str) -> str:
    return text.format(np.mean(values))


def links(found: list[dict]) -> str:
    """To each row's config and log."""
    return " ".join(f"[{each['config']['seed']}](results/trilemma/{each['row']}.json)" for each in found)


def by_label(results: dict[str, dict], table: str) -> dict[str, list[dict]]:
    """Of a table's rows, in their order, what was measured: a list over seeds, empty where nothing was."""
    found = collections.defaultdict(list)
    for row in all_rows([table]):
        found[row.label] += [results[row.name]] if row.name in results else []
    return found


def neurons_table(results) -> str:
    """Neuron × what it costs and gives."""
    header = [
        "neurons", "accuracy as trained", "run", "as spiking", "differing", "T", "latency, steps", "spikes a neuron",
        "energy, field", "lab", "exact", "training memory", "step, of the ANN's", "seeds",
    ]  # fmt: skip
    lines = []
    for label, found in by_label(results, "neurons").items():
        if not found:
            lines.append([label, NOT_RUN, *12 * [""]])
            continue
        cost = [
            mean([each["cost"]["bytes"] / 2**20 for each in found], "{:.1f} MiB"),
            mean([each["cost"]["seconds"] / each["cost"]["relu_seconds"] for each in found], "{:.2f}"),
        ]
        if "accuracy" not in found[0]:
            lines.append([label, *10 * [""], *cost, links(found)])
            continue
        accuracy = percent([each["accuracy"] for each in found])
        for i, first in enumerate(found[0]["executed"]):
            runs = [each["executed"][i] for each in found]
            differing = [each["certificate"]["differing"] for each in found if "certificate" in each]
            lines.append([
                label if i == 0 else "",
                accuracy if i == 0 else "",
                how(found[0], first),
                percent([run["accuracy"] for run in runs]) if first["steps"] else "",
                str(max(differing)) if differing else "",
                str(first["steps"] or ""),
                str(first["latency"] or ""),
                mean([run["spikes_per_neuron"] for run in runs], "{:.3f}") if first["steps"] else "",
                *(mean([1e3 * run["energy_mj"][name] for run in runs], "{:.2f} µJ") for name in CHARGED),
                *(cost if i == 0 else ["", ""]),
                links(found) if i == 0 else "",
            ])  # fmt: skip
    return markdown(header, lines)


def summary_table(results) -> str:
    """Of README.md: the rows of neurons that stand for their kind, each as it runs at its most steps."""
    header = ["neurons", "run as", "T", "test accuracy", "energy an image", "training memory", "training step"]
    lines = []
    for label, found in by_label(results, "neurons").items():
        if label not in SUMMARY or not found:
            continue
        runs = [each["executed"][-1] for each in found]
        lines.append([
            label,
            how(found[0], runs[0]),
            str(runs[0]["steps"] or ""),
            percent([run["accuracy"] for run in runs]),
            mean([1e3 * run["energy_mj"]["exact"] for run in runs], "{:.1f} µJ"),
            mean([each["cost"]["bytes"] / 2**20 for each in found], "{:.0f} MiB"),
            mean([each["cost"]["seconds"] / each["cost"]["relu_seconds"] for each in found], "{:.2f} ×"),
        ])  # fmt: skip
    return markdown(header, lines)


def how(found: dict, run: dict) -> str:
    """In what way a network of that neuron was run."""
    if "certificate" in found:
        return "deployed, spiking"
    if not run["steps"]:
        return "real numbers"
    return f"rate-coded, {run['images']:,} images" if found["config"]["neuron"] == "qcfs" else "as trained"


def attentions_table(results) -> str:
    """Attention × accuracy, spikes and cost, with the convolution branch and without."""
    header = [
        "attention",
        "as trained",
        "spiking",
        "spikes a neuron",
        "energy, exact",
        "training memory",
        "step, of the ANN's",
        "log",
    ]
    lines = []
    for label, found in by_label(results, "attentions").items():
        if not found:
            lines.append([label, NOT_RUN, *6 * [""]])
            continue
        runs = [each["executed"][0] for each in found]
        lines.append([
            label,
            percent([each["accuracy"] for each in found]),
            percent([run["accuracy"] for run in runs]),
            mean([run["spikes_per_neuron"] for run in runs], "{:.3f}"),
            mean([1e3 * run["energy_mj"]["exact"] for run in runs], "{:.2f} µJ"),
            mean([each["cost"]["bytes"] / 2**20 for each in found], "{:.1f} MiB"),
            mean([each["cost"]["seconds"] / each["cost"]["relu_seconds"] for each in found], "{:.2f}"),
            links(found),
        ])  # fmt: skip
    return markdown(header, lines)


def conversion_table(results) -> str:
    """Code × accuracy after each stage."""
    header = [
        "code (of q, k)",
        "ANN",
        "no training",
        "a tenth of its steps more",
        "deployed, spiking",
        "differing",
        "spikes a neuron",
        "energy, exact",
        "log",
    ]
    lines = []
    for label, found in by_label(results, "conversion").items():
        if not found:
            lines.append([label, NOT_RUN, *7 * [""]])
            continue
        made = found[0]["conversion"]
        lines.append([
            f"`{label}` (`{made['qk_code']}`)",
            *(percent([made[key]]) for key in ("ann", "converted", "finetuned", "spiking")),
            str(made["differing"]),
            f"{made['spikes_per_neuron']:.3f}",
            f"{1e3 * made['exact_mj']:.2f} µJ",
            links(found),
        ])  # fmt: skip
    return markdown(header, lines)


def counted(published: dict, size: dict | None) -> tuple[str, str]:
    """Parameters and multiply-adds: counted where the network is here, else the page's."""
    if size is not None:
        return f"{size['ours'] / 1e6:.1f} M", f"{size['macs'] / 1e9:.2f} G"
    millions = published["parameters_m"]
    return "" if millions is None else f"{millions:.1f} M, reported", ""


def comparison_table(published: list[dict], sizes: dict[str, dict], data: str) -> str:
    """Published figures of a data set and our networks, what is reported and what was measured here apart.

    Parameters and multiply-adds of peers that are here are those of the networks (`sizes`), not of a page.
    """
    header = [
        "network",
        "parameters",
        "multiply-adds",
        "T",
        "energy, reported",
        "top-1, reported",
        "top-1, measured here",
        "source",
    ]
    lines = []
    for each in published:
        if each["data"] == data:
            lines.append([
                each["model"] + (" (ANN)" if each["ann"] else ""),
                *counted(each, sizes.get(each["size"])),
                str(each["steps"]),
                "" if each["energy_mj"] is None else f"{each['energy_mj']:.2f} mJ",
                f"{each['top1']:.2f} %",
                NOT_RUN,
                each["source"],
            ])  # fmt: skip
    for of, name, shape, classes in OURS:
        if of == data:
            parameters, macs, steps = size_of(name, shape, classes)
            about = [f"{parameters / 1e6:.1f} M", f"{macs / 1e9:.2f} G", str(steps)]
            lines.append([f"`{name}`", *about, "", "", NOT_RUN, "this repository"])
    return f"**{TITLES[data]}**\n\n{markdown(header, lines)}"


def accuracy_against_energy(results) -> Figure:
    """Every trained row of neurons, the mean of its seeds: how right it is as it runs, for how much energy."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes, series = figure.subplots(), collections.defaultdict(list)
    for found in filter(None, by_label(results, "neurons").values()):
        config = found[0]["config"]
        neuron, budget = config["neuron"], config["spike_budget"]
        kind = f"expg {config['code']}" if neuron == "expg" else neuron
        whole = config["epochs"] == EPOCHS
        for runs in zip(*(each["executed"] for each in found if "executed" in each), strict=True):
            about = f"T = {runs[0]['steps']}" if neuron in SERIES and whole else ""
            if kind == "expg 1x4":  # those of other codes lie on it
                about = f"budget {budget}" if budget else "no budget"
            energy = np.mean([1e3 * run["energy_mj"]["exact"] for run in runs])
            accuracy = np.mean([100 * run["accuracy"] for run in runs])
            name = kind if whole else f"{kind}, T = {runs[0]['steps']}, trained for a quarter"
            series[name].append((energy, accuracy, about))
    for name, points in series.items():
        energies, accuracies, notes = zip(*sorted(points), strict=True)
        kind, _, share = name.partition(",")
        axes.plot(
            energies, accuracies, marker=MARKERS.get(kind, "o"), lw=0.8, ms=5, label=name,
            color=COLOURS[kind.split()[0]], markerfacecolor="white" if share else None,
        )  # fmt: skip
        for energy, accuracy, about in zip(energies, accuracies, notes, strict=True):
            where = dict(xytext=NOTES.get(kind.split()[0], (4, 3)), ha="center" if "budget" in about else "left")
            axes.annotate(about, (energy, accuracy), fontsize=6, textcoords="offset points", **where)
    axes.set(xscale="log", xlabel="energy of an image as it runs, exact, µJ", ylabel="test accuracy, %")
    return bare(figure)


def memory_against_steps(results) -> Figure:
    """Training memory over T."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes, lines = figure.subplots(), collections.defaultdict(dict)
    for each in results.values():
        config = each["config"]
        if each["table"] == "neurons" and config["spike_budget"] is None and config["neuron"] != "relu":
            kind = config["neuron"] + (", rematerialised" if config["remat"] != "none" else "")
            lines[kind][SpikeCode.parse(config["code"]).num_steps] = each["cost"]["bytes"] / 2**20
    for kind in sorted(lines):
        points = sorted(lines[kind].items())
        style = "--" if "remat" in kind else "-"
        axes.plot(*zip(*points, strict=True), style, marker="o", label=kind, color=COLOURS[kind.partition(",")[0]])
    axes.set(yscale="log", xlabel="time steps T", ylabel="training memory, MiB")
    return bare(along_steps(figure, [1, 2, 4, 8, 16]))


def accuracy_against_steps(results) -> Figure:
    """Accuracy over T: QCFS rate-coded, and ours; means of seeds, and their standard deviation."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for label, found in by_label(results, "neurons").items():
        found = [each for each in found if "executed" in each]
        neuron = label.split()[0]
        if not found or neuron not in ("qcfs", "expg", "sfa") or found[0]["config"]["spike_budget"] is not None:
            continue
        runs = [each["executed"] for each in found]
        steps = [run["steps"] for run in runs[0]]
        accuracies = 100 * np.array([[run["accuracy"] for run in each] for each in runs])
        spread = accuracies.std(0, ddof=1) if len(runs) > 1 else None
        axes.errorbar(
            steps, accuracies.mean(0), spread, marker=MARKERS.get(label, "o"), ms=5, capsize=2, color=COLOURS[neuron],
            label="qcfs, rate-coded" if neuron == "qcfs" else label,
        )  # fmt: skip
        if neuron == "qcfs":
            trained = 100 * np.mean([each["dense"] for each in found])
            axes.axhline(trained, color=COLOURS[neuron], lw=0.6, ls=":", label="qcfs, as trained")
    axes.set(xlabel="time steps T", ylabel="test accuracy as spiking, %")
    return bare(along_steps(figure, [2, 4, 8, 16, 32, 64]))


def along_steps(figure: Figure, ticks: list[int]) -> Figure:
    """With a logarithmic axis of T that names these alone."""
    for axes in figure.axes:
        axes.set_xscale("log")
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_xticks([], minor=True)
    return figure


def bare(figure: Figure) -> Figure:
    """Without what says nothing, and with a legend where there is something to name."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=7)
    return figure


def write_picture(path: Path, figure: Figure) -> bool:
    """As PNG without the time and version that it was made with; whether there was something to draw."""
    if not any(axes.has_data() for axes in figure.axes):
        return False
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    if not path.exists() or path.read_bytes() != buffer.getvalue():
        write_whole(path, buffer.getvalue())
    return True


SECTIONS = {"neurons": neurons_table, "attentions": attentions_table, "conversion": conversion_table}
PICTURES = {
    "accuracy_energy": accuracy_against_energy,
    "memory_steps": memory_against_steps,
    "accuracy_steps": accuracy_against_steps,
}


def main(options: Options) -> None:
    folder, page = options.docs / "results", options.docs / "results.md"
    results = {path.stem: read_result(path) for path in sorted((folder / "trilemma").glob("*.json"))}
    published = read_json(folder / "published.json")["rows"]
    sizes = {size["model"]: size for size in read_json(folder / "peers.json")["sizes"]}
    write_section(options.docs.parent / "README.md", "summary", summary_table(results))
    for name, table in SECTIONS.items():
        write_section(page, name, table(results))
    write_section(page, "comparison", "\n\n".join(comparison_table(published, sizes, data) for data in TITLES))
    drawn = [name for name, draw in PICTURES.items() if write_picture(folder / f"{name}.png", draw(results))]
    write_section(
        page, "pictures", "\n".join(f"![{name.replace('_', ' over ')}](results/{name}.png)" for name in drawn)
    )
    Console().print(f"{page}: {len(results)} results, {len(published)} published figures", highlight=False)


if __name__ == "__main__":
    run_command(main, Options)
