"""The plans that docs/performance.md shows: made, kept, and written into the page and its picture.

    python tests/plan/documented.py [--only TEXT]

Rows are kept in docs/results/plans.json as they are made; one that is there, of the same sources and versions, is not
compiled again, so that what was interrupted goes on. `--only` makes those whose name holds a text; `--write-only True`
compiles nothing. An hour or two on 2 CPU cores; needs `libtpu`.
"""

import dataclasses
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from train import load_config  # noqa: E402

from ge2mst_jax.checks import one_line  # noqa: E402
from ge2mst_jax.files import read_json, write_whole  # noqa: E402
from ge2mst_jax.plan import OutOfMemory, Plan, make_anchor, make_plan, open_topology, shape_of  # noqa: E402
from ge2mst_jax.plan.sweep import tools  # noqa: E402
from ge2mst_jax.provenance import commit, digest_of_code  # noqa: E402
from ge2mst_jax.report.sections import markdown, write_section  # noqa: E402
from ge2mst_jax.train.command import run_command  # noqa: E402

ROWS, PAGE, PICTURE = (ROOT / "docs" / name for name in ("results/plans.json", "performance.md", "cost.png"))
BENCH = ROOT / "docs" / "results" / "bench_devices.json"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A plan of a train step: an experiment's config, or an anchor of its shape, on a pod."""

    topology: str
    batch: int
    config: str = "imagenet_s"
    neuron: str = "expg"
    anchor: str = ""

    @property
    def network(self) -> str:
        return self.anchor or self.config + {"expg": "", "lif": ", LIF-STBP, T = 4"}.get(
            self.neuron, f", {self.neuron}"
        )

    @property
    def name(self) -> str:
        return f"{self.network} | {self.topology} | {self.batch}"


WANTED = (
    Wanted("v5e:4x4", 2048),
    Wanted("v5e:4x4", 2048, anchor="ResNet-50"),
    Wanted("v5e:4x4", 2048, anchor="ViT-S/16"),
    Wanted("v5e:4x4", 2048, neuron="relu"),
    Wanted("v5e:2x4", 1024),
    Wanted("v5e:8x8", 8192),
    Wanted("v5e:16x16", 32768),
    Wanted("v5e:16x16", 4096),
    Wanted("v5e:4x4", 2048, "imagenet_b"),
    Wanted("v5e:16x16", 4096, "imagenet_b"),
    Wanted("v6e:16x16", 4096, "imagenet_b"),
    Wanted("v5p:4x4x4", 4096, "imagenet_b"),
    Wanted("v5e:4x4", 2048, neuron="lif"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Makes the plans that docs/performance.md shows."""

    only: str = ""
    """Make those alone whose name holds this."""
    write_only: bool = False
    """Compile nothing: write page and picture from what is kept."""


def made(wanted: Wanted) -> dict:
    """Its plan as JSON, or what the compiler refused."""
    config = dataclasses.replace(load_config(wanted.config), batch_size=wanted.batch, neuron=wanted.neuron)
    pod, data = open_topology(wanted.topology), shape_of(config)
    try:
        plan = make_anchor(wanted.anchor, config, pod, data) if wanted.anchor else make_plan(config, pod, data=data)
    except OutOfMemory as error:
        return {"plan": None, "refused": one_line(error)}
    return {"plan": plan.as_dict(), "refused": None}


def kept_rows() -> dict[str, dict]:
    """Rows by name, as they were made."""
    return read_json(ROWS) if ROWS.exists() else {}


def make_all(only: str, console: Console) -> None:
    """Compiles what is wanted and not there, one after the other, and keeps every row at once."""
    made_with = {"code": digest_of_code(), "tools": tools(), "commit": commit()}
    rows = kept_rows()
    for wanted in (wanted for wanted in WANTED if only in wanted.name):
        old = rows.get(wanted.name)
        if old is None or any(old[key] != made_with[key] for key in ("code", "tools")):
            with console.status(f"compiling {wanted.name}, minutes"):
                rows[wanted.name] = made(wanted) | made_with
            ordered = {w.name: rows[w.name] for w in WANTED if w.name in rows}
            write_whole(ROWS, json.dumps(ordered, indent=1) + "\n")
        console.print(f"{wanted.name}: {said(rows[wanted.name])}", soft_wrap=True, highlight=False, markup=False)


def said(row: dict) -> str:
    """Of a row, in words."""
    if row["plan"] is None:
        return row["refused"]
    return f"{1e3 * row['plan']['seconds']:.1f} ms, compiled in {row['plan']['compile_seconds']:.0f} s"


def plans_table(rows: dict[str, dict]) -> str:
    """A row a plan, as the page has it."""
    header = [
        "network", "pod", "batch", "memory a chip", "step, by cycles", "by bytes", "share of peak", "images/s a chip",
        "collectives", "recipe, chip-hours", "compiled in",
    ]  # fmt: skip
    lines = []
    for wanted in WANTED:
        row = rows.get(wanted.name)
        about = [f"`{wanted.network}`" if wanted.anchor == "" else wanted.network, wanted.topology, f"{wanted.batch:,}"]
        if row is None:
            lines.append([*about, "not run", *7 * [""]])
        elif row["plan"] is None:
            lines.append([*about, "no room", *7 * [""]])
        else:
            lines.append([*about, *cells(Plan.from_dict(row["plan"]))])
    commits = ", ".join(sorted({row["commit"][:7] for row in rows.values()}))
    return f"{markdown(header, lines)}\n\nCommit {commits}; the compiler's estimates, none measured on a chip."


def section(rows: dict[str, dict]) -> str:
    """What the page has."""
    return f"{plans_table(rows)}\n\n{shares_table(rows)}"


def cells(plan: Plan) -> list[str]:
    """What the page says of a plan."""
    links = plan.collective_seconds / plan.seconds
    return [
        f"{plan.used / 2**30:.2f} GiB" + ("" if plan.fits else ", too much"),
        f"{1e3 * plan.seconds:.1f} ms",
        f"{1e3 * plan.byte_seconds:.1f} ms",
        f"{plan.share_of_peak:.1%}",
        f"{plan.images_per_second:,.0f}",
        f"{sum(plan.collectives.values()) / 2**20:.0f} MiB, {links:.1%}",
        "" if plan.chip_hours is None or not plan.fits else f"{plan.chip_hours:,.0f}",
        f"{plan.compile_seconds:.0f} s",
    ]


def shares_table(rows: dict[str, dict], by: str = "kind", topology: str = "v5e:4x4") -> str:
    """Where the cycles of the networks on one pod go, million a step and chip."""
    plans = {
        w.network: rows[w.name]["plan"]
        for w in WANTED
        if w.topology == topology and not w.anchor and rows.get(w.name, {}).get("plan")
    }
    parts = dict.fromkeys(part for plan in plans.values() for part in plan["shares"][by])
    lines = [
        [part, *(f"{p['shares'][by].get(part, 0) * p['cycles'] / 1e6:.1f}" for p in plans.values())] for part in parts
    ]
    lines.append(["all", *(f"{plan['cycles'] / 1e6:.1f}" for plan in plans.values())])
    return markdown([f"cycles, millions, {topology}", *(f"`{name}`" for name in plans)], lines)


def picture(rows: dict[str, dict]):
    """Cost of an image over devices: measured on virtual ones, and by the compiler on chips."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    found = read_json(BENCH)
    measured = {n: 1e3 * s for n, s in found["training_over_devices"]["seconds_an_image"].items() if n.isdecimal()}
    counts = [int(count) for count in measured]
    left.plot(counts, measured.values(), "o-")
    left.set(title=f"measured: {found['model']}", xlabel="virtual devices of 2 cores", ylabel="ms an image")
    scaled = [(w, rows[w.name]["plan"]) for w in WANTED if w == Wanted(w.topology, w.batch) and w.name in rows]
    weak = sorted((p["chips"], p) for w, p in scaled if w.batch == 128 * p["chips"])
    for label, seconds, style in (
        ("cycles", lambda p: p["seconds"], "o-"),
        ("cycles and collectives, one after the other", lambda p: p["seconds"] + p["collective_seconds"], "s--"),
    ):
        right.plot([c for c, _ in weak], [1e3 * c * seconds(p) / p["batch"] for c, p in weak], style, label=label)
    right.set(title="compiler's estimate: imagenet_s", xlabel="v5e chips, 128 images each", ylabel="chip-ms an image")
    right.legend(frameon=False, loc="lower left")
    for axes, ticks in ((left, counts), (right, [c for c, _ in weak])):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylim(0, 1.25 * axes.dataLim.ymax)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(options: Options) -> None:
    console = Console()
    if not options.write_only:
        make_all(options.only, console)
    rows = kept_rows()
    write_section(PAGE, "plans", section(rows))
    if BENCH.exists():
        partial = PICTURE.with_name(f".{PICTURE.name}")
        picture(rows).savefig(partial, format="png", dpi=144)
        partial.replace(PICTURE)


if __name__ == "__main__":
    run_command(main, Options)
