"""Batches of training and of evaluation, read through Grain, and where an interrupted run goes on."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import weakref

import grain
import numpy as np

from ge2mst_jax.checks import check_whole
from ge2mst_jax.data.decode import DataError
from ge2mst_jax.data.plan import MAX_STEPS, BatchPlan, EvalElements, TrainBatches
from ge2mst_jax.data.source import Source

#: Signals that end a process in order.
ENDING = (signal.SIGINT, signal.SIGTERM)
#: The likely cause of a signal that ended a worker process.
DEATHS = {
    signal.SIGKILL: "killed, as where memory runs out: take fewer --workers",
    signal.SIGBUS: "/dev/shm is too small for its batches: enlarge it (docker run --shm-size=8g), or take --workers 0",
}


class TrainIterator:
    """Batches of training without end (or `steps` of them), whose state is the next step.

    The state is what a checkpoint keeps: a new iterator that is given it goes on with the same batches, whatever the
    number of processes and workers then is.
    """

    def __init__(self, batches: TrainBatches):
        self._batches, self._step, self._grain = batches, 0, None

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._step >= len(self._batches):
            raise StopIteration
        with working():
            if self._grain is None:
                self._grain = open_grain(self._batches, self._step, self._batches.plan.workers)
                self._end_workers = weakref.finalize(self, self._grain.close)
            batch = next(self._grain)
        self._step += 1
        return batch

    def _order(self) -> dict[str, int]:
        batches = self._batches
        return dict(seed=batches.seed, batch_size=batches.plan.batch_size, examples=len(batches.source))

    def get_state(self) -> dict[str, int]:
        """`step`, the next one, and what the order depends on: seed, batch_size, examples."""
        return dict(step=self._step, **self._order())

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where another iterator was.

        Raises:
            ValueError: that one had another seed, batch size or number of examples, or it is no state.
        """
        for name, value in self._order().items():
            if name not in state or state[name] != value:
                raise ValueError(f"{name} is {value}, but the batches to go on with had {state.get(name)}")
        step = check_whole("step of the batches to go on with", state.get("step"), 0, len(self._batches))
        self.close()
        self._step = step

    def close(self) -> None:
        """Ends the worker processes."""
        if self._grain is not None:
            self._end_workers()
            self._grain = None


class EvalBatches:
    """Batches of an exact evaluation; each `iter` starts anew."""

    def __init__(self, elements: EvalElements):
        self._elements = elements

    def __len__(self) -> int:
        return len(self._elements)

    def __iter__(self):
        with working():
            iterator = open_grain(self._elements, 0, self._elements.plan.workers)
        try:
            for _ in range(len(self)):
                with working():
                    batch = next(iterator)
                yield batch
        finally:
            iterator.close()


def open_grain(elements, first: int, workers: int):
    """Grain's iterator over elements `first`, `first + 1`, …; each worker process makes every `workers`th."""
    if elements.source.image_shape is not None:
        workers = 0  # images in memory: copying them to a worker would cost more than it could save
    dataset = grain.MapDataset.source(elements)[first:]
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers:
        parse_flags()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, start_worker)
    return iter(dataset)


def start_worker(index: int, count: int) -> None:
    """Run first in a worker process: it ends when the process that reads from it says so, or is no more.

    A signal that goes to all processes (Ctrl-C, the end of a cluster's job) must not end it before the reader has
    saved its state.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    reader = multiprocessing.parent_process()
    threading.Thread(target=lambda: (reader.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def working():
    """Around whatever may start worker processes, or read from them: a process that died becomes one line.

    Raises:
        DataError: names the likely cause.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # inherited by processes that start
    try:
        yield
    except RuntimeError as error:
        died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not died:
            raise
        code = int(died[1])
        why = DEATHS.get(-code, f"by signal {-code}" if code < 0 else "what it said stands above")
        raise DataError(f"a worker process that decodes images died (exit code {code}: {why})") from error
    except OSError as error:
        why = f"{error.strerror or error}; is /dev/shm full?"
        raise DataError(f"the worker processes that decode images can't work ({why})") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parse_flags() -> None:
    """Grain's worker processes read absl's flags, which must have been parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])


def train_batches(source: Source, plan: BatchPlan, seed: int, steps: int | None = None) -> TrainIterator:
    """This process's slice of every global batch of training, in an order that `seed` alone decides.

    Args:
        source: from `open_source`.
        plan: batch size, this process, workers, decoding.
        seed: `0 <= seed < 2^32`.
        steps: number of batches; without end if none.

    Returns:
        An iterator of dicts, `b` = `plan.local_size`:

        - `image`: `[b, H, W, C]` uint8; as stored for sources in memory, else cropped, resized and flipped at random;
        - `label`: `[b]` int32;
        - `index`: `[b]` int32, which examples these are;
        - `skipped`: `[b]` int32, corrupt images passed over in favour of this one.

    Raises:
        ValueError: the seed or the number of steps is out of range.
        DataError: while iterating; a file can't be read or decoded.

    >>> from ge2mst_jax.data.sources import open_source
    >>> batch = next(train_batches(open_source("digits", "train"), BatchPlan(4), seed=0))
    >>> batch["image"].shape, batch["label"].shape
    ((4, 8, 8, 1), (4,))
    """
    check_whole("seed", seed, 0, 2**32 - 1)
    return TrainIterator(
        TrainBatches(source, plan, seed, MAX_STEPS if steps is None else check_whole("steps", steps, 0, MAX_STEPS))
    )


def eval_batches(source: Source, plan: BatchPlan) -> EvalBatches:
    """Every example exactly once over all processes; every process gets the same number of equal batches.

    Args:
        source: from `open_source`.
        plan: batch size, this process, workers, decoding (the centre crop, no flip).

    Returns:
        An iterable of dicts as from `train_batches`, and `mask`: `[b]` float32, 1 for an example, 0 for padding (index
        -1) and for a corrupt image (`skipped` 1).

    >>> from ge2mst_jax.data.sources import open_source
    >>> batches = eval_batches(open_source("digits", "test"), BatchPlan(100))
    >>> len(batches), sum(int(batch["mask"].sum()) for batch in batches)
    (4, 360)
    """
    return EvalBatches(EvalElements(source, plan))
