"""The training loop: from a config and a folder to a trained network; interrupted, it goes on where it was."""

import contextlib
import dataclasses
import itertools
import json
import logging
import signal
import threading
import time
from pathlib import Path

import jax
from rich.console import Console

from ge2mst_jax.checkpoint import check_path
from ge2mst_jax.checks import cut, one_line
from ge2mst_jax.data.plan import BatchPlan
from ge2mst_jax.data.prefetch import prefetch_to_device
from ge2mst_jax.data.sources import open_source
from ge2mst_jax.files import read_json, write_whole
from ge2mst_jax.folders import exists, folder
from ge2mst_jax.mirror import Mirror
from ge2mst_jax.provenance import commit
from ge2mst_jax.train.checkpoints import Checkpoints, check_same_run, steps_in
from ge2mst_jax.train.config import BEFORE, TrainConfig, as_json
from ge2mst_jax.train.evaluate import evaluate
from ge2mst_jax.train.lock import exclusive
from ge2mst_jax.train.machine import name_devices
from ge2mst_jax.train.metrics import Reporter
from ge2mst_jax.train.processes import largest
from ge2mst_jax.train.setup import Setup, set_up
from ge2mst_jax.train.sharding import batch_sharding
from ge2mst_jax.train.start import batches_of, from_another_run, teacher_of
from ge2mst_jax.train.step import TrainState

log = logging.getLogger(__name__)

#: What may change between the sittings of one run: where and how it runs, not what it computes.
MAY_DIFFER = frozenset(
    """data_dir workers prefetch mesh_data mesh_model fsdp_min_elements keep log_every_steps profile eval_every_epochs
    checkpoint_every_epochs coordinator num_processes process_id init_from extra_steps""".split()
)
PROFILED = range(10, 15)


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a sitting of a run left.

    Args:
        state: the last one.
        setup: of the run.
        evaluation: the last one of the test split, if there was one.
        signal: number of the signal that ended the sitting early; `None` where the run is complete.
    """

    state: TrainState
    setup: Setup
    evaluation: dict | None
    signal: int | None

    @property
    def complete(self) -> bool:
        return self.signal is None


class GivenUpError(Exception):
    """An evaluation made room for an orderly end; `signal` asked for it."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


class Interruption:
    """SIGTERM (pre-emption) and SIGINT ask for a checkpoint and an orderly end; a second SIGINT ends at once.

    Several processes ask each other every `ASK_STEPS` steps (asking waits for the devices), and stop after the same.
    """

    ASK_STEPS = 8

    def __init__(self):
        self.asked = 0
        """Number of the signal that has come, 0 before."""

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if number == signal.SIGINT and self.asked:
            raise KeyboardInterrupt
        self.asked = number

    def after(self, step: int) -> int:
        """The signal for which to stop after a step, 0 to go on; the same for all processes."""
        if jax.process_count() > 1 and step % self.ASK_STEPS:
            return 0
        return largest(self.asked)


def train(config: TrainConfig, run_dir, console: Console | None = None) -> Trained:
    """Trains, evaluates and keeps checkpoints; called again on the same folder, it goes on.

    Starts, in this order, from: 1. the latest readable checkpoint of `run_dir`; 2. the averaged network of
    `config.init_from`; 3. the seed. The log says which. A run that was interrupted equals one that was not, bit for
    bit.

    Args:
        config: of the run; the same as before where the folder holds a run already, but for `MAY_DIFFER`.
        run_dir: on a disk or in a bucket (gs://); gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`.
        console: to show progress on; process 0 alone does.

    Raises:
        ValueError: a wrong input, a folder in use or of another run.
        DivergedError: a loss or gradient that is not finite.
    """
    run_dir = folder(run_dir, "run_dir")
    console = console if console is not None and jax.process_index() == 0 else Console(quiet=True)
    source, test = (open_source(config.data, s, config.data_dir, config.on_corrupt) for s in ("train", "test"))
    image_shape = BatchPlan(1, decode=config.decode).shape(source)
    setup = set_up(config, image_shape, len(source.classes), len(source))
    about = {
        "config": as_json(config), "image_shape": list(image_shape), "classes": list(source.classes),
        "examples": len(source),
    }  # fmt: skip
    check_path(run_dir)
    with exclusive(run_dir) as still_there:
        check_config(run_dir, config)
        with Checkpoints(run_dir, config.keep) as checkpoints, Interruption() as interruption:
            return _Loop(setup, source, test, about, run_dir, still_there, checkpoints, interruption, console).run()


def check_config(run_dir: Path, config: TrainConfig) -> None:
    """Checks that the folder's run, where there is one, has the same config.

    Raises:
        ValueError: another one, a damaged `config.json`, or none beside the metrics of a run.
    """
    path = run_dir / "config.json"
    if exists(path):
        try:
            before = BEFORE | read_json(path)
        except ValueError as error:
            raise ValueError(f"{one_line(error)}: mend it, or delete it (the checkpoints hold it too)") from error
        now = json.loads(json.dumps(as_json(config)))
        if before.keys() != now.keys():
            differing = cut(one_line(", ".join(sorted(before.keys() ^ now.keys()))), 80)
            raise ValueError(
                f"{one_line(path)} is not the config of a run of this version (unknown or absent: {differing}): "
                "mend it, or delete it (the checkpoints hold it too)"
            )
        check_same_run(before, now, MAY_DIFFER)
    elif exists(run_dir / "metrics.jsonl") and not steps_in(check_path(run_dir) / "checkpoints"):
        raise ValueError(
            f"{one_line(run_dir)} holds the metrics of a run whose config and checkpoints are gone: move metrics.jsonl "
            "away, or give another folder"
        )


class _Loop:
    """One sitting of a run."""

    def __init__(self, setup: Setup, source, test, about, run_dir, still_there, checkpoints, interruption, console):
        self.setup, self.config = setup, setup.config
        self.source, self.test = source, test
        self.about = json.loads(json.dumps(about))
        """What every checkpoint of the run says of itself, as JSON gives it back."""
        self.run_dir, self.still_there, self.checkpoints = run_dir, still_there, checkpoints
        self.interruption, self.console = interruption, console
        self.sharding = batch_sharding(setup.mesh)
        self.scheduled = self.config.num_steps(len(source))
        self.total = self.scheduled + self.config.extra_steps
        self.evaluation = None
        self.due = False
        """Whether the evaluation of the step to go on from was given up, and is to be made first."""
        self.best = -1.0
        self.teach = self.profile = None
        if self.config.distill_from is not None:
            self.teach, self.about["taught_by_step"] = teacher_of(setup, source.classes)

    def run(self) -> Trained:
        config = self.config
        name_devices(list(self.setup.mesh.devices.flat), self._say)
        step, state, data_state, lines = self._start()
        self._keep_config()
        batches = self._batches()
        if data_state is not None:
            batches.set_state(data_state)
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        reporter = Reporter(
            self.run_dir, step, lines, self.total, config.batch_size, self.console, config.log_every_steps,
            self._last_good, self.still_there,
        )  # fmt: skip
        started = step
        with reporter, prefetch_to_device(batches, self.sharding, config.prefetch) as stream:
            if step > self.total:
                self._say(f"the run is at step {step}, past the {self.total} that are asked for: nothing is to be done")
            stop = self._look_up(step, state, reporter, stream, 0) if self.due else 0
            while step < self.total and not stop:
                with self._profiled(step - started):
                    batch = next(stream)
                    if self.teach is not None:
                        batch = batch | {"taught": self.teach(state.step, batch, key)}
                    state, metrics = self.setup.step(state, batch, key)
                step += 1
                self.still_there()
                reporter.step(step, metrics, batch, stream.wait_seconds)
                stop = self.interruption.after(step) if step < self.total else 0
                stop = self._look_up(step, state, reporter, stream, stop)
            if stop:
                self.checkpoints.wait()
                self._say(f"interrupted: step {step} is saved, the same command goes on")
        return Trained(state, self.setup, self.evaluation, stop or None)

    def _start(self):
        """`(step, state, data state, lines of the metrics)` to go on from."""
        found = self.checkpoints.restore_latest(self.setup.abstract_state, self._check)
        if found is not None:
            step, state, about = found
            self.best, self.due = about["best"], about.get("evaluation_due", False)
            found = about["evaluation"] or {}  # of an older version, it may hold a large matrix
            self.evaluation = {name: value for name, value in found.items() if name != "confusion"} or None
            self._say(f"resume order 1 of 3: the checkpoint of step {step} in {self.run_dir}")
            return step, state, about["data"], about["metrics_lines"]
        state = self.setup.init()
        if self.config.init_from is not None:
            state = from_another_run(self.setup, state, self.source.classes, self._batches, self._say)
            self._say(f"resume order 2 of 3: the averaged network of {self.config.init_from}")
        else:
            self._say(f"resume order 3 of 3: seed {self.config.seed}")
        return 0, state, None, 0

    def _check(self, about: dict) -> None:
        """Refuses a checkpoint of another run; what it started from and was taught by stays as it was."""
        self.about["config"]["init_from"] = about["config"].get("init_from")
        taught_by = about.get("taught_by_step")
        if self.teach is not None and isinstance(taught_by, int) and taught_by != self.about["taught_by_step"]:
            self.teach, self.about["taught_by_step"] = teacher_of(self.setup, self.source.classes, taught_by)
        check_same_run(BEFORE | about["config"], self.about["config"], MAY_DIFFER)
        check_same_run({field: about[field] for field in self.about}, self.about, {"config"})

    def _keep_config(self) -> None:
        path = self.run_dir / "config.json"
        if jax.process_index() == 0 and not (exists(path) and read_json(path) == self.about["config"]):
            write_whole(path, json.dumps(self.about["config"], indent=1) + "\n")

    def _batches(self):
        return batches_of(self.setup, self.source)

    def _look_up(self, step, state, reporter, stream, stop) -> int:
        """Evaluates and saves where it is time to; returns the signal for which to stop, 0 to go on.

        An evaluation is not begun, or given up, where a signal asks for an end, and made when the run goes on. That of
        the last step is always made.
        """
        examples, last = len(self.source), step in (self.scheduled, self.total)
        evaluates = last or step % max(1, self.config.in_steps(self.config.eval_every_epochs, examples)) == 0
        saves = last or stop or step % max(1, self.config.in_steps(self.config.checkpoint_every_epochs, examples)) == 0
        if not (evaluates or saves):
            return stop
        reporter.flush()  # a state that is not sound is neither evaluated nor saved
        accuracy = None
        if evaluates and not stop:
            found, stop = self._evaluate(state, reporter, may_stop=not last)
            if found is not None:
                self.evaluation, accuracy = found, found["accuracy"]
                reporter.evaluation(step, found)
                if accuracy > self.best:
                    saves, self.best, self.checkpoints.best = True, accuracy, step
        if saves or stop:
            reporter.sync()
            self.still_there(True)
            about = self.about | {
                "data": stream.get_state(), "commit": commit(), "best": self.best, "accuracy": accuracy,
                "evaluation": self.evaluation, "metrics_lines": reporter.lines, "time": time.time(),
                "evaluation_due": evaluates and accuracy is None,
            }  # fmt: skip
            self.checkpoints.save(step, state, about)
        return stop

    def _evaluate(self, state: TrainState, reporter: Reporter, may_stop: bool) -> tuple[dict | None, int]:
        """What was found and 0; or nothing and the signal for which it was given up."""
        config, batches = self.config, itertools.count(1)

        def progress(seen: int) -> None:
            show(seen)
            if may_stop and (stop := self.interruption.after(next(batches))):
                raise GivenUpError(stop)

        with reporter.evaluating(len(self.test)) as show:
            try:
                size = config.batch_size
                return evaluate(
                    self.setup.model, state.ema, self.test, size, self.sharding, config.decode, config.workers, progress
                ), 0
            except GivenUpError as given_up:
                return None, given_up.signal

    def _last_good(self) -> int | None:
        self.checkpoints.wait()
        return max(self.checkpoints.steps, default=None)

    def _say(self, line: str) -> None:
        line = one_line(line)
        log.info(line)
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def _profiled(self, step: int):
        if self.config.profile and step == PROFILED.start:
            self.profile = Mirror(self.run_dir / "profile")
            jax.profiler.start_trace(str(self.profile.here))
        yield
        if self.config.profile and step == PROFILED.stop - 1:
            jax.profiler.stop_trace()
            self.profile.__exit__(None)
            self._say(f"trace of {len(PROFILED)} steps: {self.profile.path}")
