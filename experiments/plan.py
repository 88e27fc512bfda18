"""Plans an experiment on a TPU pod that is not there: the TPU's own compiler says whether it fits and what it costs.

    python experiments/plan.py CONFIG --topology v5e:4x4 [--batch N] [--json FILE]

CONFIG is a name of experiments/configs. Needs the compiler (`pip install 'libtpu==0.0.42.1'`), no chip. Compiling takes
minutes. What the figures are worth: docs/performance.md.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import json
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from train import load_config

from ge2mst_jax.checks import check_whole, one_line
from ge2mst_jax.files import write_whole
from ge2mst_jax.plan import Plan, make_plan, open_topology, read_topology, shape_of
from ge2mst_jax.train.command import run_command


@dataclasses.dataclass(frozen=True)
class Options:
    """Plans an experiment's train step on a TPU pod that is not there."""

    config: tyro.conf.Positional[str]
    """Name of an experiment."""
    topology: str = "v5e:4x4"
    """CHIP:SHAPE of the pod."""
    batch: int | None = None
    """Images a step on all chips; the config's if none."""
    neuron: str | None = None
    """Another neuron than the config's, such as relu, to set beside it."""
    json: Path | None = None
    """Also write the figures to this file."""


def gibibytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def plan_table(name: str, plan: Plan) -> Table:
    table = Table("what", title=f"{name} on {plan.topology}, batch {plan.batch:,}: the compiler's estimate")
    table.add_column("found", justify="right")
    rows = {
        "memory a chip": f"{gibibytes(sum(plan.memory.values()))} of {gibibytes(plan.hbm)}",
        **{f"  {part}": gibibytes(size) for part, size in plan.memory.items()},
        "fits": "yes" if plan.fits else "no",
        "operations a step and chip": f"{plan.flops / 1e12:.3f} TFLOP",
        "cycles a step": f"{plan.cycles:,}",
        "step": f"{1e3 * plan.seconds:.1f} ms",
        "share of peak": f"{plan.share_of_peak:.1%}",
        "images/s, a chip": f"{plan.images_per_second:,.0f}",
        "images/s, all chips": f"{plan.images_per_second * plan.chips:,.0f}",
        "collectives, bytes a step and chip": f"{sum(plan.collectives.values()) / 2**20:.1f} MiB",
        "  on the links alone": f"{1e3 * plan.collective_seconds:.2f} ms",
        "recipe": f"{plan.steps:,} steps, {plan.hours:.1f} h, {plan.hours * plan.chips:,.0f} chip-hours",
        "loops of unknown length, counted once": str(plan.unknown_loops),
        "compiled in": f"{plan.compile_seconds:.0f} s",
    }
    for what, found in rows.items():
        table.add_row(what, found)
    for by, shares in plan.shares.items():
        table.add_section()
        for part, share in shares.items():
            table.add_row(f"{by}: {part}", f"{share:.1%}")
    return table


def main(options: Options) -> None:
    config = load_config(options.config)
    if options.batch is not None:
        config = dataclasses.replace(config, batch_size=check_whole("batch", options.batch, 1, 2**24))
    if options.neuron is not None:
        config = dataclasses.replace(config, neuron=options.neuron)
    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"json is {one_line(options.json)}: there is no folder {one_line(options.json.parent)}")
    read_topology(options.topology)
    data = shape_of(config)
    chip, devices = open_topology(options.topology)
    console = Console()
    with console.status(f"compiling the train step for {len(devices)} chips, minutes"):
        plan = make_plan(config, options.topology, chip, devices, data)
    console.print(plan_table(options.config, plan))
    if options.json is not None:
        write_whole(options.json, json.dumps(plan.as_dict(), indent=1) + "\n")


if __name__ == "__main__":
    run_command(main, Options)
