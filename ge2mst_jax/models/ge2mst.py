"""Ge²mS-T: stem, convolution stages, attention stages, accumulate-only head."""

import collections
import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.checks import check_choice, check_number, check_whole, shown
from ge2mst_jax.grouping import Scale
from ge2mst_jax.nn import (
    ATTENTION_RATES,
    ATTENTIONS,
    INPUT_CODES,
    QK_CODE,
    Arithmetic,
    AttentionBlock,
    ConvBlock,
    Current,
    Downsample,
    Head,
    Neuron,
    Stem,
    Wire,
    refuse_others,
)
from ge2mst_jax.spiking import LIFSettings, SpikeCode

#: What a block's backward pass computes anew: nothing; all but what the named policy of `jax.checkpoint` saves.
REMAT = ("none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")


KINDS = ("conv", "attention")
#: Smallest and largest of what is a whole number.
LIMITS = {
    "num_classes": (1, 2**20),
    "stem_kernel": (1, 63),
    "stem_stride": (1, 64),
    "head_width": (1, 2**12),
    "expand": (1, 64),
    "group_width": (1, 2**16),
}


@dataclasses.dataclass(frozen=True)
class StageSize:
    """One stage: `kind` is `"conv"` or `"attention"`, all its blocks have `channels`.

    Raises:
        ValueError: an unknown kind, channels below 1 or a depth below 0.

    >>> StageSize("conv", 64, 2).depth
    2
    """

    kind: str
    channels: int
    depth: int

    def __post_init__(self):
        check_choice("kind of stage", self.kind, KINDS)
        check_whole("channels of a stage", self.channels, 1, 2**16)
        check_whole("depth of a stage", self.depth, 0, 1024)


class Stage(nn.Module):
    """The blocks of one stage, in a Python loop (`block_0`, `block_1`, ...); `down` halves the grid first.

    Call: `(Current, train) -> (Current, aux)`.
    """

    wire: Wire
    size: StageSize
    down: bool
    head_width: int
    scales: tuple[Scale, ...]
    expand: int
    group_width: int
    drop_paths: tuple[float, ...]
    remat: str

    @nn.compact
    def __call__(self, current: Current, train: bool):
        aux = {}
        if self.down:
            current, aux = Downsample(self.wire, self.size.channels, name="down")(current, train)
        for i, rate in enumerate(self.drop_paths):
            if self.size.kind == "conv":
                block = self._kind(ConvBlock)(self.wire, rate, name=f"block_{i}")
            else:
                heads = self.size.channels // self.head_width
                block = self._kind(AttentionBlock)(
                    self.wire, heads, self.scales, self.expand, self.group_width, rate, name=f"block_{i}"
                )
            current, more = block(current, train)
            aux |= more
        return current, aux

    def _kind(self, block):
        if self.remat == "none":
            return block
        return nn.remat(block, policy=getattr(jax.checkpoint_policies, self.remat), static_argnums=(2,))


class Ge2mST(nn.Module):
    """Ge²mS-T, a spiking vision transformer with computation grouped in time, space and structure.

    The layout is our reading of the abstract of arXiv:2604.08894; make one with `create_model`.

    Args:
        num_classes: logits.
        stages: from high resolution to low; every stage but the first halves the grid.
        code: temporal grouping of every neuron but `q` and `k`.
        neuron: a name from `ge2mst_jax.nn.NEURONS`.
        stem_kernel, stem_stride: of the first synapse.
        head_width: `d`, channels an attention head.
        scales: token groups that the heads of `gw_ssa` share; each must divide every attention stage's grid.
        expand: hidden width of the feed-forward over the stream's.
        group_width: channels a group of its 3×3.
        input_code: `"1x8"` (bit planes, accumulate-only) or `"direct"` (one multiply-accumulate pass).
        drop_path: in training, probability that the last block's branches are dropped for an image; earlier blocks'
            are proportionally less. Needs the random stream `"dropout"`.
        remat: one of `REMAT`.
        execution, capture, dtype: see `ge2mst_jax.nn.Wire`.
        current_bits, backend: of a deployed network, see `ge2mst_jax.nn.Arithmetic`; `deploy` sets the first.
        attention_rates: expected spikes a neuron and image of `q`, `k`, `v`: the order of attention's products, and so
            its cost, follows from them; `deploy` measures them where it has images.
        qk_code: temporal grouping of the neurons of `q` and `k`; `"1x1"` is binary.
        lif: what `lif`, `plif` and `if` neurons are set to; the others have no use for it.
        rate_steps: of a `qcfs` network that is run rate-coded; `ge2mst_jax.convert.rate_coded` sets it.
        attention: a name from `ge2mst_jax.nn.ATTENTIONS`.
        local: whether a depth-wise convolution joins attention's current.

    Call: `(images [B, H, W, C], train=False)`, float in [0, 1] or uint8. Returns `(logits [B, num_classes], aux)`;
    `aux` maps layer names to their records, in the order of the network.

    Raises:
        ValueError: a field out of range, a scale that does not divide a token grid, groups that do not divide the
            channels, images that are none. Float images out of range give nan where `jit` hides their values.
    """

    num_classes: int
    stages: tuple[StageSize, ...]
    code: SpikeCode = SpikeCode(1, 4)
    neuron: str = "expg"
    stem_kernel: int = 3
    stem_stride: int = 1
    head_width: int = 32
    scales: tuple[Scale, ...] = (Scale("block", (1, 7)), Scale("grid", (7, 1)))
    expand: int = 2
    group_width: int = 128
    input_code: str = "1x8"
    drop_path: float = 0.0
    remat: str = "none"
    execution: str = "training"
    capture: str = "counts"
    dtype: Any = jnp.float32
    current_bits: int = 31
    backend: str | None = None
    attention_rates: tuple[float, float, float] = ATTENTION_RATES
    qk_code: SpikeCode = QK_CODE
    lif: LIFSettings = LIFSettings()
    rate_steps: int = 0
    attention: str = "gw_ssa"
    local: bool = True

    def __post_init__(self):
        check_fields(self)
        super().__post_init__()

    @property
    def num_steps(self) -> int:
        """`T`: of the longest spike train of a network that sends levels, or of one that is rate-coded."""
        return self.rate_steps or max(self.code.num_steps, self.qk_code.num_steps)

    @property
    def wire(self) -> Wire:
        """What its layers agree on."""
        arithmetic = Arithmetic(self.current_bits, self.backend)
        return Wire(
            self.code, self.neuron, self.execution, self.capture, self.dtype, arithmetic, self.attention_rates,
            self.qk_code, self.lif, self.rate_steps, self.attention, self.local,
        )  # fmt: skip

    @nn.compact
    def __call__(self, images, train: bool = False):
        wire = self.wire
        current, aux = Stem(
            wire, self.stages[0].channels, self.stem_kernel, self.stem_stride, self.input_code, name="stem"
        )(images, train)
        rates = iter(np.linspace(0, self.drop_path, sum(size.depth for size in self.stages)).tolist())
        for i, size in enumerate(self.stages):
            drop_paths = tuple(itertools.islice(rates, size.depth))
            stage = Stage(
                wire, size, i > 0, self.head_width, self.scales, self.expand, self.group_width, drop_paths, self.remat,
                name=f"stage_{i}",
            )  # fmt: skip
            current, more = stage(current, train)
            aux |= more
        signal, more = Neuron(wire, name="neuron_head")(current)
        aux |= more
        logits, more = Head(wire, self.num_classes, name="head")(signal)
        logits = refuse_others(logits, images)
        return logits, collections.OrderedDict(aux | more)  # a plain dict would come out of jit sorted by name


def check_fields(model: Ge2mST) -> None:
    """Refuses a definition that no network follows from.

    Raises:
        ValueError: names the field, what it is and what it must be.
    """
    for name, (low, high) in LIMITS.items():
        check_whole(name, getattr(model, name), low, high)
    if model.stem_kernel % 2 == 0:
        raise ValueError(f"stem_kernel is {model.stem_kernel}: it must be odd")
    for name, kind in (("stages", StageSize), ("scales", Scale)):
        value = getattr(model, name)
        if not isinstance(value, tuple) or not value or not all(isinstance(item, kind) for item in value):
            raise ValueError(f"{name} is {shown(value)}: it must be a tuple of one {kind.__name__} or more")
    check_choice("input_code", model.input_code, INPUT_CODES)
    check_choice("remat", model.remat, REMAT)
    check_number("drop_path", model.drop_path, 0, 1, below=True)
    _ = model.wire
    for stage in model.stages:
        if stage.kind == "attention":
            _check_attention(model, stage)


def _check_attention(model: Ge2mST, stage: StageSize) -> None:
    scales = len(model.scales) if ATTENTIONS[model.attention].groups else 1
    if stage.channels % (model.head_width * scales):
        raise ValueError(
            f"an attention stage of {stage.channels} channels cannot give equal shares of heads "
            f"of width {model.head_width} to {scales} scale{'s' * (scales > 1)}"
        )
    hidden = stage.channels * model.expand
    if hidden % min(model.group_width, hidden):
        raise ValueError(
            f"group_width is {model.group_width}: it must divide the {hidden} hidden channels of an attention stage of "
            f"{stage.channels} channels"
        )
