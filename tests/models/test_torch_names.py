"""Weights in PyTorch's names and layouts become ours: every implementation, every leaf; what does not fit is refused.

The states are made by the names that `torch_names` gives: these tests hold what is done with them, and a few of them by
hand; that all are the implementations' own is what the tests of parity hold.
"""

import functools
import re

import jax
import numpy as np
import pytest
from flax import traverse_util
from tiny_peers import CLASSES, TINY, evaluated, firing_variables, shape_of, tiny_peer, torch_state

from ge2mst_jax import create_model
from ge2mst_jax.models import PEERS, from_torch
from ge2mst_jax.models.torch_names import NAMES

#: A block of each stage; and of implementations that have other layers than the tiny network: what makes it theirs.
DEPTHS = {family: dict(depths=(1, 1, 1)) for family in ("QKFormer", "MaxFormer", "SpikingResformer")}
OTHERS = {
    ("QKFormer", "the authors, ImageNet"): dict(small=False),
    ("QKFormer", "SpikingJelly"): dict(small=False),
    ("MaxFormer", "the authors, ImageNet"): dict(small=False, kernels=(7, 5)),
}
#: For each implementation, some of its names: of a synapse, of a norm, of something packed.
KNOWN = {
    ("Spikformer", "the authors, ImageNet"): "patch_embed.proj_conv.weight block.0.attn.q_bn.running_var head.bias",
    ("Spikformer", "the authors, CIFAR"): "block.0.attn.proj_linear.weight block.0.mlp.fc2_linear.weight",
    ("Spikformer", "SpikingJelly"): "patch_embed.stages.3.conv_bn.block.0.weight blocks.0.attn.qkv_conv_bn.1.bias",
    ("SpikeDrivenTransformer", "the authors"): "patch_embed.rpe_bn.weight block.0.mlp.fc1_conv.weight",
    ("SpikeDrivenTransformer", "SpikingJelly"): "patch_embed.final_stage.0.weight blocks.0.mlp.bn2.running_mean",
    ("QKFormer", "the authors, ImageNet"): "patch_embed1.proj2_conv.weight stage1.0.tssa.q_conv.weight "
    "stage3.0.attn.v_bn.bias stage2.0.mlp.fc2_conv.weight",
    ("QKFormer", "the authors, CIFAR"): "stage3.0.ssa.proj_conv.weight stage1.0.mlp.mlp1_conv.weight",
    ("QKFormer", "SpikingJelly"): "patch_embed1.shortcut.0.weight stage1.0.attn.qk_conv_bn.0.weight "
    "stage3.0.attn.qkv_conv_bn.0.weight",
    ("MaxFormer", "the authors, ImageNet"): "stage1.0.mixer.conv5.weight patch_embed1.embed4.embed_bn.weight",
    ("MaxFormer", "the authors, CIFAR"): "patch_embed1.proj_conv.weight stage2.0.mixer.conv_bn.bias",
    ("MaxFormer", "SpikingJelly, CIFAR"): "stage2.0.dwconv.weight stage3.0.attn.qkv.0.weight stage1.0.fc1.weight",
    ("MetaSpikeFormer", "the authors"): "ConvBlock1_1.0.Conv.dwconv.weight block3.0.attn.q_conv.0.body.2.0.weight "
    "block3.0.attn.proj_conv.0.body.1.bn.running_mean",
    ("ESpikeFormer", "the authors"): "downsample1_1.encode_conv.weight block3.0.attn.v_conv.0.weight "
    "ConvBlock2_2.0.Conv.pwconv2.1.bias",
    ("SpikingResformer", "the authors"): "prologue.1.bn.weight layers.1.1.firing_rate_attn layers.2.2.conv.0.1.weight "
    "layers.1.0.norm.bn.bias classifier.weight",
}  # fmt: skip
CASES = [(family, names) for family, known in NAMES.items() for names in known]
IDS = [f"{family}-{names.origin}" for family, names in CASES]


@functools.cache
def network(family, origin):
    """`(model, variables flat by path, shape of images)`."""
    (name,) = (name for name in TINY if PEERS[name].family.__name__ == family)
    changes = DEPTHS.get(family, {}) | OTHERS.get((family, origin), {})
    model, shape = tiny_peer(name, **changes), shape_of(name)
    return model, traverse_util.flatten_dict(firing_variables(model, shape), sep="/"), shape


def state_of(family, names):
    """`(model, our variables, shape, their state)`."""
    model, flat, shape = network(family, names.origin)
    return model, flat, shape, torch_state(flat, names, family)


def assert_same(found, flat):
    found = traverse_util.flatten_dict(found, sep="/")
    assert found.keys() == flat.keys()
    for leaf, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, flat[leaf], leaf)


def test_every_family_is_read():
    assert set(NAMES) == {size.family.__name__ for size in PEERS.values()}
    assert set(KNOWN) == {(family, names.origin) for family, names in CASES}


@pytest.mark.parametrize(("family", "names"), CASES, ids=IDS)
def test_every_leaf_comes_from_where_it_lies(family, names):
    model, flat, shape, state = state_of(family, names)
    assert set(KNOWN[family, names.origin].split()) <= state.keys()
    found, origin = from_torch(model, state, shape)
    assert origin == names.origin
    assert_same(found, flat)


def first_of(family, number=0):
    return state_of(family, NAMES[family][number])


def test_what_is_packed_is_cut_in_the_order_of_q_k_v():
    model, flat, shape, state = first_of("Spikformer", 2)
    packed = state["blocks.0.attn.qkv_conv_bn.0.weight"]
    assert packed.shape == (48, 16, 1, 1)
    for i, key in enumerate("qkv"):
        expected = packed[16 * i : 16 * i + 16, :, 0, 0].T
        np.testing.assert_array_equal(flat[f"params/attention_0/{key}/kernel"][0, 0], expected)
    state["blocks.0.attn.qkv_conv_bn.0.weight"] = packed[:47]
    with pytest.raises(ValueError, match=r"^blocks.0.attn.qkv_conv_bn.0.weight is \(47, 16, 1, 1\), here "):
        from_torch(model, state, shape)


@pytest.mark.parametrize("axes", [0, 1])
def test_maps_of_single_positions_may_have_fewer_axes(axes):
    """Linear layers and convolutions along one axis."""
    model, flat, shape, state = first_of("Spikformer", 1)
    for key, array in state.items():
        if array.ndim == 4 and array.shape[2:] == (1, 1):
            state[key] = array.reshape(*array.shape[:2], *(1,) * axes)
    assert_same(from_torch(model, state, shape)[0], flat)


def test_a_bias_before_a_norm_goes_into_its_mean():
    """And changes what the network says as a bias would: `BN(Wx + b)`, by NumPy."""
    model, flat, shape, state = first_of("Spikformer", 2)
    random = np.random.default_rng(0)
    up, packed = random.normal(size=64).astype(np.float32), random.normal(size=48).astype(np.float32)
    state |= {"blocks.0.mlp.fc1.0.bias": up, "blocks.0.attn.qkv_conv_bn.0.bias": packed}
    found, _ = from_torch(model, state, shape)
    moved = {"batch_stats/feed_forward_0/up/norm/mean": up}
    moved |= {f"batch_stats/attention_0/{key}/norm/mean": packed[16 * i : 16 * i + 16] for i, key in enumerate("qkv")}
    assert_same(found, flat | {leaf: flat[leaf] - bias for leaf, bias in moved.items()})
    images = evaluated("spikformer_4_384")[1]
    _, aux = jax.jit(model.clone(capture="levels").apply)(found, images)
    arriving = np.asarray(aux["attention_0/joined"].levels, np.float64)
    layer = {leaf.rpartition("up/")[2]: x for leaf, x in flat.items() if "feed_forward_0/up/" in leaf}
    sums = arriving @ layer["kernel"][0, 0] + up
    normalised = (sums - layer["norm/mean"]) / np.sqrt(layer["norm/var"] + 1e-5)
    expected = normalised * layer["norm/scale"] + layer["norm/bias"]
    np.testing.assert_allclose(aux["feed_forward_0/neuron_up"].current, expected, rtol=1e-3, atol=1e-3)


def test_integers_arrive_where_theirs_are_quotients():
    """E-SpikeFormer's neurons send n, there n/D: weights are divided by D, but those of the image and of the head."""
    model, _, shape, state = first_of("ESpikeFormer")
    model = create_model("e_spikeformer_s", **(TINY["e_spikeformer_s"] | {"num_classes": CLASSES, "code": "8x1"}))
    found = traverse_util.flatten_dict(from_torch(model, state, shape)[0], sep="/")
    for leaf, key, factor in (
        ("params/down_c0/synapse/kernel", "downsample1_1.encode_conv.weight", 1),
        ("params/down_c1/synapse/kernel", "downsample1_2.encode_conv.weight", 1 / 8),
        ("params/attention_a3_0/out/kernel", "block3.0.attn.proj_conv.0.weight", 1 / 8),
    ):
        np.testing.assert_array_equal(found[leaf], factor * state[key].transpose(2, 3, 1, 0), leaf)
    np.testing.assert_array_equal(found["params/head/kernel"], 8 * state["head.weight"].T)
    np.testing.assert_array_equal(found["params/head/bias"], state["head.bias"])


def without(state, key):
    return {name: array for name, array in state.items() if name != key}


ROWS = np.ones((3, 5), np.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: without(s, "block.0.attn.k_bn.running_var"),
            "batch_stats/attention_0/k/norm/var: the file holds no block.0.attn.k_bn.running_var (names of the "
            "authors, ImageNet, Spikformer)",
        ),
        (
            lambda s: s | {"block.1.attn.q_conv.weight": ROWS, "block.1.attn.q_bn.weight": ROWS},
            "'block.1.attn.q_bn.weight' and 1 more in the file belong to no layer of this Spikformer",
        ),
        (lambda s: s | {"relative": ROWS}, "'relative' and 0 more in the file belong to no layer of this Spikformer"),
        (
            lambda s: s | {"head.weight": s["head.weight"].T},
            "head.weight is (16, 5), here (5, 16): params/head/kernel of this network is (16, 5)",
        ),
        (
            lambda s: s | {"block.0.mlp.fc1_bn.weight": ROWS},
            "block.0.mlp.fc1_bn.weight is (3, 5), here (3, 5): params/feed_forward_0/up/norm/scale of this network is "
            "(64,)",
        ),
        (
            lambda s: s | {"block.0.mlp.fc1_conv.weight": np.ones((64, 16, 3, 3))},
            "block.0.mlp.fc1_conv.weight is (64, 16, 3, 3), here (3, 3, 16, 64): params/feed_forward_0/up/kernel of "
            "this network is (1, 1, 16, 64)",
        ),
        (
            lambda s: s | {"block.0.mlp.fc1_conv.weight": np.ones((64, 16, 1, 1, 1))},
            "block.0.mlp.fc1_conv.weight is (64, 16, 1, 1, 1), here (64, 16, 1, 1, 1): ",
        ),
        (lambda s: s | {"block.0.mlp.fc1_conv.weight": np.float32(1)}, "block.0.mlp.fc1_conv.weight is (), here "),
        (
            lambda s: s | {"block.0.mlp.fc1_conv.bias": np.ones(1)},
            "block.0.mlp.fc1_conv.bias is (1,), here (1,): batch_stats/feed_forward_0/up/norm/mean of this network is "
            "(64,)",
        ),
        (lambda s: {"x": ROWS}, "batch_stats/attention_0/k/norm/mean: the file holds no block.0.attn.k_bn."),
    ],
    ids=["missing", "unread", "one", "transposed", "norm", "kernel", "axes", "number", "bias", "nothing"],
)
def test_what_does_not_fit_is_refused_by_name(change, says):
    model, _, shape, state = first_of("Spikformer")
    with pytest.raises(ValueError) as refused:
        from_torch(model, change(state), shape)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


def test_weights_of_another_network_are_refused():
    model, _, shape, _ = first_of("Spikformer")
    _, _, _, state = first_of("QKFormer")
    with pytest.raises(ValueError, match=r"^\S+/attention_0/\S+: the file holds no \S+ \(names of .*, Spikformer\)$"):
        from_torch(model, state, shape)
    with pytest.raises(ValueError, match=r"^no names of PyTorch weights are known for Ge2mST: known are Spikformer, "):
        from_torch(create_model("ge2mst_nano"), state, shape)


def test_norms_that_nothing_reads_are_passed_over():
    """Spikformer's code makes two a block and never calls them; Spike-driven Transformer's has a number a head."""
    model, flat, shape, state = first_of("Spikformer")
    unread = {"block.0.norm1.weight": ROWS, "block.0.norm2.bias": ROWS, "block.0.attn.q_bn.num_batches_tracked": ROWS}
    assert_same(from_torch(model, state | unread, shape)[0], flat)
    model, flat, shape, state = first_of("SpikeDrivenTransformer")
    assert_same(from_torch(model, state | {"block.0.attn.talking_heads.weight": ROWS}, shape)[0], flat)
    with pytest.raises(ValueError, match=re.escape("'block.0.norm1.weight' and 0 more")):
        from_torch(model, state | {"block.0.norm1.weight": ROWS}, shape)
