"""What can be deployed; what is refused, by a `ConversionError`: other neurons, peers, another network's variables."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ge2mst_jax.convert.fixed_point import ConversionError
from ge2mst_jax.energy import AuditError, audit
from ge2mst_jax.models import Ge2mST

#: Neurons whose twin is what they fire, bit for bit, once deployed.
LOSSLESS = ("expg", "sfa")


def check_neuron(neuron) -> None:
    """Refuses the name of a neuron that cannot be deployed.

    Raises:
        ConversionError: any that is not in `LOSSLESS`.

    >>> check_neuron("sfa")
    """
    if neuron not in LOSSLESS:
        named = " and ".join(map(repr, LOSSLESS))
        raise ConversionError(f"a network of {neuron!r} neurons cannot be converted: only {named} are lossless")


def check_convertible(model) -> None:
    """Refuses a network that cannot be deployed: one of other neurons, and every peer.

    Raises:
        ConversionError: names the neurons, or the family.

    >>> from ge2mst_jax import create_model
    >>> check_convertible(create_model("e_spikeformer_s"))
    Traceback (most recent call last):
    ge2mst_jax.convert.fixed_point.ConversionError: ESpikeFormer cannot be converted: only Ge2mST can
    """
    check_neuron(getattr(model, "neuron", "unknown"))
    if not isinstance(model, Ge2mST):
        raise ConversionError(f"{type(model).__name__} cannot be converted: only Ge2mST can")


def check_trained(model, variables) -> None:
    """Refuses what is no training network, and variables that lack a collection or hold what is no number."""
    check_convertible(model)
    if model.execution != "training":
        raise ConversionError("this network is deployed already: pass the training network")
    for collection in ("params", "batch_stats"):
        if not isinstance(variables, Mapping) or collection not in variables:
            raise ConversionError(f"variables hold no {collection!r}: pass what model.init returned, as it was trained")
    check_finite(variables, "holds numbers that are not finite")


def check_shapes(model, variables, image_shape) -> None:
    """Refuses variables of another network, by the first array that differs."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    expected = jax.eval_shape(model.init, jax.random.key(0), image)
    for collection in ("params", "batch_stats"):
        made, given = (traverse_util.flatten_dict(tree[collection], sep="/") for tree in (expected, variables))
        for name in sorted(made.keys() | given.keys()):
            shapes = [tuple(np.shape(tree[name])) if name in tree else "absent" for tree in (given, made)]
            if shapes[0] != shapes[1]:
                raise ConversionError(
                    f"{name} is {shapes[0]}, but {shapes[1]} in this network on images {image_shape}: "
                    "the variables are of another one"
                )


def check_finite(arrays, what) -> None:
    """Refuses arrays with an infinity or a nan: the first one's path, and `what` of it."""
    for path, array in traverse_util.flatten_dict(arrays, sep="/").items():
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise ConversionError(f"{path} {what}")


def check_accumulates(net) -> None:
    """Refuses a deployed network that multiplies real numbers, in either execution."""
    for execution in ("dense", "spiking"):
        try:
            audit(net, execution).check(analog_stem=True)
        except AuditError as error:
            raise ConversionError(f"{error}: it cannot be converted") from error
