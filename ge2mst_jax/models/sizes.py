"""Parameters of the peers at their published sizes, counted on shapes alone: nothing is computed."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_choice
from ge2mst_jax.models.registry import PEERS, create_model
from ge2mst_jax.nn import SynapseRecord


class Parameters(NamedTuple):
    """Of a peer at a published size.

    Args:
        ours: all that are trained here.
        biases: those more that its authors have before norms, which change nothing.
        norms: those of BatchNorm, among `ours`.
        counted: as the published figure counts them: `ours + biases`, without `norms` where `PeerSize.differs` says so.
    """

    ours: int
    biases: int
    norms: int
    counted: int


def parameter_counts(name: str) -> Parameters:
    """Parameters of a peer, with the images and the classes that its size was published for.

    Args:
        name: a key of `PEERS`.

    Returns:
        `Parameters`, whole numbers; `counted/1e6` is what `PEERS[name].published` should be.

    Raises:
        ValueError: an unknown name.

    >>> parameter_counts("sdt_2_512")
    Parameters(ours=10273444, biases=6144, norms=21376, counted=10279588)
    """
    check_choice("peer", name, PEERS)
    size = PEERS[name]
    side, classes = size.image
    model = create_model(name, num_classes=classes, capture="none")
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    (_, aux), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    ours = {jax.tree_util.keystr(path): a.size for path, a in jax.tree_util.tree_leaves_with_path(variables["params"])}
    norms = sum(number for path, number in ours.items() if "'norm" in path)
    biases = sum(made.out_shape[-1] for path, made in aux.items() if _biased(path, made, size.biased))
    total = sum(ours.values())
    return Parameters(total, biases, norms, total + biases - (norms if size.differs else 0))


def _biased(path: str, made, pattern: str) -> bool:
    """Whether a layer is a synapse which there has a bias before its norm."""
    return isinstance(made, SynapseRecord) and made.role != "head" and bool(re.search(pattern, path))
