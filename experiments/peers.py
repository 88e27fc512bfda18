"""Writes docs/peers.md's tables: sizes of the peers, and what a comparison with their PyTorch implementations finds.

    python experiments/peers.py [--parts sizes neurons zoo authors batch] [--authors FOLDER]

`sizes` needs nothing. `neurons` and `zoo` need the extra `peer` (PyTorch, SpikingJelly); `authors` and `batch` also
checkouts of the authors' repositories in FOLDER, by their names, as `git clone` makes them. What was found goes to
DOCS/results/peers.json; parts that are not asked for stay as they were found before. Compared is on one core.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import contextlib
import dataclasses
import importlib.util
import json
from pathlib import Path

from harness import parity
from harness.parity_cases import AUTHORS, ZOO, load
from harness.sizes import size_of
from harness.timing import keep_to_one_core
from rich.console import Console

from ge2mst_jax.checks import check_choice
from ge2mst_jax.files import read_json, write_whole
from ge2mst_jax.models import PEERS, parameter_counts
from ge2mst_jax.report.sections import markdown, write_section
from ge2mst_jax.train.command import run_command

PARTS = ("sizes", "neurons", "zoo", "authors", "batch")


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the tables of docs/peers.md."""

    parts: tuple[str, ...] = ("sizes",)
    """What to find out anew: sizes, neurons, zoo, authors, batch."""
    authors: Path | None = None
    """Folder of checkouts of the authors' repositories."""
    docs: Path = Path("docs")
    """Folder of peers.md and results/."""

    def __post_init__(self):
        for name in self.parts:
            check_choice("part", name, PARTS)
        needing = {"authors", "batch"}.intersection(self.parts)
        if needing and self.authors is None:
            raise ValueError(f"authors: {' and '.join(sorted(needing))} need the folder of the authors' repositories")
        absent = [name for name in ("torch", "spikingjelly") if importlib.util.find_spec(name) is None]
        if absent and set(self.parts) - {"sizes"}:
            raise ValueError(f"parts: comparing needs {' and '.join(absent)}: pip install '.[peer]'")


def sizes(options: Options, console: Console) -> list[dict]:
    """Of every peer: parameters, what tells them from the published figure, multiply-adds of one dense pass."""
    rows = []
    for name, peer in PEERS.items():
        side, classes = peer.image
        _, macs, steps = size_of(name, (side, side, 3), classes)
        rows.append({
            "model": name, "image": side, "classes": classes, "steps": steps, "macs": macs,
            "published": peer.published, **parameter_counts(name)._asdict(),
        })  # fmt: skip
        console.print(f"{name}: {rows[-1]['ours'] / 1e6:.2f} M", highlight=False)
    return rows


def zoo(options: Options, console: Console) -> list[dict]:
    """Every case of SpikingJelly's."""
    return [compared(name, case, case.make, console) for name, case in ZOO.items()]


def authors(options: Options, console: Console) -> list[dict]:
    """Every case of the authors'."""
    rows = []
    for name, (folder, file, case) in AUTHORS.items():
        module = load(options.authors, folder, file)
        rows.append(compared(name, case, lambda m=module, c=case: c.make(m), console))
    return rows


def compared(name: str, case, make, console: Console) -> dict:
    import torch

    torch.manual_seed(case.seed)
    found = {"case": name} | parity.compare(case, make())
    console.print(f"{name}: {found['differ']} of {found['sent']} differ, logits {found['logits']:.1e}", highlight=False)
    return found


def neurons(options: Options, console: Console) -> list[dict]:
    """LIF and IF layers alone."""
    return parity.neurons_alone()


def batch(options: Options, console: Console) -> dict:
    """What QKFormer's neurons, integrated over the batch, change."""
    return parity.over_the_batch(options.authors)


# --- tables -----------------------------------------------------------------------------------------------------------


def sizes_table(rows: list[dict]) -> str:
    header = ["network", "image", "T", "parameters", "biases before norms", "norms left out", "together", "published",
              "multiply-adds"]  # fmt: skip
    lines = []
    for row in rows:
        whole = row["counted"] == row["ours"] + row["biases"]
        left_out = "" if whole else f"{row['norms'] / 1e6:.3f} M"
        lines.append([
            f"`{row['model']}`", str(row["image"]), str(row["steps"]), f"{row['ours'] / 1e6:.3f} M",
            f"{row['biases'] / 1e6:.3f} M", left_out, f"{row['counted'] / 1e6:.3f} M",
            "not seen" if row["published"] is None else f"{row['published']} M", f"{row['macs'] / 1e9:.2f} G",
        ])  # fmt: skip
    return markdown(header, lines)


def neurons_table(rows: list[dict]) -> str:
    header = ["neuron", "reset", "spikes compared", "that differ", "largest difference of a gradient"]
    return markdown(header, [
        [row["neuron"], row["reset"], f"{row['sent']:,}", str(row["differ"]), f"{row['gradient']:.1e}"] for row in rows
    ])  # fmt: skip


def parity_table(rows: list[dict]) -> str:
    header = ["network", "neuron layers", "that differ", "spikes or levels compared", "that differ", "logits", "loss",
              "gradient, relative", "synops, ours and theirs"]  # fmt: skip
    return markdown(header, [
        [
            row["case"], str(row["neuron_layers"]), str(row["layers_that_differ"]), f"{row['sent']:,}",
            f"{row['differ']:,}", f"{row['logits']:.1e}", f"{row['loss']:.1e}", f"{row['gradient']:.1e}",
            f"{row['synops']:,}, {row['synops_theirs']:,}" if "synops" in row else "",
        ]
        for row in rows
    ])  # fmt: skip


def batch_table(found: dict) -> str:
    header = ["implementation", "predictions that change", "largest change of a logit", "largest logit"]
    lines = []
    for name, key in (("the authors'", "theirs"), ("ours", "ours")):
        one = found[key]
        lines.append([name, f"{one['changed']} of {found['images']}", f"{one['by']:.2g}", f"{one['largest']:.2g}"])
    return markdown(header, lines)


TABLES = {
    "sizes": sizes_table, "neurons": neurons_table, "zoo": parity_table, "authors": parity_table, "batch": batch_table,
}  # fmt: skip
FIND = {"sizes": sizes, "neurons": neurons, "zoo": zoo, "authors": authors, "batch": batch}


def main(options: Options) -> None:
    console, path = Console(), options.docs / "results" / "peers.json"
    if set(options.parts) - {"sizes"}:
        keep_to_one_core()
    found = read_json(path) if path.exists() else {}
    for name in options.parts:
        with console.status(name) if console.is_terminal else contextlib.nullcontext():
            found[name] = FIND[name](options, console)
        write_whole(path, json.dumps(found, indent=1) + "\n")
    for name in PARTS:
        if name in found:
            write_section(options.docs / "peers.md", name, TABLES[name](found[name]))
    console.print(f"{options.docs / 'peers.md'}: {', '.join(name for name in PARTS if name in found)}", highlight=False)


if __name__ == "__main__":
    run_command(main, Options)
