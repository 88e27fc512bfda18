"""Fingerprints find every flipped bit and do not know where an array lives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ge2mst_jax.train import make_mesh
from ge2mst_jax.train.fingerprint import TOGETHER, fingerprints

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool", "complex64", "float8_e4m3fn"]


def random_array(dtype, shape, seed=0):
    dtype = jnp.dtype(dtype)
    raw = np.random.default_rng(seed).bytes(dtype.itemsize * int(np.prod(shape)))
    if dtype.kind == "b":
        return (np.frombuffer(raw, np.uint8) % 2).astype(bool).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def flipped(array, bit):
    content = bytearray(array.tobytes())
    content[bit // 8] ^= 1 << bit % 8
    return np.frombuffer(bytes(content), array.dtype).reshape(array.shape)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bool"])
def test_every_single_flipped_bit_is_found(dtype):
    array = random_array(dtype, (3, 5))
    with np.errstate(invalid="ignore"):
        leaves = {"0": array} | {str(1 + bit): flipped(array, bit) for bit in range(8 * array.nbytes)}
    found = fingerprints(jax.tree.map(jnp.asarray, leaves))
    assert sum(same == found["0"] for same in found.values()) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 7), st.data())
def test_flipped_bit_of_a_larger_array_is_found(seed, data):
    array = random_array("uint32", (64, 33), seed)
    bit = data.draw(st.integers(0, 8 * array.nbytes - 1))
    assert fingerprints([jnp.asarray(array)]) != fingerprints([jnp.asarray(flipped(array, bit))])


@pytest.mark.parametrize("shape", [(), (0,), (8,), (8, 16), (16, 3, 8)])
def test_sharding_makes_no_difference(shape):
    arrays = {dtype: jnp.asarray(random_array(dtype, shape)) for dtype in DTYPES}  # all in one program a placement
    expected = fingerprints(arrays)
    for data, model in ((8, 1), (4, 2), (2, 4)):
        mesh = make_mesh(data, model)
        for axes in ((), ("data",), ("model",), (None, "model"), ("data", "model"), ("model", None, "data")):
            if len(axes) <= len(shape) and all(a is None or shape[i] % mesh.shape[a] == 0 for i, a in enumerate(axes)):
                placed = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(*axes)))
                assert fingerprints(placed) == expected


def test_neighbours_do_not():
    tree = {"a": random_array("float32", (7,)), "b": random_array("float32", (7,), 1), "c": random_array("int32", (7,))}
    together = fingerprints(jax.tree.map(jnp.asarray, tree))
    assert together == {k: v for name in tree for k, v in fingerprints({name: jnp.asarray(tree[name])}).items()}


def test_values_are_these():
    """By the formula, in NumPy's integers; a large array, alone, by the same."""
    array = random_array("uint32", (TOGETHER + 1,))
    index = np.arange(len(array), dtype=np.uint64)
    mixed = (index * 0x9E3779B1) % 2**32
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * 0x85EBCA77) % 2**32
    mixed ^= mixed >> np.uint64(13)
    sums = [int((array * ((2 * odd + 1) % 2**32) % 2**32).sum() % 2**32) for odd in (index, mixed)]
    said = f"uint32[{len(array)}] {sums[0]:08x} {sums[1]:08x}"
    assert fingerprints([jnp.asarray(array)]) == {"0": said}


def test_keys_order_and_moved_values_count():
    values = jnp.arange(6.0)
    prints = [fingerprints([v])["0"] for v in (values, values[::-1], jnp.roll(values, 1), values.reshape(2, 3))]
    assert len(set(prints)) == 4
    keys = [fingerprints([jax.random.key(seed)])["0"] for seed in (0, 1)]
    assert keys[0] != keys[1]


def test_zeros_of_both_signs_and_nans_of_all_kinds_differ():
    bits = np.uint32([0, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFC00000, 1])
    prints = {fingerprints([jnp.asarray(b.view(np.float32))])["0"] for b in bits}
    assert len(prints) == len(bits)
