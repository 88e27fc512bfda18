"""File descriptors, threads and memory of a long run: 2,000 steps of the digits, 200 evaluations, 200 saves.

    python tests/train/endurance.py [STEPS]

Prints a line at the 1st, 2nd, 5th, 10th, 20th, 50th, ... save: what the process holds then.
"""

import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from short_runs import BATCH, EXAMPLES, short

from ge2mst_jax.train import metrics, train

EVERY = 10
SHOWN = (1, 2, 5, 10, 20, 50, 100, 150, 200)


def held() -> dict[str, float]:
    """What this process holds: open files, threads, memory in MiB (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "MiB": round(int(status["VmRSS"].split()[0]) / 1024, 1),
    }


def main(steps: int) -> None:
    report, count = metrics.Reporter.evaluation, 0

    def report_and_measure(self, step, found):
        nonlocal count
        report(self, step, found)
        count += 1
        if count in SHOWN:
            print(
                f"step {step:5}  saves {count - 1:3}  " + "  ".join(f"{k} {v}" for k, v in held().items()), flush=True
            )

    metrics.Reporter.evaluation = report_and_measure
    every = EVERY * BATCH / EXAMPLES
    config = short(steps=steps, mesh_data=1, checkpoint_every_epochs=every, eval_every_epochs=every)
    with tempfile.TemporaryDirectory() as folder:
        train(config, folder, Console(quiet=True))
    print("after the run" + " " * 12 + "  ".join(f"{k} {v}" for k, v in held().items()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
