"""The largest batch that fits: memory is nearly affine in images, so two compilations tell and a third proves."""

import dataclasses
from collections.abc import Callable

from ge2mst_jax.checks import check_whole
from ge2mst_jax.plan.lower import accumulated
from ge2mst_jax.plan.make import OutOfMemory, Plan, make_plan
from ge2mst_jax.plan.topology import Pod
from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.sharding import make_mesh

#: Compilations that a search may take.
TRIES = 8
#: Parts of a batch that the search starts from at least: with fewer, padding is most of the memory.
FEWEST = 8


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search has found.

    Args:
        size: the largest of its steps that fits; 0 where not even one does.
        verified: whether that was measured; else it is what two smaller measurements say.
        tried: sizes that were measured, in that order, and what each takes; `None` where it cannot be made at all.
    """

    size: int
    verified: bool
    tried: dict[int, float | None]


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest global batch whose work fits a pod.

    Args:
        batch, verified: as `size`, `verified` of a `Search`.
        tried: global batches that were compiled, in that order, and the bytes that each takes a chip; `None` where the
            compiler found no room.
        plan: of `batch`; `None` where it was not compiled.
        takes_all: whether it is not memory that ends it, but the training images.
    """

    batch: int
    verified: bool
    tried: dict[int, float | None]
    plan: Plan | None
    takes_all: bool

    def as_dict(self) -> dict:
        """For JSON, without the plan."""
        tried = [{"batch": batch, "bytes": size} for batch, size in self.tried.items()]
        return {"batch": self.batch, "verified": self.verified, "takes_all": self.takes_all, "tried": tried}


def step_below(size: float) -> int:
    """The largest step up to a size: a power of two, or a quarter, a half, three quarters of the way to the next.

    >>> [step_below(size) for size in (1, 3.9, 7, 31, 100)]
    [1, 3, 7, 28, 96]
    """
    power = 1 << (int(size).bit_length() - 1)
    quarter = max(power // 4, 1)
    return int(size) // quarter * quarter


def step_above(size: int) -> int:
    """The next step after one.

    >>> [step_above(size) for size in (1, 3, 7, 28)]
    [2, 4, 8, 32]
    """
    return size + max((1 << (size.bit_length() - 1)) // 4, 1)


def predicted(tried: dict[int, float | None], room: float) -> float | None:
    """The size that takes all the room, by the line through the two largest sizes that were measured.

    >>> predicted({4: 50.0, 2: 30.0}, 100.0), predicted({4: None, 2: 30.0}, 100.0)
    (9.0, None)
    """
    known = sorted((size, taken) for size, taken in tried.items() if taken is not None)[-2:]
    if len(known) < 2:
        return None
    (low, less), (high, more) = known
    slope = (more - less) / (high - low)
    return high + (room - more) / slope if slope > 0 else float("inf")


def search(measure: Callable[[int], float | None], room: float, start: int, most: int) -> Search:
    """The largest step up to `most` that fits, in as few measurements as a nearly affine cost allows.

    Halves the start until two sizes are measured, draws a line through the two largest, measures where it says that the
    room ends, and again with what that has shown, until the next step is one that does not fit.

    Args:
        measure: what a size takes, non-decreasing; `None` where it cannot be made.
        room: what it may take.
        start, most: sizes; `1 <= start <= most`.

    >>> search(lambda size: 10.0 + 2 * size, 100.0, 8, 1000)
    Search(size=40, verified=True, tried={8: 26.0, 4: 18.0, 40: 90.0})
    """
    check_whole("start", start, 1, most)
    tried: dict[int, float | None] = {}
    fits, fails, trial = 0, step_above(step_below(most)), step_below(start)
    while True:
        if len(tried) == TRIES:
            return Search(trial, False, tried)
        tried[trial] = taken = measure(trial)
        if taken is not None and taken <= room:
            fits = max(fits, trial)
        else:
            fails = min(fails, trial)
        trial = _next_trial(tried, fits, fails, room)
        if trial is None:
            return Search(fits, fits > 0, tried)


def _next_trial(tried, fits: int, fails: int, room: float) -> int | None:
    """What to measure next; `None` where it is known which step is the last that fits."""
    if step_above(fits) >= fails if fits else fails == 1:
        return None
    end = predicted(tried, room)
    if end is None:
        smaller = min(tried) // 2
        return step_below(smaller) if smaller else step_above(fits)
    highest = step_below(fails - 1)
    trial = min(step_below(max(end, 1)) if end < fails else highest, highest)
    # A line that says that what fits is the last step that does is taken at its word.
    return trial if trial > fits else None if fits else max(step_below(highest / 2), 1)


def largest_batch(config: TrainConfig, pod: Pod, work: str, data, tell: Callable[[str], None]) -> LargestBatch:
    """The largest global batch, up to all training images, whose work fits a pod; each try is a compilation.

    The compiler computes anew what does not fit, where it can, so that near the limit its memory is no line any more:
    what is extrapolated is the batch that fits without.

    Args:
        config: its batch is where the search starts.
        pod, work, data: as of `make_plan`.
        tell: is given a line before every try.

    Raises:
        OutOfMemory: not even one image a part of the batch fits.
        ValueError: as `make_plan`.
    """
    config = accumulated(config, work)
    mesh = make_mesh(config.mesh_data, config.mesh_model, pod.devices)
    parts = mesh.shape["data"] * config.accumulate
    most = min(data[2], 2**24) // parts
    if most < 1:
        raise ValueError(f"largest_batch: {parts} parts of a batch are more than the {data[2]} training images")
    plans: dict[int, Plan] = {}

    def measure(size: int) -> float | None:
        tell(f"batch {size * parts:,}, try {len(plans) + 1}")
        try:
            plans[size] = make_plan(dataclasses.replace(config, batch_size=size * parts), pod, work, data)
        except OutOfMemory:
            return None
        return plans[size].used

    start = min(max(config.batch_size // parts, FEWEST), most)
    found = search(measure, pod.chip.hbm, start, most)
    if not found.size:
        raise OutOfMemory(f"largest_batch: not even batch {parts:,} fits {pod.topology}")
    tried = {size * parts: taken for size, taken in found.tried.items()}
    plan = plans.get(found.size) if found.verified else None
    return LargestBatch(found.size * parts, found.verified, tried, plan, found.size == step_below(most))
