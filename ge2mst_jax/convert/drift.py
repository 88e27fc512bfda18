"""The drift: in how many levels a deployed network differs from the one that was trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.convert.deploy import DeployedNet, forward
from ge2mst_jax.nn import NeuronRecord


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far a deployed network is from the training network, on some images.

    Args:
        images: that were compared.
        levels: compared, all neurons of all images but the input code's.
        levels_differing: of them.
        images_equal: images with no level that differs.
        largest_logit_difference: over all images and classes, absolute.
        layers: levels differing of each neuron layer.
    """

    images: int
    levels: int
    levels_differing: int
    images_equal: int
    largest_logit_difference: float
    layers: dict[str, int]

    @property
    def share(self) -> float:
        """Of levels that differ.

        >>> Drift(1, 200, 1, 0, 0.5, {}).share
        0.005
        """
        return self.levels_differing / self.levels

    def as_dict(self) -> dict:
        """For JSON."""
        return dataclasses.asdict(self) | {"share": self.share}


@functools.partial(jax.jit, static_argnames=("training", "dense"))
def _compared(training, dense, source, variables, images):
    """Levels differing of each neuron layer and image, `[B]`; the trained network's logits; the deployed one's sums."""
    logits, expected = forward(training, source, images)
    sums, found = forward(dense, variables, images)
    differing = {
        name: jnp.sum(record.levels.astype(jnp.int32) != found[name].levels.astype(jnp.int32), (1, 2, 3))
        for name, record in expected.items()
        if isinstance(record, NeuronRecord) and record.parts
    }
    return differing, logits, sums


def measure_drift(net: DeployedNet, images, batch_size: int = 64, progress=None) -> tuple[Drift, np.ndarray]:
    """Runs the training network and the deployed one, densely, and counts the levels that differ.

    Args:
        net: from `deploy`, with its training network.
        images: `[N, H, W, C]`.
        batch_size, progress: as in `compare_executions`.

    Returns:
        The drift, and the training network's logits `[N, classes]`.

    Raises:
        ValueError: the network does not carry its training network.
    """
    if net.source is None:
        raise ValueError("this network does not carry its training network")
    models, variables = (net.model.clone(capture="levels"), net.executed("dense", "levels")), net.variables("dense")
    totals, equal, largest, all_logits = {}, 0, 0.0, []
    for start in range(0, len(images), batch_size):
        batch = jnp.asarray(images[start : start + batch_size])
        # What trained in bfloat16 is compared as it was trained; float32 products are float32 on every backend.
        with jax.default_matmul_precision("highest"):
            differing, logits, sums = jax.device_get(_compared(*models, net.source, variables, batch))
        for name, counts in differing.items():
            totals[name] = totals.get(name, 0) + int(counts.astype(np.int64).sum())
        equal += int((sum(differing.values()) == 0).sum())
        largest = max(largest, float(np.abs(np.asarray(net.logits(sums)) - logits).max()))
        all_logits.append(logits)
        if progress is not None:
            progress(min(start + batch_size, len(images)))
    layers = {name: totals[name] for name in net.layers if name in totals}  # jit sorts by name
    neurons = sum(int(np.prod(net.layers[name].shape)) for name in layers)
    drift = Drift(len(images), neurons * len(images), sum(layers.values()), equal, largest, layers)
    return drift, np.concatenate(all_logits)
