"""Exact evaluation: every example once, over all devices and processes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.checks import check_whole
from ge2mst_jax.data.pipeline import eval_batches
from ge2mst_jax.data.plan import BatchPlan
from ge2mst_jax.data.prefetch import local_part, prefetch_to_device
from ge2mst_jax.nn import NeuronRecord


@functools.partial(jax.jit, static_argnames=("model",))
def eval_step(model, variables, batch):
    """Sums over a batch's masked examples, so that batches of any size add up.

    Returns:
        `count`, `loss`, `spikes` (over counted neurons) as float32 scalars, and `confusion`, int32
        `[label, prediction]`.
    """
    logits, aux = model.apply(variables, batch["image"])
    mask, labels = batch["mask"], batch["label"]
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    spikes = sum(r.activity for r in aux.values() if isinstance(r, NeuronRecord) and r.parts)
    hit = (
        jax.nn.one_hot(labels, model.num_classes)[:, :, None]
        * jax.nn.one_hot(jnp.argmax(logits, -1), model.num_classes)[:, None]
    )
    confusion = jnp.sum((hit * mask[:, None, None]).astype(jnp.int32), 0)
    return {"count": mask.sum(), "loss": (loss * mask).sum(), "spikes": (spikes * mask).sum(), "confusion": confusion}


def counted_neurons(model, variables, image_shape) -> int:
    """Neurons of a network, the input code left out."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    aux = jax.eval_shape(lambda v, x: model.apply(v, x)[1], variables, image)
    return sum(int(np.prod(r.shape)) for r in aux.values() if isinstance(r, NeuronRecord) and r.parts)


def evaluate(model, variables, source, batch_size: int, sharding, decode, workers: int = 0, progress=None) -> dict:
    """Accuracy, loss and spikes of a network on every example of a source.

    Args:
        model: from `create_model`.
        variables: `params` and `batch_stats`.
        source: from `open_source`.
        batch_size: of the global batch.
        sharding: of a batch's leading axis.
        decode, workers: as in `BatchPlan`.
        progress: called with the number of examples seen.

    Returns:
        `{examples, skipped, accuracy, loss, spikes_per_neuron, confusion}`; `confusion[label][prediction]` counts.
    """
    check_whole("batch_size", batch_size, 1, 2**24)
    plan = BatchPlan(batch_size, *local_part(sharding, batch_size), workers, decode)
    total, skipped = None, 0
    with prefetch_to_device(iter(eval_batches(source, plan)), sharding) as batches:
        for batch in batches:
            sums = jax.device_get(eval_step(model, variables, {k: batch[k] for k in ("image", "label", "mask")}))
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
            skipped += int(jax.device_get(jnp.sum(batch["skipped"])))
            if progress is not None:
                progress(int(total["count"]))
    count, confusion = total["count"], total["confusion"].astype(int)
    if not count:
        raise ValueError(f"not one image of the {source.split} split of {source.name} can be decoded")
    return {
        "examples": int(count),
        "skipped": skipped,
        "accuracy": float(np.trace(confusion) / count),
        "loss": float(total["loss"] / count),
        "spikes_per_neuron": float(total["spikes"] / count / counted_neurons(model, variables, plan.shape(source))),
        "confusion": confusion.tolist(),
    }
