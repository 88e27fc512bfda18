"""Deployed networks, stored: one Orbax checkpoint with both networks' parameters and all that rebuilds them."""

import contextlib
import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from ge2mst_jax.checkpoint import METADATA, CheckpointError, check_path, load_arrays, read_seal, reason, seal
from ge2mst_jax.checks import one_line
from ge2mst_jax.convert.certificate import CertificateError, check_network
from ge2mst_jax.convert.deploy import DeployedNet
from ge2mst_jax.convert.fixed_point import CurrentFormat
from ge2mst_jax.folders import exists, files_in, is_folder, is_unfinished, make, move, names_in, remove, sync
from ge2mst_jax.models import create_model, model_fields

SCHEMA = 6


def save_net(path, net: DeployedNet, model_name: str) -> None:
    """Writes a deployed network and the training network that it came from; whole or not at all.

    It is written beside `path` and takes its place by two renames (in a bucket by copies); `load_net` knows what may
    lie between them, so that the old network or the new one can be loaded whenever this is killed.

    Args:
        path: of the checkpoint, a folder; a deployed network that is there is replaced.
        net: from `deploy`.
        model_name: as `create_model` knows it.

    Raises:
        CheckpointError: something else is at `path`, or it cannot be written.
        ValueError: `net.about` holds what JSON cannot, or there is no model of that name.
    """
    path = check_path(path)
    if create_model(model_name, **model_fields(net.model)) != net.model.clone(parent=None):
        raise ValueError(f"the network is not one that create_model({model_name!r}, ...) makes")
    arrays = {"deployed": _plain(net.params)} | ({} if net.source is None else {"training": _plain(net.source)})
    about = seal(
        {
            "schema": SCHEMA,
            "model": {"name": model_name, "fields": model_fields(net.model)},
            "image_shape": list(net.image_shape),
            "digest": net.digest,
            "formats": [dataclasses.asdict(f) for f in net.formats],
            "about": net.about,
            "arrays": jax.tree.map(describe, arrays),
        }
    )
    old, new = _beside(path, "old"), _beside(path, "new")
    try:
        _recover(path)
        if exists(path) and not _may_be_replaced(path):
            raise CheckpointError(
                f"{one_line(path)} is no deployed network that can be read: it is not replaced; move it, or give "
                "another path"
            )
        make(path.parent)
        for left in names_in(path.parent):  # by saves that were killed
            if left == old.name or left.startswith(new.name):
                remove(path.parent / left)
        ocp.save(new, arrays, custom_metadata=about)
        sync(new)
        if exists(path):
            move(path, old)
        move(new, path)
        sync(path.parent, deep=False)
        with contextlib.suppress(OSError):
            remove(old)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax and TensorStore raise whatever their writers meet
        raise CheckpointError(f"the checkpoint {one_line(path)} cannot be written: {reason(error)}") from error


def load_net(path) -> DeployedNet:
    """Reads what `save_net` wrote and checks every number, every digest and the definition.

    Raises:
        CheckpointError: no checkpoint at `path`, another program's, or a damaged one.
    """
    path = check_path(path)
    if not _is_there(path) and _is_there(_beside(path, "old")):
        path = _beside(path, "old")  # a save was killed between its two renames
    if not _is_there(path):
        raise CheckpointError(
            f"no checkpoint at {one_line(path)}: give the folder that a run wrote, e.g. runs/quickstart/checkpoint"
        )
    if not exists(path / METADATA):
        raise CheckpointError(f"{one_line(path)} is not one of a deployed network: it has no {METADATA}")
    about = read_seal(path)
    if about.get("schema") != SCHEMA:
        raise CheckpointError(f"the checkpoint {one_line(path)} is not one of a deployed network (schema {SCHEMA})")
    arrays = _load(path, about["arrays"])
    try:
        net = DeployedNet(
            create_model(about["model"]["name"], **about["model"]["fields"]),
            arrays["deployed"],
            tuple(
                CurrentFormat(**f | {"parts": tuple(f["parts"]), "readers": tuple(f["readers"])})
                for f in about["formats"]
            ),
            tuple(about["image_shape"]),
            about["digest"],
            arrays.get("training"),
            about["about"],
        )
        check_network(net)
    except CertificateError as error:
        raise CheckpointError(f"the checkpoint {one_line(path)} is damaged: {reason(error)}") from error
    except (KeyError, TypeError, ValueError) as error:  # what was written is whole: another version wrote it
        raise CheckpointError(
            f"the checkpoint {one_line(path)} is of another version of this package: {reason(error)}"
        ) from error
    return net


def describe(array: np.ndarray) -> dict:
    """Type, shape and SHA-256 of an array.

    >>> describe(np.zeros(2, np.float32))["shape"], describe(np.zeros(2))["sha256"] == describe(np.ones(2))["sha256"]
    ([2], False)
    """
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _load(path, expected):
    """The arrays that `expected` describes, on the host: a checkpoint is read the same on any machine."""

    def described(node) -> bool:
        return "sha256" in node

    abstract = jax.tree.map(lambda d: np.empty(d["shape"], jnp.dtype(d["dtype"])), expected, is_leaf=described)
    arrays = jax.tree.map(np.asarray, load_arrays(path, abstract))
    for name, array in traverse_util.flatten_dict(arrays, sep="/").items():
        if describe(array) != traverse_util.flatten_dict(expected, sep="/", is_leaf=lambda _, d: described(d))[name]:
            raise CheckpointError(f"the checkpoint {one_line(path)} is damaged: {name} is not what was written")
    return arrays


def _plain(tree) -> dict:
    """Dicts of arrays on the host, of any kind of mapping."""
    return traverse_util.unflatten_dict({path: np.asarray(a) for path, a in traverse_util.flatten_dict(tree).items()})


def _beside(path, kind: str):
    return path.with_name(f".{path.name}.{kind}")


def _is_there(path) -> bool:
    return is_folder(path) and not is_unfinished(path)


def _files(path) -> set[str]:
    return {str(file.relative_to(path)) for file in files_in(path)}


def _may_be_replaced(path) -> bool:
    """An empty folder, or a deployed network."""
    if is_folder(path) and not names_in(path):
        return True
    try:
        return "formats" in read_seal(path)
    except CheckpointError:
        return False


def _recover(path) -> None:
    """Puts the old network back where a save was killed between its two renames, or while it copied."""
    old, new = _beside(path, "old"), _beside(path, "new")
    if is_unfinished(path) and exists(path) and _files(path) <= _files(old) | _files(new):
        remove(path)
    if not exists(path) and _is_there(old):
        move(old, path)
