"""Rules decide where every array lies; it is born there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec
from short_runs import setup_of, short

from ge2mst_jax.train import Rule, infer_shardings, make_mesh, set_up

SHAPES = {
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32)},
    "odd": {"kernel": jax.ShapeDtypeStruct((3, 3, 63, 127), jnp.float32)},
    "norm": {"scale": jax.ShapeDtypeStruct((128,), jnp.float32)},
    "head": {"kernel": jax.ShapeDtypeStruct((128, 1000), jnp.float32)},
    "step": jax.ShapeDtypeStruct((), jnp.int32),
}


def specs_by_name(mesh, **options):
    return jax.tree.map(lambda s: s.spec, infer_shardings(SHAPES, mesh, **options))


def test_mesh_has_auto_axes_of_all_devices():
    mesh = make_mesh()
    assert dict(mesh.shape) == {"data": 8, "model": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(make_mesh(model=2).shape) == {"data": 4, "model": 2}
    assert dict(make_mesh(2, 2).shape) == {"data": 2, "model": 2}


@pytest.mark.parametrize(
    ("sides", "says"),
    [
        ((-1, 3), "mesh_model is 3: it must divide the 8 devices"),
        ((8, 2), "a mesh of 8x2 needs 16 devices: there are 8"),
    ],
)
def test_mesh_that_the_devices_do_not_make_is_refused(sides, says):
    with pytest.raises(ValueError, match=says):
        make_mesh(*sides)


def test_large_kernels_are_cut_along_data_and_channels_along_model():
    found = specs_by_name(make_mesh(4, 2), fsdp_min_elements=1000)
    assert found["conv"]["kernel"] == PartitionSpec(None, None, "data", "model")
    assert found["odd"]["kernel"] == PartitionSpec()  # nothing divides
    assert found["norm"]["scale"] == found["step"] == PartitionSpec()
    assert found["head"]["kernel"] == PartitionSpec(None, "data")  # by its own rule: classes are not cut along model
    assert specs_by_name(make_mesh(8, 1), fsdp_min_elements=10**9)["head"]["kernel"] == PartitionSpec()


def test_first_rule_that_matches_decides_and_every_rule_must():
    mesh = make_mesh(4, 2)
    first = (Rule(r"conv/kernel$"), Rule(r"kernel$", tensor=True), Rule(r""))
    found = specs_by_name(mesh, rules=first)
    assert found["conv"]["kernel"] == PartitionSpec()
    assert found["head"]["kernel"] == PartitionSpec(None, "model")
    with pytest.raises(ValueError, match="no sharding rule matches conv/kernel: end the rules with a catch-all"):
        infer_shardings(SHAPES, mesh, rules=(Rule(r"head"),))
    with pytest.raises(ValueError, match="the sharding rule 'convolution' matches no array"):
        infer_shardings(SHAPES, mesh, rules=(Rule(r"convolution"), Rule(r"")))


@pytest.mark.slow
def test_state_is_born_sharded_with_its_moments_and_its_average():
    setup = setup_of(short(mesh_data=4, mesh_model=2, fsdp_min_elements=1000))
    state = setup.init()
    flat = {jax.tree_util.keystr(p): a for p, a in jax.tree_util.tree_flatten_with_path(state)[0]}
    cut = {name: a for name, a in flat.items() if not a.sharding.is_fully_replicated}
    for part in (".params", ".opt_state", ".ema"):
        assert any(name.startswith(part) for name in cut), part
    for name, array in cut.items():
        shard = array.addressable_shards[0].data
        assert shard.size < array.size, name
    for array, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(setup.abstract_state), strict=True):
        assert array.sharding == abstract.sharding


def test_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(
        ValueError, match="batch_size is 36: 8 devices along data, with accumulate 1, need a multiple of 8"
    ):
        set_up(short(batch_size=36), (8, 8, 1), 10, 1437)
    with pytest.raises(ValueError, match="with accumulate 8, need a multiple of 64"):
        set_up(short(batch_size=32, accumulate=8), (8, 8, 1), 10, 1437)
