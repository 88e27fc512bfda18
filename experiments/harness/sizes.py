"""What a network amounts to before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax import create_model
from ge2mst_jax.energy.synops import dense_macs
from ge2mst_jax.nn import AttentionRecord, SynapseRecord


def size_of(name: str, image_shape, classes: int) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates of one dense pass, and `T` of a network; nothing is computed."""
    model = create_model(name, num_classes=classes)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    (_, aux), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    macs = sum(dense_macs(record) for record in aux.values() if isinstance(record, SynapseRecord))
    macs += sum(count for r in aux.values() if isinstance(r, AttentionRecord) for count, _ in r.products)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"])), macs, model.num_steps
