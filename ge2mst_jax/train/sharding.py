"""Where arrays live: a mesh of devices, and ordered rules from parameter names to shardings."""

import dataclasses
import re

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ge2mst_jax.checks import check_whole

DATA, MODEL = "data", "model"


@dataclasses.dataclass(frozen=True)
class Rule:
    """How arrays whose path matches are sharded.

    Args:
        pattern: regular expression, searched in the path (`params/stage_0/block_0/conv_0/kernel`).
        tensor: whether the last axis (output channels) is cut along the mesh's model axis, where it divides.
        fsdp: whether a large array is cut along the data axis, on its largest axis that divides.
    """

    pattern: str
    tensor: bool = False
    fsdp: bool = False


#: Read in order, the first that matches decides. Optimiser moments and the average carry their parameter's path.
RULES = (
    Rule(r"head/kernel$", fsdp=True),
    Rule(r"kernel[^/]*$", tensor=True, fsdp=True),
    Rule(r""),
)


def make_mesh(data: int = -1, model: int = 1, devices=None) -> jax.sharding.Mesh:
    """A mesh with the axes `data` and `model`, both `Auto` (`jax.make_mesh`'s own default is Explicit).

    Raises:
        ValueError: more devices than there are, or a number that does not divide them.

    >>> make_mesh().axis_names
    ('data', 'model')
    """
    devices = jax.devices() if devices is None else devices
    check_whole("mesh_data", data, -1, 2**20)
    check_whole("mesh_model", model, 1, 2**20)
    if data == 0:
        raise ValueError("mesh_data is 0: it must be at least 1, or -1 for all devices")
    if data == -1:
        if len(devices) % model:
            raise ValueError(f"mesh_model is {model}: it must divide the {len(devices)} devices")
        data = len(devices) // model
    if data * model > len(devices):
        raise ValueError(f"a mesh of {data}x{model} needs {data * model} devices: there are {len(devices)}")
    return jax.make_mesh(
        (data, model), (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices[: data * model]
    )


def batch_sharding(mesh) -> NamedSharding:
    """Of a batch's leading axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spec_of(shape, rule: Rule, mesh, fsdp_min_elements: int) -> PartitionSpec:
    """The sharding of one array under a rule.

    >>> tuple(spec_of((3, 3, 64, 128), Rule("", tensor=True), make_mesh(1, 1), 0))
    (None, None, None, 'model')
    """
    axes: list[str | None] = [None] * len(shape)
    size = 1
    for side in shape:
        size *= side
    if rule.tensor and shape and shape[-1] % mesh.shape[MODEL] == 0:
        axes[-1] = MODEL
    if rule.fsdp and size >= fsdp_min_elements:
        free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % mesh.shape[DATA] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = DATA
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def infer_shardings(tree, mesh, rules=RULES, fsdp_min_elements: int = 2**22):
    """The sharding of every leaf.

    Args:
        tree: shapes, as from `jax.eval_shape`.
        mesh: from `make_mesh`.
        rules: read in order.
        fsdp_min_elements: of arrays that are cut along the data axis.

    Raises:
        ValueError: a leaf that no rule matches, or a rule that matches no leaf: each is a typing error.
    """
    used = set()

    def sharding(path, leaf):
        name = path_name(path)
        for i, rule in enumerate(rules):
            if re.search(rule.pattern, name):
                used.add(i)
                return NamedSharding(mesh, spec_of(leaf.shape, rule, mesh, fsdp_min_elements))
        raise ValueError(f"no sharding rule matches {name}: end the rules with a catch-all")

    shardings = jax.tree_util.tree_map_with_path(sharding, tree)
    unused = [rule.pattern for i, rule in enumerate(rules) if i not in used]
    if unused:
        raise ValueError(f"the sharding rule {unused[0]!r} matches no array")
    return shardings


def path_name(path) -> str:
    """`a/b/c` of a path in a pytree.

    >>> path_name(jax.tree_util.tree_flatten_with_path({"a": [1]})[0][0][0])
    'a/0'
    """
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
