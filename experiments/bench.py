"""What the neuron, the attention and the deployed network cost, measured in one run as paired medians.

    python experiments/bench.py [--json FILE] [--images FOLDER] [--pytorch True] [--quick True]

Alternatives take turns (a b a b ...), so that a busy machine slows all of them; a figure is the median of its turns.
Memory is the compiler's own figure: temporary bytes of the compiled training step. With a folder of images by class the
input pipeline is measured as well, against plain Pillow. About 8 minutes on 2 CPU cores.

    python experiments/bench.py --only peers --pytorch True --batch-size 8

The published networks beside ours, in JAX and as SpikingJelly has them in PyTorch; on one core (`taskset -c 0`
before the command) by CPU time, which leaves out what others do there.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import functools
import json
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from harness import pytorch
from harness.peers import PEER_SIDES, beside_peers, peers_table
from harness.timing import medians, plain_config, random_batch, random_network, temporary_bytes, training_step
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ge2mst_jax.checks import check_whole, one_line
from ge2mst_jax.convert import deploy
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.data import open_source
from ge2mst_jax.data.throughput import measure
from ge2mst_jax.files import write_whole
from ge2mst_jax.grouping import attention_synops, gw_attention
from ge2mst_jax.nn import ATTENTION_RATES
from ge2mst_jax.provenance import environment
from ge2mst_jax.train.command import run_command


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures the twin, training memory over T, attention and the deployed network; prints and writes ratios."""

    json: Path | None = None
    """Also write the figures to this file."""
    images: Path | None = None
    """Folder of images by class (train/CLASS/*.jpg), to measure the input pipeline on."""
    model: str = "ge2mst_cifar"
    """The network that is trained and executed."""
    image_size: int = 32
    """Side of its images."""
    batch_size: int = 32
    """Images at a time, in training and deployed."""
    rounds: int = 9
    """Turns of each alternative."""
    only: tuple[
        Literal[
            "twin_against_relu",
            "training_over_time_steps",
            "training_over_devices",
            "attention",
            "deployed",
            "input_pipeline",
            "peers",
        ],
        ...,
    ] = ()
    """Measure these alone; all but `peers` if none."""
    pytorch: bool = False
    """Also time PyTorch (needs torch and spikingjelly): SpikingJelly's peers, elsewhere its Spikformer 4-384."""
    quick: bool = False
    """Only see that it runs: ge2mst_nano at 8x8, 4 images, 2 turns, 4² and 8² tokens, one peer."""

    def __post_init__(self):
        check_whole("image_size", self.image_size, 1, 2**12)
        check_whole("batch_size", self.batch_size, 1, 2**16)
        check_whole("rounds", self.rounds, 1, 10**6)


def step_of(options: Bench, **changes):
    """The trainer's own compiled step, on one device unless told otherwise, and a call of it on one batch."""
    return training_step(plain_config(options.model, options.batch_size, **changes), image_shape(options))


def image_shape(options: Bench) -> tuple[int, int, int]:
    return (options.image_size, options.image_size, 3)


def twin_against_relu(options: Bench) -> dict:
    """The trainer's step of one network, only the neuron differs; PyTorch's Spikformer beside it if asked for."""
    steps = {neuron: step_of(options, neuron=neuron) for neuron in ("relu", "expg")}
    runs = {neuron: run for neuron, (_, run) in steps.items()}
    seconds = medians(runs | spikformer(options, pytorch.training), options.rounds)
    memory = {neuron: temporary_bytes(compiled) for neuron, (compiled, _) in steps.items()}
    return {
        "seconds": seconds,
        "bytes": memory,
        "time_ratio": seconds["expg"] / seconds["relu"],
        "memory_ratio": memory["expg"] / memory["relu"],
        "images_per_second": {name: options.batch_size / s for name, s in seconds.items()},
    }


def training_over_time_steps(options: Bench) -> dict:
    """The trainer's step with the twin and with LIF-STBP at T = 1 to 16, on `ge2mst_nano`."""
    nano = dataclasses.replace(options, model="ge2mst_nano")
    codes = {1: "1x1", 2: "1x2", 4: "1x4", 8: "2x4", 16: "4x4"}
    if options.quick:
        codes = {1: "1x1", 2: "1x2"}
    rows = {str(steps): {} for steps in codes}
    for neuron in ("expg", "lif"):  # one after the other: LIF's gigabytes drive out whatever takes turns with them
        made = {str(steps): step_of(nano, neuron=neuron, code=code, qk_code="1x1") for steps, code in codes.items()}
        seconds = medians({steps: run for steps, (_, run) in made.items()}, options.rounds)
        for steps, (compiled, _) in made.items():
            cost = compiled.cost_analysis()["bytes accessed"]
            rows[steps][neuron] = {
                "seconds": seconds[steps], "bytes": temporary_bytes(compiled), "accessed": cost
            }  # fmt: skip
    return rows


def training_over_devices(options: Bench) -> dict:
    """The trainer's step of one network and batch on 1, 2, 4, ... of the devices that there are; PyTorch's if asked.

    On a CPU `XLA_FLAGS=--xla_force_host_platform_device_count=8` before the command makes 8 devices of its cores.
    """
    counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count() and options.batch_size % n == 0]
    steps = {str(n): step_of(options, mesh_data=n) for n in counts}
    runs = {n: run for n, (_, run) in steps.items()}
    seconds = medians(runs | spikformer(options, pytorch.training), options.rounds)
    return {
        "batch_size": options.batch_size,
        "seconds_an_image": {name: s / options.batch_size for name, s in seconds.items()},
        "bytes_a_device": {n: temporary_bytes(compiled) for n, (compiled, _) in steps.items()},
    }


#: Rates at which attention takes one order of its products or the other, whatever the shapes.
KEYS_FIRST, QUERIES_FIRST = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)


def attention(options: Bench, heads: int = 4, width: int = 32) -> dict:
    """GW-SSA in groups of 7 or 8 tokens against full attention in both orders of its products, by the token grid.

    Operands fire at `ATTENTION_RATES`; synops are exact counts of those spikes.
    """
    shapes = {
        side: ("block1x7", "grid7x1") if side % 7 == 0 else ("block2x4", "grid4x2") for side in (8, 14, 16, 28, 56)
    }
    if options.quick:
        shapes = {4: ("block1x2", "grid2x1"), 8: ("block2x4", "grid4x2")}
    random, rows = np.random.default_rng(0), {}
    for side, scales in shapes.items():
        q, k, v = (jnp.float32(random.random((side, side, heads, width)) < rate) for rate in ATTENTION_RATES)
        whole = (f"block{side}",)
        forms = {
            "gw_ssa": (scales, ATTENTION_RATES),
            "keys_first": (whole, KEYS_FIRST),
            "queries_first": (whole, QUERIES_FIRST),
        }
        forms = {name: dict(scales=given, rates=rates, grid=(side, side)) for name, (given, rates) in forms.items()}
        calls = {name: jax.jit(functools.partial(gw_attention, **given)) for name, given in forms.items()}
        seconds = medians({n: functools.partial(f, q, k, v) for n, f in calls.items()}, options.rounds)
        rows[str(side)] = {
            name: {"seconds": seconds[name], "synops": int(attention_synops(q, k, v, **given))}
            for name, given in forms.items()
        }
        rows[str(side)]["scales"] = scales
    return rows


def deployed(options: Bench) -> dict:
    """Images a second of one deployed network of T = 4, both executions and precisions, logits alone.

    Beside them the ANN of its shape (ReLU, BatchNorm of the averages, which XLA fuses into the convolutions' epilogue),
    the training network's own forward pass and, if asked for, PyTorch's Spikformer.
    """
    images, _ = random_batch(options.batch_size, image_shape(options))
    trained = random_network(options.model, images, neuron="expg")
    calls = {
        "relu": functools.partial(forward, *random_network(options.model, images, neuron="relu"), images),
        "training": functools.partial(forward, *trained, images),
    }
    for bits in (24, 31):
        net = deploy(*trained, images.shape[1:], current_bits=bits)
        for execution in ("dense", "spiking"):
            module = net.executed(execution, "none")
            calls[f"{execution}_{bits}"] = functools.partial(forward, module, net.variables(execution), images)
    seconds = medians(calls | spikformer(options, pytorch.inference), options.rounds)
    return {
        "batch_size": options.batch_size,
        "images_per_second": {n: options.batch_size / s for n, s in seconds.items()},
    }


def spikformer(options: Bench, work) -> dict:
    """A call of SpikingJelly's Spikformer 4-384 at T = 4, on 32x32 images, if asked for."""
    return {"pytorch": work("spikformer_4_384", 32, options.batch_size)} if options.pytorch else {}


def peers(options: Bench) -> dict:
    """Training and inference of every family, in turns with our network on the same images and with PyTorch's."""
    sides = {"sdt_2_512": options.image_size} if options.quick else PEER_SIDES
    return beside_peers(options.model, sides, options.batch_size, options.rounds, options.pytorch)


def input_pipeline(options: Bench) -> dict | None:
    """Decoding, cropping and resizing image files, the pipeline against plain Pillow, one core each."""
    if options.images is None:
        return None
    seconds, workers = (1.0, 0) if options.quick else (20.0, 2)
    return measure(options.images, seconds, workers=workers)


def twin_table(found: dict, twin: dict) -> Table:
    table = Table("ratio", title=f"{found['model']}, batch {found['batch_size']}")
    table.add_column("measured", justify="right")
    table.add_row("training step, twin / ReLU, time", f"{twin['time_ratio']:.3f}")
    table.add_row("training step, twin / ReLU, memory", f"{twin['memory_ratio']:.3f}")
    for name, speed in twin["images_per_second"].items():
        table.add_row(f"{name}, images/s in training", f"{speed:.1f}")
    return table


def steps_table(found: dict, rows: dict) -> Table:
    table = Table("T", title="training step of ge2mst_nano over the time steps")
    for column in ("twin, ms", "twin, MiB", "LIF, ms", "LIF, MiB"):
        table.add_column(column, justify="right")
    for steps, row in rows.items():
        cells = (f(row[n]) for n in ("expg", "lif") for f in (_milliseconds, lambda r: f"{r['bytes'] / 2**20:.1f}"))
        table.add_row(steps, *cells)
    return table


def devices_table(found: dict, made: dict) -> Table:
    table = Table("devices", title=f"training {found['model']}, batch {made['batch_size']}, over devices")
    for column in ("images/s", "ms an image", "MiB a device"):
        table.add_column(column, justify="right")
    for name, seconds in made["seconds_an_image"].items():
        size = made["bytes_a_device"].get(name)
        table.add_row(name, f"{1 / seconds:.1f}", f"{1e3 * seconds:.2f}", "" if size is None else f"{size / 2**20:.1f}")
    return table


def attention_table(found: dict, rows: dict) -> Table:
    table = Table("tokens", title="attention, 4 heads of width 32, thousand synops (milliseconds)")
    for column in ("groups", "GW-SSA", "SSA, q(kᵀv)", "SSA, (qkᵀ)v", "of the cheaper"):
        table.add_column(column, justify="right")
    for side, row in rows.items():
        forms = [row[name] for name in ("gw_ssa", "keys_first", "queries_first")]
        cells = (f"{form['synops'] / 1e3:,.0f} ({_milliseconds(form)})" for form in forms)
        share = forms[0]["synops"] / min(form["synops"] for form in forms[1:])
        table.add_row(f"{side}²", " ".join(row["scales"]), *cells, f"{share:.2f}")
    return table


def deployed_table(found: dict, made: dict) -> Table:
    speeds = made["images_per_second"]
    table = Table("deployed, T = 4", title=f"{found['model']}, batch {made['batch_size']}")
    for column in ("images/s", "of the ANN's", "dense time x"):
        table.add_column(column, justify="right")
    for name, speed in speeds.items():
        dense = speeds[name.replace("spiking", "dense")] if name.startswith("spiking") else None
        ratio = "" if dense is None else f"{dense / speed:.2f}"
        table.add_row(name, f"{speed:.1f}", f"{speed / speeds['relu']:.3f}", ratio)
    return table


def pipeline_table(found: dict, pipeline: dict) -> Table:
    table = Table("images a second", title=f"decode, crop and resize to {pipeline['image_size']} pixels, one core")
    for name in ("pipeline", "pillow", "ratio"):
        table.add_column(name, justify="right")
    table.add_row("", *(f"{pipeline[n]:.{d}f}" for n, d in (("pipeline", 0), ("pillow", 0), ("ratio", 3))))
    return table


def _milliseconds(row) -> str:
    return f"{1e3 * row['seconds']:.2f}"


#: name: what measures, and its table.
MEASUREMENTS = {
    "twin_against_relu": (twin_against_relu, twin_table),
    "training_over_time_steps": (training_over_time_steps, steps_table),
    "training_over_devices": (training_over_devices, devices_table),
    "attention": (attention, attention_table),
    "deployed": (deployed, deployed_table),
    "input_pipeline": (input_pipeline, pipeline_table),
    "peers": (peers, peers_table),
}


def main(options: Bench) -> None:
    if options.quick:
        options = dataclasses.replace(options, model="ge2mst_nano", image_size=8, batch_size=4, rounds=2)
    if options.images is not None:
        open_source(f"folder:{options.images}", "train")  # before minutes are spent
    if options.json is not None and not options.json.parent.is_dir():
        raise ValueError(f"json is {one_line(options.json)}: there is no folder {one_line(options.json.parent)}")
    if options.pytorch:
        pytorch.import_pytorch()
    console = Console()
    found = {"model": options.model, "batch_size": options.batch_size, "environment": environment()}
    sections = options.only or [name for name in MEASUREMENTS if name != "peers"]
    for name in track(sections, "measuring", console=console):
        found[name] = MEASUREMENTS[name][0](options)
    for name, (_, table) in MEASUREMENTS.items():
        if found.get(name) is not None:
            console.print(table(found, found[name]))
    if options.json is not None:
        write_whole(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main, Bench)
