"""Batches of training and of evaluation, read through Grain, and where an interrupted run goes on."""

import sys

import grain
import numpy as np

from ge2mst_jax.data.plan import BatchPlan, EvalElements, TrainBatches
from ge2mst_jax.data.sources import Source


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
        if self._grain is None:
            self._grain = open_grain(self._batches, self._step, self._batches.plan.workers)
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
            ValueError: that one had another seed, batch size or number of examples.
        """
        for name, value in self._order().items():
            if int(state[name]) != value:
                raise ValueError(f"{name} is {value}, but the batches to go on with had {state[name]}")
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends the worker processes."""
        if self._grain is not None:
            self._grain.close()
            self._grain = None


class EvalBatches:
    """Batches of an exact evaluation; each `iter` starts anew."""

    def __init__(self, elements: EvalElements):
        self._elements = elements

    def __len__(self) -> int:
        return len(self._elements)

    def __iter__(self):
        iterator = open_grain(self._elements, 0, self._elements.plan.workers)
        try:
            yield from iterator
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
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)


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
        ValueError: the seed is out of range.
        DataError: while iterating; a file can't be read or decoded.

    >>> from ge2mst_jax.data.sources import open_source
    >>> batch = next(train_batches(open_source("digits", "train"), BatchPlan(4), seed=0))
    >>> batch["image"].shape, batch["label"].shape
    ((4, 8, 8, 1), (4,))
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: it must be 0 to {2**32 - 1}")
    return TrainIterator(TrainBatches(source, plan, seed, sys.maxsize if steps is None else steps))


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
