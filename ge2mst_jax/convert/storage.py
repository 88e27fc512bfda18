"""Deployed networks on disk: one Orbax checkpoint with both networks' parameters and all that rebuilds them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ge2mst_jax.convert.certificate import CertificateError, check_network
from ge2mst_jax.convert.deploy import DeployedNet
from ge2mst_jax.convert.fixed_point import CurrentFormat
from ge2mst_jax.models import create_model, model_fields

SCHEMA = 1


class CheckpointError(ValueError):
    """A checkpoint that is not there, not ours, or damaged; the message names it."""


def save_net(path, net: DeployedNet, model_name: str) -> None:
    """Writes a deployed network and the training network that it came from; whole or not at all.

    Args:
        path: of the checkpoint, a folder; replaced if it is there.
        net: from `deploy`.
        model_name: as `create_model` knows it.
    """
    about = {
        "schema": SCHEMA,
        "model": {"name": model_name, "fields": model_fields(net.model)},
        "image_shape": list(net.image_shape),
        "digest": net.digest,
        "formats": [dataclasses.asdict(f) for f in net.formats],
    }
    arrays = {"training": net.source, "deployed": net.params}
    ocp.save(Path(path).resolve(), jax.tree.map(np.asarray, arrays), overwrite=True, custom_metadata=about)


def load_net(path) -> DeployedNet:
    """Reads what `save_net` wrote and checks every number and the digest.

    Raises:
        CheckpointError: no checkpoint at `path`, another program's, or a damaged one.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        raise CheckpointError(
            f"no checkpoint at {path}: give the folder that a run wrote, e.g. runs/quickstart/checkpoint"
        )
    try:
        about = ocp.metadata(path).custom_metadata or {}
        arrays = jax.tree.map(np.asarray, ocp.load(path, _abstract(path)))
    except Exception as error:  # Orbax and TensorStore raise whatever their readers meet
        raise CheckpointError(f"the checkpoint {path} cannot be read: {first_line(error)}") from error
    if about.get("schema") != SCHEMA:
        raise CheckpointError(f"the checkpoint {path} is not one of a deployed network (schema {SCHEMA})")
    net = DeployedNet(
        create_model(about["model"]["name"], **about["model"]["fields"]),
        arrays["deployed"],
        tuple(
            CurrentFormat(tuple(f["parts"]), tuple(f["readers"]), f["fraction_bits"], f["bound"])
            for f in about["formats"]
        ),
        tuple(about["image_shape"]),
        about["digest"],
        arrays["training"],
    )
    try:
        check_network(net)
    except (CertificateError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {first_line(error)}") from error
    return net


def _abstract(path):
    """Shapes to load into, on the host: a checkpoint is read the same on any machine."""
    return jax.tree.map(lambda m: np.empty(m.shape, m.dtype) if hasattr(m, "shape") else m, ocp.metadata(path).metadata)


def first_line(error) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
