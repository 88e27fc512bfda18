"""What a run reports while it runs: a JSONL file, TensorBoard files, a progress bar or lines."""

import collections
import contextlib
import functools
import json
import logging
import os
import time
import zlib
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ge2mst_jax.checks import one_line
from ge2mst_jax.files import write_whole
from ge2mst_jax.folders import exists, folder, read
from ge2mst_jax.mirror import Mirror

log = logging.getLogger(__name__)


class DivergedError(ValueError):
    """The loss or a gradient is not finite; the message names the step and the batch."""


class MetricsFile:
    """`metrics.jsonl`: a line a step, `{"step": n, ...}`, and one an evaluation, `{"step": n, "test": {...}}`.

    Every line ends with a `crc` of what stands before it.

    Args:
        path: of the file.
        count: lines to go on after; those that follow are cut off.
        here: the folder in which the file is to grow, where that is not its own (`Mirror`).

    Raises:
        ValueError: one of the lines before is damaged or missing; nothing is cut then.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> with MetricsFile(path, 0) as file:
    ...     file.write({"step": 1, "loss": 2.5})
    ...     file.write({"step": 2, "loss": 2.0})
    >>> with MetricsFile(path, 1) as file:  # resumed after step 1
    ...     file.write({"step": 2, "loss": 2.0})
    >>> [line["step"] for line in read_metrics(path)]
    [1, 2]
    """

    def __init__(self, path, count: int, here: Path | None = None):
        path = folder(path)
        content = read(path) if exists(path) else None
        if content is None and count:
            log.warning("%s is gone: the lines before are missing", one_line(path))
            count = 0
        texts = (content or b"").splitlines()[:count]
        for number, text in enumerate(texts, 1):
            if parsed(text) is None:
                raise ValueError(damaged(path, number))
        if len(texts) < count:
            raise ValueError(
                f"{one_line(path)} has {len(texts)} lines, not the {count} of the checkpoint to go on from: mend the "
                "file, or move it away"
            )
        kept, path = b"".join(text + b"\n" for text in texts), path if here is None else here / path.name
        write_whole(path, kept)
        self.count = count
        """Lines written so far."""
        self._file = path.open("a", buffering=1)  # a line at a time

    def write(self, line: dict) -> None:
        text = json.dumps(line)
        self._file.write(f'{text[:-1]}, "crc": {zlib.crc32(text.encode())}}}\n')
        self.count += 1

    def sync(self) -> None:
        """Until the lines are on the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def parsed(text: bytes) -> dict | None:
    """A line of `metrics.jsonl` without its `crc`, or `None` if it is not as it was written.

    >>> parsed(b'{"step": 3, "crc": 145879999}'), parsed(b'{"step": 2, "crc": 145879999}'), parsed(b"[]")
    ({'step': 3}, None, None)
    """
    try:
        line = json.loads(text)
        sound = line.pop("crc") == zlib.crc32(json.dumps(line).encode()) and type(line["step"]) is int
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):  # no JSON, or no such object
        return None
    return line if sound else None


def damaged(path, number: int) -> str:
    return f"{one_line(path)}: line {number} is damaged: mend it, or move the file away"


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; a last line that a kill cut off is left out.

    Raises:
        ValueError: any other line is damaged; names it.
    """
    *texts, torn = read(folder(path)).split(b"\n")
    lines = [parsed(text) for text in texts]
    if None in lines:
        raise ValueError(damaged(path, lines.index(None) + 1))
    last = parsed(torn)
    return lines if last is None else [*lines, last]


class Pace:
    """Images a second and the share of waiting for data, of the last steps.

    The first step of a sitting holds the compilation: it counts until there is another.

    Args:
        batch_size: images a step.
        last: steps that count.

    >>> pace = Pace(batch_size=100, last=2)
    >>> for seconds in (50.0, 2.0, 1.0, 1.0):
    ...     pace.step(seconds, waited=0.25)
    ...     print(pace)
    2 images/s  data 0%
    50 images/s  data 12%
    67 images/s  data 17%
    100 images/s  data 25%
    """

    def __init__(self, batch_size: int, last: int):
        self._batch_size, self._first = batch_size, True
        self._steps: collections.deque[tuple[float, float]] = collections.deque(maxlen=last)

    def step(self, seconds: float, waited: float) -> None:
        """Adds a step: the seconds that it took, and those of them that the loop waited for data."""
        if len(self._steps) == 1 and self._first:
            self._steps.clear()
            self._first = False
        self._steps.append((seconds, waited))

    @property
    def images_per_second(self) -> float:
        return self._batch_size * len(self._steps) / max(sum(seconds for seconds, _ in self._steps), 1e-9)

    @property
    def data_share(self) -> float:
        """An upper bound of the share of the time that the devices waited for data."""
        seconds, waited = (sum(parts) for parts in zip(*self._steps, strict=True))
        return min(1.0, waited / max(seconds, 1e-9))

    def __str__(self):
        return f"{self.images_per_second:,.0f} images/s  data {self.data_share:.0%}"


class Reporter:
    """Takes each step's metrics while they are still being computed; writes those of the step before.

    So the host never waits for the step that it has just started. Only process 0 writes; all of them check.

    Args:
        run_dir: where `metrics.jsonl` and `tensorboard/` go.
        step: number of steps done before.
        lines: of `metrics.jsonl` written before.
        total: of the run.
        batch_size: for images a second.
        console: to print on.
        log_every: steps between lines where there is no terminal, and the last ones of which images/s and the share of
            waiting for data are shown.
        last_good: returns the step of the latest checkpoint, for the error.
        still_there: raises where the folder is not the run's any more.
    """

    def __init__(
        self, run_dir, step, lines, total, batch_size, console: Console, log_every: int, last_good,
        still_there=lambda surely=False: None,
    ):  # fmt: skip
        self._pending, self._last_good = None, last_good
        self._log_every, self._total = log_every, total
        self._writes = jax.process_index() == 0
        self._console = console
        self._since = time.perf_counter()
        self._waited, self._evaluated, self.note = 0.0, 0.0, ""
        self._pace = Pace(batch_size, log_every)
        if self._writes:
            from tensorboardX import SummaryWriter

            with contextlib.ExitStack() as opened:
                self._mirror = opened.enter_context(Mirror(folder(run_dir), functools.partial(still_there, True)))
                path, here = self._mirror.path / "metrics.jsonl", self._mirror.here
                self._file = opened.enter_context(MetricsFile(path, lines, here))
                board = str(here / "tensorboard")
                self._board = SummaryWriter(board, purge_step=step + 1 if step else None, flush_secs=20)
                opened.callback(self._board.close)
                self._opened = opened.pop_all()
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal,
            )  # fmt: skip
            self._task = self._progress.add_task("train", total=total, completed=step, note="")

    def __enter__(self):
        if self._writes:
            self._progress.start()
        return self

    def __exit__(self, *raised):
        if self._writes:
            self._progress.stop()
            self._opened.__exit__(*raised)

    def step(self, step: int, metrics, batch, waited: float) -> None:
        """Hands over a step's metrics (arrays), its batch, and the seconds waited for data so far, in all."""
        before, self._pending = self._pending, (step, metrics, batch, waited)
        self._write(before)

    def flush(self) -> None:
        """Waits for the last step handed over and writes it."""
        before, self._pending = self._pending, None
        self._write(before)

    def sync(self) -> None:
        """Until what was written is on the disk, or in the bucket: a checkpoint counts on it."""
        if self._writes:
            self._file.sync()
            self._mirror.upload()

    @property
    def lines(self) -> int:
        """Of `metrics.jsonl` so far; process 0 knows."""
        return self._file.count if self._writes else 0

    @contextlib.contextmanager
    def evaluating(self, examples: int):
        """Around an evaluation: yields what to call with the number of examples seen, for a bar; stops the clock."""
        start = time.perf_counter()
        task = self._progress.add_task("test", total=examples, note="") if self._writes else None
        try:
            yield lambda seen: None if task is None else self._progress.update(task, completed=seen)
        finally:
            if task is not None:
                self._progress.remove_task(task)
            self._evaluated += time.perf_counter() - start

    def evaluation(self, step: int, found: dict) -> None:
        """Writes an evaluation of the averaged network."""
        top5 = f", top-5 {100 * found['top5']:.2f} %" if "top5" in found else ""
        self.note = f"test {100 * found['accuracy']:.2f} %{top5}"
        if not self._writes:
            return
        self._file.write({"step": step, "test": found})
        for name, value in found.items():
            if isinstance(value, float):
                self._board.add_scalar(f"test/{name}", value, step)
        if not self._console.is_terminal:
            self._console.print(f"step {step}: {self.note}", highlight=False)

    def _write(self, pending) -> None:
        if pending is None:
            return
        step, metrics, batch, waited = pending
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(metrics[name]):
                raise DivergedError(self._diverged(step, name, metrics[name], batch))
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        waited, self._waited = waited - self._waited, waited
        self._pace.step(seconds - self._evaluated, waited)
        self._evaluated = 0.0
        if not self._writes:
            return
        self._file.write({"step": step, **metrics, "seconds": round(seconds, 6), "data_seconds": round(waited, 6)})
        for name, value in metrics.items():
            self._board.add_scalar(f"train/{name}", value, step)
        self._board.add_scalar("train/data_share", self._pace.data_share, step)
        note = f"loss {metrics['loss']:.3f}  {self._pace}  {self.note}"
        self._progress.update(self._task, completed=step, note=note)
        if not self._console.is_terminal and (step % self._log_every == 0 or step == self._total):
            self._console.print(f"step {step}/{self._total}  {note}", highlight=False)

    def _diverged(self, step, name, value, batch) -> str:
        good = self._last_good()
        where = "there is no checkpoint before it" if good is None else f"the last good checkpoint is step {good}"
        local = np.concatenate([np.asarray(shard.data) for shard in batch["index"].addressable_shards])
        images = ", ".join(map(str, local[:8])) + (", ..." if len(local) > 8 else "")
        return f"step {step}: {name} is {value} on the batch of training images {images}; {where}"
