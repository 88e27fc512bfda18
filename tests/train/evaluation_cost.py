"""What an evaluation of 1,000 classes costs: 10,000 random images by ge2mst_nano, 16x16, batch 1,024, in turns.

    PYTHONPATH=experiments python tests/train/evaluation_cost.py [ROUNDS]

`by products` is how the matrix was counted until commit 5d7f6a3: from the products of one-hot labels and predictions.
Prints a table of time and compiled temporary memory of a batch, and what a checkpoint says of itself with and without
the matrix.
"""

import functools
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from harness.timing import medians, random_batch, temporary_bytes

from ge2mst_jax import create_model
from ge2mst_jax.data import DecodeConfig, MemorySource
from ge2mst_jax.train import Checkpoints, TrainConfig, as_json, batch_sharding, evaluate, make_mesh
from ge2mst_jax.train.scores import tally

IMAGES, CLASSES, BATCH, SHAPE = 10_000, 1_000, 1_024, (16, 16, 3)
module = sys.modules[evaluate.__module__]
uncompiled = module.eval_step.__wrapped__


def products(logits, labels, mask, confusion):
    """The matrix as it was counted: a `[B, classes, classes]` array, summed."""
    classes = logits.shape[1]
    hit = jax.nn.one_hot(labels, classes)[:, :, None] * jax.nn.one_hot(jnp.argmax(logits, -1), classes)[:, None]
    table = jnp.sum((hit * mask[:, None, None]).astype(jnp.int32), 0)
    return {"count": mask.sum(), "top1": jnp.trace(table), "confusion": table}


def counting(count):
    """The compiled step of evaluation, counting so."""

    @functools.partial(jax.jit, static_argnames=("model", "confusion"))
    def step(model, variables, batch, confusion):
        module.tally = count
        return uncompiled(model, variables, batch, confusion)

    return step


def said_in_bytes(evaluation: dict, classes) -> int:
    """Of what a checkpoint says of itself."""
    about = {
        "config": as_json(TrainConfig()), "image_shape": SHAPE, "classes": list(classes), "examples": IMAGES,
        "evaluation": evaluation, "data": {}, "best": 0.5, "accuracy": 0.5, "metrics_lines": 1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder)) as checkpoints:
            checkpoints.restore_latest({})
            checkpoints.save(1, {"a": jnp.zeros(1)}, about)
        return next(Path(folder).rglob("checkpoints/1/_CHECKPOINT_METADATA")).stat().st_size


def main(rounds: int) -> None:
    images, labels = map(np.asarray, random_batch(IMAGES, SHAPE, CLASSES))
    source = MemorySource("random", "test", images, labels, tuple(f"class {n}" for n in range(CLASSES)))
    model = create_model("ge2mst_nano", num_classes=CLASSES)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    common = model, variables, source, BATCH, batch_sharding(make_mesh(1, 1)), DecodeConfig(16)
    batch = {"image": images[:BATCH], "label": labels[:BATCH], "mask": np.ones(BATCH, np.float32)}
    before, now = counting(products), counting(tally)
    ways = {
        "by products, with the matrix": (before, True),
        "by scatter, with the matrix": (now, True),
        "by scatter, without": (now, False),
    }
    found = {}

    def run(name):
        module.eval_step, confusion = ways[name]
        found[name] = evaluate(*common, confusion=confusion)

    seconds = medians({name: functools.partial(run, name) for name in ways}, rounds)
    assert len({each["accuracy"] for each in found.values()}) == 1
    print("| | seconds | temporary memory of a batch, MiB | a checkpoint's metadata, bytes |\n|---|---:|---:|---:|")
    for name, (step, confusion) in ways.items():
        memory = temporary_bytes(step.lower(model, variables, batch, confusion).compile()) / 2**20
        kept = found[name] | ({"confusion": found[name]["confusion"].tolist()} if confusion else {})
        print(f"| {name} | {seconds[name]:.2f} | {memory:,.1f} | {said_in_bytes(kept, source.classes):,} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
