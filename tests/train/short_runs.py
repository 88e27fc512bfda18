"""Short runs of the digits, for the tests of the trainer.

Started as a script it is one process of a run, which ends as the tests want it to:

    python tests/train/short_runs.py RUN_DIR '{"mesh_data": 4}' [after|term|in_save STEP]

`after` kills itself (SIGKILL) when a step is reported, `term` sends itself a SIGTERM then, `in_save` kills itself while
the checkpoint of a step is being written. Exit status 0 where the run is complete, 128 + signal where it was
interrupted in order.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
from rich.console import Console

from ge2mst_jax.data import load_digits
from ge2mst_jax.folders import folder, in_bucket, names_in
from ge2mst_jax.train import Checkpoints, TrainConfig, read_metrics, set_up, train
from ge2mst_jax.train.checkpoints import steps_in
from ge2mst_jax.train.distributed import initialize

EXAMPLES = len(load_digits().train_images)
BATCH, STEPS, EVERY = 32, 12, 4
CLOCK = ("seconds", "data_seconds")


def short(**changes) -> TrainConfig:
    """12 steps with everything that has a state: drop path, the budget's controller, evaluations at 8 and 12."""
    fields = dict(
        steps=STEPS, batch_size=BATCH, warmup_epochs=2 * BATCH / EXAMPLES, spike_budget=0.3, drop_path=0.1,
        checkpoint_every_epochs=EVERY * BATCH / EXAMPLES, eval_every_epochs=2 * EVERY * BATCH / EXAMPLES,
    )  # fmt: skip
    return TrainConfig(**(fields | changes))


def setup_of(config: TrainConfig, mesh=None):
    return set_up(config, (8, 8, 1), 10, EXAMPLES, mesh)


def state_of(run_dir, config: TrainConfig, step: int | None = None):
    """`(step, state as numpy arrays)` of a run's checkpoint; the latest if no step is given."""
    with Checkpoints(run_dir) as checkpoints:
        step = checkpoints.steps[-1] if step is None else step
        state, _ = checkpoints.restore(step, setup_of(config).abstract_state)
    return step, jax.tree.map(np.asarray, state)


def lines_of(run_dir):
    """The run's metrics, wall-clock fields aside."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(run_dir / "metrics.jsonl")]


def settings(devices: int) -> dict[str, str]:
    """Environment of a process of its own: its devices, and the tests' compilation cache."""
    return {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }  # fmt: skip


def start(run_dir, changes=None, *end, devices=8, **environment) -> subprocess.Popen:
    """This file as a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, str(run_dir), json.dumps(changes or {}), *map(str, end)],
        env={**os.environ, **settings(devices), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes, seconds=400) -> list[tuple[int, str]]:
    """`(exit status, what it printed)` of each."""
    try:
        said = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def together(start_one, count: int):
    """Starts `count` processes of one run: `start_one(environment)` each."""
    import portpicker

    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    return [
        start_one({"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)})
        for i in range(count)
    ]


def end_itself(how: str, step: int, run_dir) -> None:
    """Arranges the end of this process."""
    from ge2mst_jax.train import metrics

    if how == "in_save":
        threading.Thread(target=kill_while_saving, args=(run_dir / "checkpoints", step), daemon=True).start()
        return
    number = {"after": signal.SIGKILL, "term": signal.SIGTERM}[how]
    report = metrics.Reporter.step

    def report_and_end(self, now, *rest):
        report(self, now, *rest)
        if now == step:
            while number == signal.SIGKILL and step - step % EVERY not in steps_in(run_dir / "checkpoints"):
                time.sleep(0.01)  # the save before it is to be whole: `in_save` is for the others
            os.kill(os.getpid(), number)

    metrics.Reporter.step = report_and_end


def kill_while_saving(directory, step: int) -> None:
    """SIGKILL as soon as the temporary folder of a checkpoint holds a file; in a bucket it has its final name."""
    while True:
        if in_bucket(directory) and names_in(directory / str(step)):
            os.kill(os.getpid(), signal.SIGKILL)
        for part in () if in_bucket(directory) else directory.glob(f"{step}.*"):
            if any(path.is_file() for path in part.rglob("*")):
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.0005)


def main() -> None:
    run_dir, changes, *end = sys.argv[1:]
    config = short(**json.loads(changes))
    initialize(config)
    if end:
        end_itself(end[0], int(end[1]), folder(run_dir))
    trained = train(config, run_dir, Console())
    if trained.signal is not None:
        sys.exit(128 + trained.signal)


if __name__ == "__main__":
    main()
