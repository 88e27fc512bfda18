"""Tiny networks of the peers' families, with variables under which their neurons fire, and what they make of images."""

import functools

import jax
import numpy as np
import pytest
from tiny_networks import DRAWS, random_images, random_variables

from ge2mst_jax import create_model
from ge2mst_jax.models import PEERS
from ge2mst_jax.models.torch_names import place

#: Of one published size of each family: fields that make it tiny.
TINY = {
    "spikformer_4_384": dict(dim=16, depth=1, heads=2),
    "sdt_2_512": dict(dim=16, depth=1, heads=2),
    "meta_spikeformer_8_256": dict(dims=(4, 8, 16, 16), depths=(1, 0), heads=2),
    "e_spikeformer_s": dict(dims=(4, 8, 16, 16), depths=(1, 0), heads=2),
    "qkformer_4_384": dict(dim=16, depths=(1, 0, 1), heads=(2, 2, 2)),
    "maxformer_4_384": dict(dim=16, depths=(0, 1, 1), heads=2),
    "spikingresformer_cifar": dict(dims=(8, 24, 16), heads=(1, 2, 2), depths=(0, 1, 1), group_width=8),
}
#: Sides of their images, such that attention meets at least four tokens.
SIDES = {name: 48 if "e_spike" in name or "meta" in name else 16 for name in TINY}
CLASSES, BATCH = 5, 4
#: Those that are compiled in fast tests; the others share most of their parts and are left to slow ones.
QUICK = ("spikformer_4_384", "sdt_2_512", "e_spikeformer_s", "qkformer_4_384", "spikingresformer_cifar")


def tiny_names(*quick: str):
    """Sizes in `TINY` for a test to run over, those not named being slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in TINY]


def tiny_peer(name: str, **changes):
    """The tiny network of a size in `TINY`."""
    return create_model(name, **({"num_classes": CLASSES} | TINY[name] | changes))


def shape_of(name: str) -> tuple[int, int, int]:
    return SIDES[name], SIDES[name], 3


@functools.cache
def firing_variables(model, shape, seed=0):
    """Random variables whose norms let neurons of threshold 1 and a leak of a half fire."""
    kernel = DRAWS["kernel"]
    draws = {
        "kernel_mix": kernel,
        "kernel_out": kernel,
        "scale": lambda random, a: random.uniform(1.0, 3.0, a.shape),
        "bias": lambda random, a: random.uniform(0.0, 1.5, a.shape),
        "rate": lambda random, a: random.uniform(0.1, 0.9, a.shape),
    }
    return random_variables(model, shape, seed, **draws)


@functools.cache
def applied(name: str):
    """The tiny network's evaluation, compiled once: `(variables, images) -> (logits, aux)`, levels captured."""
    return jax.jit(tiny_peer(name, capture="levels").apply)


@functools.cache
def evaluated(name: str):
    """`(variables, images, logits, aux)` of a batch, as NumPy has them."""
    shape = shape_of(name)
    variables, images = firing_variables(tiny_peer(name), shape), random_images(BATCH, shape)
    return variables, images, *jax.device_get(applied(name)(variables, images))


def shrink(monkeypatch, name: str, side: int, **changes) -> None:
    """Has the table give the tiny network under the size's name, for images of a side, its fields changed."""
    size = PEERS[name]
    tiny = size._replace(fields=size.fields | TINY[name] | changes, image=(side, CLASSES))
    monkeypatch.setitem(PEERS, name, tiny)


def torch_state(flat, names, family: str) -> dict[str, np.ndarray]:
    """What a PyTorch implementation would hold that has these variables, `{path: array}`.

    Args:
        flat: our variables; those of E-SpikeFormer with 4 levels.
        names, family: from `torch_names.NAMES`.
    """
    parts, state = {}, {"patch_embed.num_batches_tracked": np.array(3)}
    for leaf, array in flat.items():
        factor = 1.0
        if family == "ESpikeFormer":  # n/4 arrives there, the image and the head's n aside
            factor = {"params/down_c0/synapse/kernel": 1.0, "params/head/kernel": 4.0}.get(leaf, 0.25)
        key, part = place(leaf, names)
        assert key not in state
        if part is None:
            state[key] = _theirs(leaf, array, factor)
        else:
            parts.setdefault(key, {})[part] = _theirs(leaf, array, factor)
    for key, found in parts.items():
        count = next(iter(found))[1]
        assert set(found) == {(i, count) for i in range(count)}
        state[key] = np.concatenate([found[i, count] for i in range(count)])
    return state


def _theirs(leaf, array, factor):
    """An array of ours as PyTorch holds it: `[out, in, k, k]`, a linear map `[out, in]`."""
    if leaf.rpartition("/")[2].startswith("kernel"):
        array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        return array / np.float32(factor)
    return array.reshape(1, -1, 1, 1) if leaf.endswith("rate") else array
