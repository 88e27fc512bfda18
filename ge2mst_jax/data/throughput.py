"""How fast the input pipeline decodes a folder of images, beside plain Pillow in the same run."""

import itertools
import statistics
import sys
import time

import numpy as np
from PIL import Image

from ge2mst_jax.checks import check_number, check_whole
from ge2mst_jax.data.decode import DRAWS, FLIP, DecodeConfig, random_box
from ge2mst_jax.data.folder import FolderSource
from ge2mst_jax.data.pipeline import train_batches
from ge2mst_jax.data.plan import BatchPlan, TrainBatches
from ge2mst_jax.data.sources import open_source

WARM_UP = 2  # batches a worker process has made before its clock starts


def plain_pillow(source: FolderSource, indices, config: DecodeConfig, rng: np.random.Generator) -> np.ndarray:
    """What one would write by hand: open, to RGB, crop a random box, resize, flip every other time, stack."""
    images = []
    for index in indices:
        with Image.open(source.path(int(index))) as image:
            draws = rng.random(DRAWS).tolist()
            box = random_box(draws, *image.size, config.min_area)
            size = (config.image_size, config.image_size)
            image = image.convert("RGB").crop(box).resize(size, Image.Resampling.BILINEAR)
            if config.flip and draws[FLIP] < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            images.append(np.asarray(image))
    return np.stack(images)


def rate(make, images: int) -> float:
    """Images a second of wall time."""
    start = time.perf_counter()
    make()
    return images / (time.perf_counter() - start)


def measure(folder, seconds: float = 10.0, *, image_size: int = 224, batch_size: int = 32, workers: int = 2) -> dict:
    """Decodes, crops and resizes training images in turn with the pipeline and with plain Pillow, one core each.

    The two take turns, batch by batch, on the same images, so that whatever else the machine does disturbs both.

    Args:
        folder: as of `open_source("folder:…")`.
        seconds: for the two together; half as long again for the worker processes.
        image_size: of the result.
        batch_size: images a turn.
        workers: processes of the second measurement; 0 leaves it out.

    Returns:
        Images a second, medians over the turns: `pipeline`, `pillow`, their `ratio` (median of the turns' ratios),
        `turns` and, with workers, `pipeline_workers`.

    Raises:
        DataError: the folder is no data set.
        ValueError: a number is out of range.
    """
    check_number("seconds", seconds, 0, 3600, above=True)
    check_whole("workers", workers, 0, 1024)
    source = open_source(f"folder:{folder}", "train")
    plan = BatchPlan(batch_size, decode=DecodeConfig(image_size))
    elements, rng = TrainBatches(source, plan, seed=0, steps=sys.maxsize), np.random.default_rng(0)
    batches = train_batches(source, plan, seed=0)
    turns, stop = [], time.perf_counter() + seconds
    for step in itertools.count():
        indices = elements.indices(plan.positions(step))
        makers = [lambda: next(batches), lambda indices=indices: plain_pillow(source, indices, plan.decode, rng)]
        first = step % 2  # who comes second finds the files in the cache
        rates = {i: rate(makers[i], batch_size) for i in (first, 1 - first)}
        if step:  # the first of anything is slow
            turns.append((rates[0], rates[1]))
        if turns and time.perf_counter() > stop:
            break
    result = dict(
        pipeline=statistics.median(ours for ours, _ in turns),
        pillow=statistics.median(plain for _, plain in turns),
        ratio=statistics.median(ours / plain for ours, plain in turns),
        turns=len(turns), image_size=image_size, batch_size=batch_size,
    )  # fmt: skip
    if workers:
        result |= dict(workers=workers, pipeline_workers=worker_rate(source, plan, seconds / 2, workers))
    return result


def worker_rate(source: FolderSource, plan: BatchPlan, seconds: float, workers: int) -> float:
    """Images a second from worker processes, once they run."""
    plan = BatchPlan(plan.batch_size, workers=workers, decode=plan.decode)
    batches = train_batches(source, plan, seed=0)
    try:
        for _ in range((WARM_UP + 1) * workers):  # what they made ahead while they started doesn't count
            next(batches)
        start, images = time.perf_counter(), 0
        while not images or time.perf_counter() < start + seconds:
            next(batches)
            images += plan.batch_size
        return images / (time.perf_counter() - start)
    finally:
        batches.close()
