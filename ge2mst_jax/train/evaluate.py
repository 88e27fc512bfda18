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
from ge2mst_jax.train.scores import Scores, tally


@functools.partial(jax.jit, static_argnames=("model", "confusion"))
def eval_step(model, variables, batch, confusion: bool = False):
    """Sums over a batch's masked examples, so that batches of any size add up.

    Returns:
        What `tally` counts, and `loss` and `spikes` (over counted neurons) as float32 scalars.
    """
    logits, aux = model.apply(variables, batch["image"])
    mask, labels = batch["mask"], batch["label"]
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    spikes = sum(r.activity for r in aux.values() if isinstance(r, NeuronRecord) and r.parts)
    sums = {"loss": (loss * mask).sum(), "spikes": (spikes * mask).sum()}
    return tally(logits, labels, mask, confusion) | sums


def counted_neurons(model, variables, image_shape) -> int:
    """Neurons of a network, the input code left out."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    aux = jax.eval_shape(lambda v, x: model.apply(v, x)[1], variables, image)
    return sum(int(np.prod(r.shape)) for r in aux.values() if isinstance(r, NeuronRecord) and r.parts)


def evaluate(
    model, variables, source, batch_size: int, sharding, decode, workers: int = 0, progress=None, confusion=False
) -> dict:
    """Accuracy, loss and spikes of a network on every example of a source.

    Args:
        model: from `create_model`.
        variables: `params` and `batch_stats`.
        source: from `open_source`.
        batch_size: of the global batch.
        sharding: of a batch's leading axis.
        decode, workers: as in `BatchPlan`.
        progress: called with the number of examples seen.
        confusion: whether to count who is taken for whom.

    Returns:
        `{examples, skipped, accuracy, loss, spikes_per_neuron}`, `top5` where there are more than five classes, and,
        where asked for, `confusion`: counts as an array `[label, prediction]`.
    """
    check_whole("batch_size", batch_size, 1, 2**24)
    plan, scores = BatchPlan(batch_size, *local_part(sharding, batch_size), workers, decode), Scores()
    with prefetch_to_device(iter(eval_batches(source, plan)), sharding) as batches:
        for batch in batches:
            seen = {name: batch[name] for name in ("image", "label", "mask")}
            scores.add(eval_step(model, variables, seen, confusion) | {"skipped": jnp.sum(batch["skipped"])})
            if progress is not None:
                progress(scores.images + scores.total("skipped"))
    if not scores.images:
        raise ValueError(f"not one image of the {source.split} split of {source.name} can be decoded")
    return {
        "examples": scores.images,
        "skipped": scores.total("skipped"),
        **scores.shares,
        "loss": scores.mean("loss"),
        "spikes_per_neuron": scores.mean("spikes") / counted_neurons(model, variables, plan.shape(source)),
    } | ({"confusion": scores.confusion} if confusion else {})
