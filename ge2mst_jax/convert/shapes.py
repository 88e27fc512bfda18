"""The shapes of a deployed network, without one: what is lowered and compiled before anything was trained."""

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.convert.convertible import check_convertible
from ge2mst_jax.convert.fixed_point import leaves, nest
from ge2mst_jax.nn import AttentionRecord, SynapseRecord


def deployed_shapes(model, image_shape) -> dict:
    """What `deploy` would make of a training network's parameters: shapes and types alone, nothing is computed.

    Args:
        model: from `create_model`, with a neuron of `LOSSLESS`.
        image_shape: `(H, W, C)` of the images to come.

    Returns:
        As `DeployedNet.params`.

    Raises:
        ConversionError: another neuron, or a peer.

    >>> from ge2mst_jax import create_model
    >>> deployed_shapes(create_model("ge2mst_nano"), (8, 8, 1))["head"]["kernel"]
    ShapeDtypeStruct(shape=(48, 10), dtype=int32)
    """
    check_convertible(model)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)

    def folded(key, image):
        (_, aux), made = model.apply(model.init(key, image), image, mutable=["deployed"])
        return aux, made["deployed"]

    aux, params = jax.eval_shape(folded, jax.eval_shape(lambda: jax.random.key(0)), image)
    scalar, layers = np.zeros(()), {}
    for name, record in aux.items():
        if isinstance(record, AttentionRecord):
            layers[name] = {"shift": scalar}
        elif arrays := leaves(params, name):
            guarded = isinstance(record, SynapseRecord) and record.role != "head"
            layers[name] = arrays | ({"guard": scalar} if guarded else {})
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jnp.int32), nest(layers))
