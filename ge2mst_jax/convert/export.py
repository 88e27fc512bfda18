"""The deployed network as a file that needs none of this code: one StableHLO program, its weights inside.

It holds each platform's own planes (`nn/planes.py`). Whether a backend's convolution is a plain sum of products was not
tried where it will run, so that it has none: its maps are products by kernel tap, exact by construction.
"""

import contextlib
import dataclasses
import hashlib
import json
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from ge2mst_jax.checkpoint import reason, seal
from ge2mst_jax.checks import check_choice, one_line, shown
from ge2mst_jax.convert.certificate import check_network
from ge2mst_jax.convert.deploy import DeployedNet
from ge2mst_jax.files import read_json, write_whole
from ge2mst_jax.nn import check_images

#: Platforms, as JAX names what it lowers for, and the backend whose arithmetic each has.
BACKEND_OF = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}
KIND = "exported network of ge2mst_jax, 1"


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedNet:
    """An exported network that was read back: `net(images)` gives `{"logits": [b, classes], "sums": [b, classes]}`.

    Args:
        exported: the program; `exported.call(images)` is the network, without the checks.
        about: what `save_exported` wrote beside it.
    """

    exported: export.Exported
    about: dict

    def __call__(self, images):
        check_images(images, tuple(self.about["image_shape"]))
        if images.dtype != jnp.uint8 or not len(images):
            raise ValueError(f"{len(images)} images of dtype {images.dtype}: they must be one or more, and uint8")
        return self.exported.call(images)


def export_net(net: DeployedNet, execution: str = "dense", platforms=("cpu", "cuda", "tpu")) -> export.Exported:
    """The program of a deployed network.

    From images `[b, H, W, C]`, uint8, one or more, to `{"logits": float32, "sums": int32}`, each `[b, classes]`; the
    sums are the certified ones. Float images are not taken: give `round(255·x)` of them.

    Args:
        net: from `deploy` or `load_net`; it is checked first.
        execution: `"dense"` or `"spiking"`.
        platforms: some of `cpu`, `cuda`, `rocm`, `tpu`; none of them has to be here.

    Raises:
        ValueError: no deployed network, or one that was changed; an unknown execution or platform.

    >>> from ge2mst_jax import create_model
    >>> from ge2mst_jax.convert import deploy
    >>> model, images = create_model("ge2mst_nano", stages=(("conv", 8, 1),)), jnp.zeros((3, 8, 8, 1), jnp.uint8)
    >>> net = deploy(model, model.init(jax.random.key(0), images), (8, 8, 1))
    >>> exported = export_net(net, platforms=("cpu", "tpu"))
    >>> [str(a) for a in exported.in_avals], bool((exported.call(images)["logits"] == net(images)[0]).all())
    (['uint8[b,8,8,1]'], True)
    """
    if not isinstance(net, DeployedNet):
        raise ValueError(f"net is {shown(net)}: it must be a DeployedNet, as deploy or load_net give it")
    if not isinstance(platforms, tuple | list) or not platforms:
        raise ValueError(f"platforms is {shown(platforms)}: it must be a tuple of some of {', '.join(BACKEND_OF)}")
    for platform in platforms:
        check_choice("platform", platform, BACKEND_OF)
    module = net.executed(execution, "none")
    check_network(net)

    def on(backend):
        """The network with a backend's arithmetic."""

        def computed(params, images):
            sums = module.clone(backend=backend).apply({"params": params}, images)[0]
            return {"logits": net.logits(sums), "sums": sums}

        return computed

    of_backend = {backend: on(backend) for backend in BACKEND_OF.values()}
    branches = {platform: of_backend[BACKEND_OF[platform]] for platform in platforms}

    def network(images):
        # The weights are an argument: each branch would embed its own, else.
        return jax.lax.platform_dependent(net.params, images, **branches)

    images = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), *net.image_shape), jnp.uint8)
    with without_places():
        return export.export(jax.jit(network), platforms=tuple(branches))(images)


@contextlib.contextmanager
def without_places():
    """Leaves out of a lowered program where in which file of this machine each operation was written.

    One network gives the same bytes wherever this package lies.
    """
    limit, before = "jax_traceback_in_locations_limit", jax.config.jax_traceback_in_locations_limit
    jax.config.update(limit, 0)
    try:
        yield
    finally:
        jax.config.update(limit, before)


def save_exported(path, net: DeployedNet, execution: str = "dense", platforms=("cpu", "cuda", "tpu")) -> None:
    """Writes a network's program, as `jax.export.deserialize` reads it, and what it is into `path` + `.json`.

    Args:
        path: of the file; an exported network that is there is replaced.
        net, execution, platforms: as of `export_net`.

    Raises:
        ValueError: as `export_net`, or something else lies at one of the two paths.
        OSError: they cannot be written.
    """
    path = Path(path)
    if (path.exists() or _beside(path).exists()) and not _is_ours(path):
        raise ValueError(
            f"{one_line(path)} or its .json is there and no exported network: it is not replaced; move it, or give "
            "another path"
        )
    exported = export_net(net, execution, platforms)
    content = bytes(exported.serialize())
    about = {
        "kind": KIND,
        "file_sha256": hashlib.sha256(content).hexdigest(),
        "digest": net.digest,
        "execution": execution,
        "platforms": exported.platforms,
        "image_shape": net.image_shape,
        "takes": str(*exported.in_avals),
        "gives": jax.tree.unflatten(exported.out_tree, map(str, exported.out_avals)),
        "classes": net.about.get("classes"),
        "decode": net.about.get("decode"),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "ge2mst-jax")},
        "calling_convention_version": exported.calling_convention_version,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # In this order: whatever a kill leaves is still known as ours.
    write_whole(_beside(path), json.dumps(seal(about), indent=1) + "\n")
    write_whole(path, content)


def load_exported(path) -> ExportedNet:
    """Reads what `save_exported` wrote.

    Raises:
        ValueError: no exported network at `path`, a damaged one, or one that this version of JAX does not read.
    """
    path = Path(path)
    about = _read_about(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{one_line(path)} cannot be read: {reason(error)}") from error
    if hashlib.sha256(content).hexdigest() != about["file_sha256"]:
        raise ValueError(f"{one_line(path)} is damaged, or not the file that its .json describes: export it again")
    try:
        return ExportedNet(export.deserialize(bytearray(content)), about)
    except Exception as error:  # whatever another version's bytes lead to
        raise ValueError(
            f"{one_line(path)} was written by jax {about['versions']['jax']} and cannot be read by {jax.__version__}: "
            f"{reason(error)}"
        ) from error


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_about(path: Path) -> dict:
    name = one_line(_beside(path))
    try:
        about = read_json(_beside(path))
    except OSError as error:
        raise ValueError(f"no exported network at {one_line(path)}: {name} cannot be read: {reason(error)}") from error
    if about.get("kind") != KIND:
        raise ValueError(f"{name} does not describe an exported network of this version")
    if seal({key: value for key, value in about.items() if key != "sha256"}) != about:
        raise ValueError(f"{name} is damaged: it is not what was written; export the network again")
    return about


def _is_ours(path: Path) -> bool:
    try:
        return bool(_read_about(path))
    except ValueError:
        return False
