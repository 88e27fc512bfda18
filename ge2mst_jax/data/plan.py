"""Which examples make which batch: one seeded global order, of which each process reads its slice."""

import dataclasses
import functools

import numpy as np

from ge2mst_jax.checks import check_whole
from ge2mst_jax.data.decode import DRAWS, CorruptImageError, DataError, DecodeConfig, decode
from ge2mst_jax.data.source import MemorySource, Source

#: Batches and steps of which a position, their product, is still an int64.
MAX_BATCH, MAX_STEPS = 2**20, 2**40


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch, `[examples]`: a permutation that depends on `(seed, epoch)` alone.

    >>> epoch_order(0, 0, 5)
    array([2, 4, 3, 0, 1])
    """
    return np.random.default_rng((seed, epoch)).permutation(examples)


def example_draws(seed: int, start: int, count: int) -> list[list[float]]:
    """All that is random about the examples at global positions `start`, …: `[count, DRAWS]`, uniform in [0, 1).

    A row depends on the seed and its position alone: Philox's generator is a function of a counter, of which each
    position has its own part (a block of the counter makes four numbers).

    >>> example_draws(0, 5, 2)[1] == example_draws(0, 6, 1)[0]
    True
    """
    bits = np.random.Philox(key=seed, counter=start * (DRAWS // 4))
    return np.random.Generator(bits).random((count, DRAWS)).tolist()


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which part of which batches this process reads.

    >>> BatchPlan(8, process_index=1, process_count=2).local_size
    4
    """

    batch_size: int
    """Of the global batch."""
    process_index: int = 0
    process_count: int = 1
    workers: int = 0
    """Worker processes that decode; 0 decodes in the thread that asks. Images in memory need none."""
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    """For sources whose images are files."""

    def __post_init__(self):
        check_whole("batch_size", self.batch_size, 1, MAX_BATCH)
        check_whole("process_count", self.process_count, 1, MAX_BATCH)
        check_whole("process_index", self.process_index, 0, self.process_count - 1)
        check_whole("workers", self.workers, 0, 1024)
        if self.batch_size % self.process_count:
            raise ValueError(f"batch_size is {self.batch_size}: {self.process_count} processes can't share it equally")

    @property
    def local_size(self) -> int:
        """Examples a batch for this process."""
        return self.batch_size // self.process_count

    def positions(self, step: int) -> np.ndarray:
        """Global positions of this process's examples in a step, `[b]` int64."""
        start = step * self.batch_size + self.process_index * self.local_size
        return np.arange(start, start + self.local_size)

    def shape(self, source: Source) -> tuple[int, int, int]:
        """Of one image in a batch."""
        return source.image_shape or (self.decode.image_size, self.decode.image_size, source.channels)

    def empty(self, source: Source, **more) -> dict[str, np.ndarray]:
        """A batch to be filled."""
        size = self.local_size
        return {
            "image": np.zeros((size, *self.shape(source)), np.uint8),
            "label": np.zeros(size, np.int32),
            "index": np.full(size, -1, np.int32),
            "skipped": np.zeros(size, np.int32),
            **more,
        }

    def pixels(self, example, source: Source, draws) -> np.ndarray:
        """The image of an example, decoded if need be."""
        if isinstance(example.data, np.ndarray):
            return example.data
        return decode(example.data, self.decode, where=example.where, draws=draws, channels=source.channels)


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Element `step` is this process's slice of the global batch of that step; what Grain reads from.

    The example at global position `g = step · batch_size + j` is `epoch_order(seed, g // N)[g % N]`: every image comes
    exactly once an epoch, and batches straddle epochs.
    """

    source: Source
    plan: BatchPlan
    seed: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The examples at global positions."""
        epochs, places = np.divmod(positions, len(self.source))
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = epoch_order(self.seed, int(epoch), len(self.source))[places[here]]
        return result

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        positions = self.plan.positions(step)
        indices, batch = self.indices(positions), self.plan.empty(self.source)
        if readable_in_memory(self.source):
            label, index = self.source.labels[indices], indices.astype(np.int32)
            return batch | dict(image=self.source.images[indices], label=label, index=index)
        draws = example_draws(self.seed, int(positions[0]), len(positions))
        for j, (position, index) in enumerate(zip(positions.tolist(), indices.tolist(), strict=True)):
            image, *about = self.example(position, index, draws[j])
            batch["image"][j] = image
            batch["label"][j], batch["index"][j], batch["skipped"][j] = about
        return batch

    def example(self, position: int, index: int, draws: list[float]):
        """`(image, label, index, number of corrupt images passed over)` of the example that belongs at a position."""
        for skipped in range(len(self.source)):
            if skipped:
                index = int(self.indices(np.array([position + skipped]))[0])
            try:
                example = self.source.read(index)
                image = self.plan.pixels(example, self.source, draws)
                return image, example.label, index, skipped
            except CorruptImageError:
                if self.source.on_corrupt == "raise":
                    raise
        raise DataError(f"{self.source.name}: not one image of the {self.source.split} split can be decoded")


@dataclasses.dataclass(frozen=True)
class EvalElements:
    """Element `step` is this process's slice of a batch of evaluation: every example once, in order, then padding."""

    source: Source
    plan: BatchPlan

    def __len__(self) -> int:
        return -(-len(self.source) // self.plan.batch_size)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        batch = self.plan.empty(self.source, mask=np.zeros(self.plan.local_size, np.float32))
        positions = self.plan.positions(step)
        for j, index in enumerate(positions[positions < len(self.source)].tolist()):
            batch["index"][j] = index
            try:
                example = self.source.read(index)
                batch["image"][j] = self.plan.pixels(example, self.source, None)
                batch["label"][j], batch["mask"][j] = example.label, 1
            except CorruptImageError:
                if self.source.on_corrupt == "raise":
                    raise
                batch["skipped"][j] = 1
        return batch


def readable_in_memory(source: Source) -> bool:
    """Whether a batch is one look-up in an array."""
    return isinstance(source, MemorySource) and not source.corrupt
