"""Fingerprints of arrays: computed where they live, from their bits, the same under every sharding."""

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.train.sharding import path_name

#: Elements of an array up to which it is copied beside others of its shape.
TOGETHER = 2**18


def describe(state) -> dict[str, str]:
    """Type and shape of every leaf, by its path.

    >>> describe({"a": jnp.zeros((2, 3))})
    {'a': 'float32[2,3]'}
    """
    return {
        path_name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def fingerprints(state) -> dict[str, str]:
    """Type, shape and fingerprint of every leaf, by its path; two 32-bit sums, `Σ_i bits_i · odd_k(i) mod 2^32`.

    A single flipped bit changes a sum by `±2^b · odd`, never 0 modulo `2^32`: it is always found. Whole numbers add up
    to the same in every order, so that shardings, devices and processes make no difference.

    Args:
        state: pytree of arrays (numbers, bools, keys), of any sharding.

    >>> fingerprints({"a": jnp.zeros(2), "b": jnp.array([0.0, 1.0])})
    {'a': 'float32[2] 00000000 00000000', 'b': 'float32[2] be800000 1d800000'}
    """
    leaves = jax.tree.leaves(state)
    sums = np.empty((len(leaves), 2), np.uint32)
    for members, found in zip(_groups(leaves), jax.device_get(_sums(leaves)), strict=True):
        sums[members] = found
    return {
        path: f"{said} {first:08x} {second:08x}"
        for (path, said), (first, second) in zip(describe(state).items(), sums.tolist(), strict=True)
    }


def _groups(leaves) -> list[list[int]]:
    """Small leaves of one kind are taken together, the others alone: a sum for each would take long to compile."""
    groups: dict[tuple, list] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault((leaf.shape, str(leaf.dtype), i if leaf.size > TOGETHER else None), []).append(i)
    return list(groups.values())


@jax.jit
def _sums(leaves):
    """`[members, 2]` uint32 of each group."""
    return [jax.vmap(_sums_of)(jnp.stack([words(leaves[i]) for i in members])) for members in _groups(leaves)]


def _sums_of(array):
    """The two sums of an array of uint32."""
    index, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):  # no reshape: it would gather what is sharded
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    mixed = index * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
    mixed ^= mixed >> 13
    return jnp.stack([jnp.sum(array * (odd * 2 + 1), dtype=jnp.uint32) for odd in (index, mixed)])


def words(array):
    """The bits of an array as uint32; numbers of 8 bytes get an axis of two.

    >>> words(jnp.array([1.0, -2.0], jnp.bfloat16)).tolist()
    [16256, 49152]
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], -1)
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
