"""Weights of PyTorch implementations: their names, layouts and scales, and the variables that they are here."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ge2mst_jax.checks import shown

#: What counts batches: nothing reads it.
UNUSED = "num_batches_tracked$"


class Rule(NamedTuple):
    """Where a synapse of ours lies in a PyTorch state.

    Args:
        pattern: regular expression of our layer's path, whole.
        conv: its convolution's name; may refer to the pattern's groups.
        norm: its BatchNorm's name; none where the layer has none.
        parts: of a convolution that makes several signals at once, their names, the pattern's last group being one.
        rep: whether it is a re-parameterised convolution, whose parts lie under `conv` as `REP` says.
    """

    pattern: str
    conv: str
    norm: str = ""
    parts: str = ""
    rep: bool = False


class Names(NamedTuple):
    """The names of one implementation.

    Args:
        origin: whose they are.
        rules: the first whose pattern matches holds.
        head: name of the classifier.
        unused: regular expression of names that nothing reads.
    """

    origin: str
    rules: tuple[Rule, ...]
    head: str = "head"
    unused: str = UNUSED


#: Leaves of a re-parameterised convolution under the name of the module that holds it.
REP = {"kernel": "0.body.0", "norm_in": "0.body.1.bn", "kernel_mix": "0.body.2.0",
       "kernel_out": "0.body.2.1", "norm_out": "0.body.2.2", "norm": "1"}  # fmt: skip
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
RATES = {"rate": "firing_rate_x", "rate_attention": "firing_rate_attn"}


def _numbered(pattern: str, conv: str, norm: str, count: int, first: str = "") -> tuple[Rule, ...]:
    """Layers that theirs number from 1 on, the first having no number or another name."""
    number = (first, *(str(i) for i in range(1, count)))
    return tuple(Rule(pattern.format(i), conv.format(n), norm.format(n)) for i, n in enumerate(number))


def _pairs(pattern: str, prefix: str, names: dict[str, str], conv: str = "_conv", norm: str = "_bn"):
    """Layers `pattern/ours`, of which theirs are `prefix.name_conv` and `prefix.name_bn`."""
    return tuple(
        Rule(f"{pattern}/{ours}", f"{prefix}.{theirs}{conv}", f"{prefix}.{theirs}{norm}")
        for ours, theirs in names.items()
    )


QKV = {key: key for key in "qkv"} | {"out": "proj"}
MLP = {"up": "fc1", "down": "fc2"}
_STEM = (
    *_numbered("stem/conv_{}", "patch_embed.proj_conv{}", "patch_embed.proj_bn{}", 4),
    Rule("stem/position", "patch_embed.rpe_conv", "patch_embed.rpe_bn"),
)


def _spikformer(conv: str):
    return (
        *_STEM,
        *_pairs(r"attention_(\d+)", r"block.\1.attn", QKV, conv),
        *_pairs(r"feed_forward_(\d+)", r"block.\1.mlp", MLP, conv),
    )


def _unnamed(pattern: str, prefix: str, names: dict[str, str], parts: str = "") -> tuple[Rule, ...]:
    """Layers whose convolution and norm are the first two of a sequence."""
    return tuple(
        Rule(f"{pattern}/{ours}", f"{prefix}.{theirs}.0", f"{prefix}.{theirs}.1", parts if "(" in ours else "")
        for ours, theirs in names.items()
    )


def _fc(pattern: str, prefix: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{pattern}/{ours}", f"{prefix}.fc{i}", f"{prefix}.bn{i}") for ours, i in (("up", 1), ("down", 2))
    )


def _qkformer(attention: tuple[str, str], mlp: str):
    """The authors' names, of which those of attention and of the feed-forward differ from folder to folder."""
    return (
        *_pairs("embedding_0", "patch_embed1",
                {"conv_0": "proj", "conv_1": "proj1", "conv_2": "proj2", "shortcut": "proj_res"}),
        *(rule for i in (1, 2) for rule in _pairs(
            f"embedding_{i}", f"patch_embed{i + 1}", {"conv_0": "proj3", "conv_1": "proj4", "shortcut": "proj_res"})),
        *(rule for i, name in enumerate((attention[0], attention[0], attention[1])) for rule in _pairs(
            rf"attention_{i}_(\d+)", rf"stage{i + 1}.\1.{name}", QKV)),
        *(rule for i in range(3) for rule in _pairs(
            rf"feed_forward_{i}_(\d+)", rf"stage{i + 1}.\1.mlp", {"up": f"{mlp}1", "down": f"{mlp}2"})),
    )  # fmt: skip


def _stages(rules) -> tuple[Rule, ...]:
    """The rules of each of three stages."""
    return tuple(rule for i in range(3) for rule in rules(i))


def _embedding(name: str, theirs: str, layers: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{name}/{ours}", f"{theirs}.{layer}.embed_conv", f"{theirs}.{layer}.embed_bn")
        for ours, layer in layers.items()
    )


_MAX = (
    *(rule for i in (1, 2) for rule in _embedding(
        f"embedding_{i}", f"patch_embed{i + 1}",
        {"conv_0": "max_embed1", "conv_1": "embed1", "shortcut": "max_embed2"})),
    *_stages(lambda i: _pairs(rf"feed_forward_{i}_(\d+)", rf"stage{i + 1}.\1.mlp", MLP)),
    *_pairs(r"attention_2_(\d+)", r"stage3.\1.attn", QKV),
    Rule(r"depth_wise_1_(\d+)/synapse", r"stage2.\1.mixer.conv", r"stage2.\1.mixer.conv_bn"),
)  # fmt: skip


def _meta(version: int) -> tuple[Rule, ...]:
    """Names that V2 and V3 share, but for their separable convolutions and attention."""
    rules = [
        Rule(f"down_{ours}/synapse", f"downsample{theirs}.encode_conv", f"downsample{theirs}.encode_bn")
        for ours, theirs in {"c0": "1_1", "c1": "1_2", "c2": "2", "a3": "3", "a4": "4"}.items()
    ]
    blocks = {"c0_0": "1_1.0", "c1_0": "1_2.0", "c2_0": "2_1.0", "c2_1": "2_2.0"}
    blocks = {ours: (f"ConvBlock{theirs}", "Conv") for ours, theirs in blocks.items()}
    for stage in (3, 4):
        blocks[rf"a{stage}_(\d+)"] = (rf"block{stage}.\1", "conv")
    for ours, (theirs, mix) in blocks.items():
        separable = {"up": "pwconv1", "mix": "dwconv", "down": "pwconv2"}
        if version == 3:
            rules += _unnamed(f"mix_{ours}", f"{theirs}.{mix}", separable)
        else:
            norms = {"up": f"{theirs}.{mix}.bn1", "mix": "", "down": f"{theirs}.{mix}.bn2"}
            rules += [Rule(f"mix_{ours}/{k}", f"{theirs}.{mix}.{v}", norms[k]) for k, v in separable.items()]
        if ours.startswith("c"):
            rules += [Rule(f"forward_{ours}/{k}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
                      for k, i in (("up", 1), ("down", 2))]  # fmt: skip
            continue
        rules += _pairs(f"forward_{ours}", f"{theirs}.mlp", MLP)
        attention = {key: f"{name}_conv" for key, name in QKV.items()}
        if version == 3:
            rules += _unnamed(f"attention_{ours}", f"{theirs}.attn", attention)
        else:
            rules += [Rule(f"attention_{ours}/{k}", f"{theirs}.attn.{v}", rep=True) for k, v in attention.items()]
    return tuple(rules)


def _resformer() -> tuple[Rule, ...]:
    rules = [Rule("stem", "prologue.0", "prologue.1.bn")]
    for stage in range(3):
        if stage:
            rules.append(Rule(f"down_{stage}/synapse", f"layers.{stage}.0.conv", f"layers.{stage}.0.norm.bn"))
        for i in range(16):
            attention, forward = (f"layers.{stage}.{2 * i + bool(stage) + j}" for j in (0, 1))
            rules += [
                Rule(f"attention_{stage}_{i}/patches", f"{attention}.W", f"{attention}.norm.bn"),
                Rule(f"attention_{stage}_{i}/out", f"{attention}.Wproj", f"{attention}.norm_proj.bn"),
                Rule(f"attention_{stage}_{i}", attention),
                *(Rule(f"feed_forward_{stage}_{i}/{ours}", f"{forward}.{theirs}.1", f"{forward}.{theirs}.2.bn")
                  for ours, theirs in (("up", "up"), ("group", "conv.0"), ("down", "down"))),
            ]  # fmt: skip
    return tuple(rules)


#: For each family, the implementations whose weights are read.
NAMES = {
    "Spikformer": (
        Names("the authors, ImageNet", _spikformer("_conv"), unused=rf"{UNUSED}|\.norm[12]\."),
        Names("the authors, CIFAR", _spikformer("_linear"), unused=rf"{UNUSED}|\.norm[12]\."),
        Names("SpikingJelly", (
            Rule(r"stem/conv_(\d)", r"patch_embed.stages.\1.conv_bn.block.0", r"patch_embed.stages.\1.conv_bn.block.1"),
            Rule("stem/position", "patch_embed.positional_encoding.conv_bn.block.0",
                 "patch_embed.positional_encoding.conv_bn.block.1"),
            *_unnamed(r"attention_(\d+)", r"blocks.\1.attn",
                      {"([qkv])": "qkv_conv_bn", "out": "proj_conv_bn"}, "qkv"),
            *_unnamed(r"feed_forward_(\d+)", r"blocks.\1.mlp", MLP),
        )),
    ),
    "SpikeDrivenTransformer": (
        Names("the authors", _spikformer("_conv"), unused=rf"{UNUSED}|talking_heads\.weight$"),
        Names("SpikingJelly", (
            Rule(r"stem/conv_([0-2])", r"patch_embed.stages.\1.0", r"patch_embed.stages.\1.1"),
            Rule("stem/conv_3", "patch_embed.final_stage.0", "patch_embed.final_stage.1"),
            Rule("stem/position", "patch_embed.rpe_conv", "patch_embed.rpe_bn"),
            *_pairs(r"attention_(\d+)", r"blocks.\1.attn", QKV),
            *_fc(r"feed_forward_(\d+)", r"blocks.\1.mlp"),
        )),
    ),
    "QKFormer": (
        Names("the authors, ImageNet", _qkformer(("tssa", "attn"), "fc")),
        Names("the authors, CIFAR", _qkformer(("tssa", "ssa"), "mlp")),
        Names("SpikingJelly", (
            *_stages(lambda i: (
                Rule(f"embedding_{i}/conv_0", f"patch_embed{i + 1}.conv1", f"patch_embed{i + 1}.bn1"),
                Rule(f"embedding_{i}/conv_1", f"patch_embed{i + 1}.conv2", f"patch_embed{i + 1}.bn2"),
                Rule(f"embedding_{i}/conv_2", f"patch_embed{i + 1}.conv3", f"patch_embed{i + 1}.bn3"),
                *_unnamed(f"embedding_{i}", f"patch_embed{i + 1}", {"shortcut": "shortcut"}),
                *_unnamed(rf"attention_{i}_(\d+)", rf"stage{i + 1}.\1.attn",
                          {"([qkv])": "qkv_conv_bn" if i == 2 else "qk_conv_bn", "out": "proj_conv_bn"},
                          "qkv" if i == 2 else "qk"),
                *_fc(rf"feed_forward_{i}_(\d+)", rf"stage{i + 1}.\1.mlp"),
            )),
        )),
    ),
    "MaxFormer": (
        Names("the authors, ImageNet", (
            *_embedding("embedding_0", "patch_embed1",
                        {"conv_0": "embed1", "conv_1": "embed2", "conv_2": "embed3", "shortcut": "embed4"}),
            Rule(r"depth_wise_0_(\d+)/synapse", r"stage1.\1.mixer.conv5", r"stage1.\1.mixer.conv5_bn"),
            *_MAX,
        )),
        Names("the authors, CIFAR", (
            Rule("embedding_0/conv_0", "patch_embed1.proj_conv", "patch_embed1.proj_bn"),
            *_embedding("embedding_0", "patch_embed1", {"conv_1": "embed1", "shortcut": "embed2"}),
            *_MAX,
        )),
        Names("SpikingJelly, CIFAR", (
            Rule("embedding_0/conv_0", "patch_embed1.conv", "patch_embed1.bn"),
            Rule("embedding_0/conv_1", "patch_embed1.branch.1", "patch_embed1.branch.2"),
            Rule("embedding_0/shortcut", "patch_embed1.shortcut.1", "patch_embed1.shortcut.2"),
            *(rule for i in (1, 2) for rule in (
                Rule(f"embedding_{i}/conv_0", f"patch_embed{i + 1}.conv1", f"patch_embed{i + 1}.bn1"),
                Rule(f"embedding_{i}/conv_1", f"patch_embed{i + 1}.conv2", f"patch_embed{i + 1}.bn2"),
                Rule(f"embedding_{i}/shortcut", f"patch_embed{i + 1}.shortcut.0", f"patch_embed{i + 1}.shortcut.1"),
            )),
            *_fc(r"feed_forward_0_(\d+)", r"stage1.\1"),
            *_fc(r"feed_forward_1_(\d+)", r"stage2.\1.mlp"),
            *_fc(r"feed_forward_2_(\d+)", r"stage3.\1.mlp"),
            Rule(r"depth_wise_1_(\d+)/synapse", r"stage2.\1.dwconv", r"stage2.\1.bn"),
            *_unnamed(r"attention_2_(\d+)", r"stage3.\1.attn", {"([qkv])": "qkv", "out": "proj"}, "qkv"),
        )),
    ),
    "MetaSpikeFormer": (Names("the authors", _meta(2)),),
    "ESpikeFormer": (Names("the authors", _meta(3)),),
    "SpikingResformer": (Names("the authors", _resformer(), head="classifier"),),
}  # fmt: skip


def from_torch(model, state: dict[str, np.ndarray], image_shape) -> tuple[dict, str]:
    """Variables of a network from the arrays of a PyTorch implementation of it.

    A bias before a BatchNorm, which training cannot use, goes into the norm's mean. Networks that send integers (`sfa`)
    hold weights of `n`, where theirs are of `n/D`: they are divided by `D`, exactly, `D` being a power of two.

    Args:
        model: from `create_model`, of a family in `NAMES`.
        state: name to array, as a state dict holds them.
        image_shape: `(H, W, C)` of the images.

    Returns:
        `(variables, origin)`: float32, and whose names they were.

    Raises:
        ValueError: another family, a name that is missing or that nothing reads, a shape that does not fit.
    """
    family = type(model).__name__
    if family not in NAMES:
        raise ValueError(f"no names of PyTorch weights are known for {family}: known are {', '.join(NAMES)}")
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    shapes = traverse_util.flatten_dict(dict(jax.eval_shape(model.init, jax.random.key(0), image)), sep="/")
    names = _fitting(NAMES[family], shapes, state)
    found, read = {}, set()
    for leaf, shape in shapes.items():
        key, part = place(leaf, names)
        if key not in state:
            raise ValueError(f"{leaf}: the file holds no {key} (names of {names.origin}, {family})")
        read.add(key)
        found[leaf] = _read(state, key, leaf, part, shape.shape, _factor(model, leaf))
    _fold_biases(found, state, names, read)
    left = sorted(key for key in state if key not in read and not re.search(names.unused, key))
    if left:
        raise ValueError(f"{shown(left[0])} and {len(left) - 1} more in the file belong to no layer of this {family}")
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(found, sep="/")), names.origin


def _fitting(known: tuple[Names, ...], shapes, state) -> Names:
    """The names of which most are in the file."""
    return max(known, key=lambda names: sum(place(leaf, names)[0] in state for leaf in shapes))


def place(leaf: str, names: Names) -> tuple[str, tuple[int, int] | None]:
    """The name of one of our leaves in their state, and, where it is one of several parts, which of how many."""
    _, *path = leaf.split("/")
    if path[0] == "head":
        return f"{names.head}.{'weight' if path[1] == 'kernel' else 'bias'}", None
    for rule in names.rules:
        for depth in range(1, len(path)):
            match = re.fullmatch(rule.pattern, "/".join(path[:depth]))
            if match and (key := _key(rule, match, path[depth:])):
                part = (rule.parts.index(match[match.lastindex]), len(rule.parts)) if rule.parts else None
                return key, part
    return f"a name for {leaf}", None


def _key(rule: Rule, match, rest: list[str]) -> str | None:
    """The name of a leaf of the layer that a rule tells of; none where the rule does not tell."""
    conv, last = match.expand(rule.conv), rest[-1]
    if rest[0] in RATES:
        return f"{conv}.{RATES[rest[0]]}"
    if rule.rep and rest[0] in REP:
        return f"{conv}.{REP[rest[0]]}.{NORM.get(last, 'weight')}"
    if rest == ["kernel"]:
        return f"{conv}.weight"
    if rule.norm and len(rest) == 2 and rest[0] == "norm":
        return f"{match.expand(rule.norm)}.{NORM[last]}"
    return None


def is_kernel(leaf: str) -> bool:
    """Whether a leaf of ours is a synapse's."""
    return leaf.rsplit("/", 1)[1].startswith("kernel")


def _read(state, key: str, leaf: str, part, shape, factor: float = 1.0) -> np.ndarray:
    """An array of theirs as our leaf has it; refused where its shape is another."""
    array = _laid_out(np.asarray(state[key], np.float32), leaf, part, factor)
    if array.shape != shape:
        raise ValueError(f"{key} is {np.shape(state[key])}, here {array.shape}: {leaf} of this network is {shape}")
    return array


def _laid_out(array: np.ndarray, leaf: str, part, factor: float) -> np.ndarray:
    """An array of theirs as ours: a part of the first axis, a kernel's axes, a scale."""
    if part is not None and array.ndim:
        which, count = part
        array = array[which * len(array) // count : (which + 1) * len(array) // count]
    if leaf.endswith("/rate"):
        return array.reshape(-1)
    if leaf == "params/head/kernel":
        return factor * array.T
    if is_kernel(leaf) and array.ndim <= 4:
        array = array.reshape(array.shape + (1,) * (4 - array.ndim))  # of a 1x1, some have no axes of its sides
        return factor * array.transpose(2, 3, 1, 0)
    return array


def _factor(model, leaf: str) -> float:
    """What theirs is multiplied by: levels `n` arrive here where theirs are `n/D`, but for the image and the head."""
    if model.neuron != "sfa" or not is_kernel(leaf):
        return 1.0
    largest = model.code.max_level
    return float(largest) if leaf == "params/head/kernel" else 1.0 if "down_c0/" in leaf else 1 / largest


def _fold_biases(found: dict, state, names: Names, read: set) -> None:
    """Takes biases before norms off the norms' means: `BN(Wx + b)` has `μ - b` for `μ`."""
    for leaf in [leaf for leaf in found if leaf.endswith("/norm/mean")]:
        kernel = f"params/{leaf.removeprefix('batch_stats/').removesuffix('norm/mean')}kernel"
        key, part = place(kernel, names)
        bias = f"{key.removesuffix('.weight')}.bias"
        if bias in state:
            read.add(bias)
            found[leaf] = found[leaf] - _read(state, bias, leaf, part, found[leaf].shape)
