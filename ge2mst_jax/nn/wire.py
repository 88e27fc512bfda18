"""The wire: what travels between layers, and what each layer leaves in `aux`.

What holds arrays is equal to itself alone: `==` of two of them has no one answer.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ge2mst_jax.checks import check_choice, check_flag, check_whole, shown
from ge2mst_jax.grouping import check_rates
from ge2mst_jax.nn.planes import Arithmetic
from ge2mst_jax.spiking import LIFSettings, SpikeCode, expg_charge

#: Spikes a neuron and image of `q`, `k`, `v`, as `ge2mst_nano` fires on the digits (docs/results.md).
ATTENTION_RATES = (0.44, 0.40, 0.63)
#: Of `q` and `k` unless a network says otherwise.
QK_CODE = SpikeCode.parse("1x2")
EXECUTIONS = ("training", "dense", "spiking")
CAPTURES = ("none", "counts", "levels")
DTYPES = ("float32", "bfloat16", "float16")
#: name: what it is. The first three send levels in one pass.
NEURONS = {
    "expg": "ExpG-IF: grouped exponential code, one-pass twin, lossless",
    "qcfs": "QCFS: the activation of ANN-SNN conversion in one pass; run as integrate-and-fire it is rate-coded, lossy",
    "sfa": "spike-firing approximation: rate code in one pass, fixed threshold, lossless",
    "relu": "the ANN reference",
    "if": "integrate-and-fire, STBP",
    "lif": "leaky integrate-and-fire, STBP",
    "plif": "leaky integrate-and-fire with a learned leak, STBP",
}
#: Neurons that fire at every step, as they were trained.
TIMED = ("if", "lif", "plif")


class AttentionKind(NamedTuple):
    """What an attention is, and what tells it from the others.

    Args:
        about: in words.
        groups: whether tokens attend inside the groups of several scales; else over the whole grid.
        value_expand: width of `v` over that of `q` and `k`; 0 where there is no `v`.
        masks: the signal that a binary gate masks; none where `(q kᵀ) v` is computed.
        gated_by: the one or two signals whose spikes the gate counts.
    """

    about: str
    groups: bool = False
    value_expand: int = 1
    masks: str = ""
    gated_by: str = ""


ATTENTIONS = {
    "gw_ssa": AttentionKind("GW-SSA: (q kᵀ) v inside token groups of several scales", groups=True),
    "ssa": AttentionKind("Spikformer's SSA: (q kᵀ) v over all tokens"),
    "sdsa": AttentionKind("SDT-V3's E-SDSA: (q kᵀ) v over all tokens, v wider than q and k", value_expand=4),
    "sdsa_v1": AttentionKind("Spike-driven Transformer's SDSA: SN(Σ_tokens k ⊙ v) ⊙ q", masks="q", gated_by="kv"),
    "qk_token": AttentionKind("QKFormer's: SN(Σ_channels q) ⊙ k", value_expand=0, masks="k", gated_by="q"),
}


@dataclasses.dataclass(frozen=True)
class Wire:
    """What every layer of one network agrees on.

    Args:
        code: of every neuron but `q` and `k`.
        neuron: a name from `nn.NEURONS`.
        execution: `"training"` (raw parameters, BatchNorm), or a deployed network's `"dense"` (one pass on
            levels) or `"spiking"` (scan over time steps).
        capture: what `aux` holds: `"counts"` of spikes, `"levels"` for every neuron's levels and spikes, too, or
            `"none"` of them, for those who want logits alone.
        dtype: of the operands of training products, one of `DTYPES`; currents stay float32.
        arithmetic: of a deployed network.
        attention_rates: expected spikes of the neurons of `q`, `k`, `v`, by which attention orders its products.
        qk_code: of the neurons of `q` and `k`.
        lif: what `lif`, `plif` and `if` neurons are set to.
        rate_steps: `T` of a `qcfs` network that is run as integrate-and-fire, see `convert.rate_coded`; 0: as its twin.
        attention: a name from `nn.ATTENTIONS`.
        local: whether a depth-wise convolution joins attention's current.
        to_even: whether `sfa` neurons take a half to the even level, see `spiking.halves_to_even`.

    Raises:
        ValueError: a code that is none, an unknown neuron, execution, capture, dtype or attention, rates or settings
            that are none, `rate_steps` of another network than one that can be rate-coded.

    >>> Wire(SpikeCode.parse("2x2")).execution
    'training'
    """

    code: SpikeCode
    neuron: str = "expg"
    execution: str = "training"
    capture: str = "counts"
    dtype: Any = jnp.float32
    arithmetic: Arithmetic = dataclasses.field(default_factory=Arithmetic)
    attention_rates: tuple[float, float, float] = ATTENTION_RATES
    qk_code: SpikeCode = QK_CODE
    lif: LIFSettings = dataclasses.field(default_factory=LIFSettings)
    rate_steps: int = 0
    attention: str = "gw_ssa"
    local: bool = True
    to_even: bool = False

    def __post_init__(self):
        for name in ("code", "qk_code"):
            if not isinstance(code := getattr(self, name), SpikeCode):
                raise ValueError(f"{name} is {shown(code)}: it must be a SpikeCode, such as SpikeCode.parse('2x2')")
        check_choice("neuron", self.neuron, NEURONS)
        check_choice("execution", self.execution, EXECUTIONS)
        check_choice("capture", self.capture, CAPTURES)
        check_dtype(self.dtype)
        check_rates(self.attention_rates)
        check_choice("attention", self.attention, ATTENTIONS)
        check_flag("local", self.local)
        if not isinstance(self.lif, LIFSettings):
            raise ValueError(f"lif is {shown(self.lif)}: it must be LIFSettings, such as LIFSettings(tau=4.0)")
        if check_whole("rate_steps", self.rate_steps, 0, 255):
            self._check_rate_coded()

    def _check_rate_coded(self):
        if self.neuron != "qcfs" or self.execution != "training":
            raise ValueError(
                f"rate_steps: only qcfs neurons under execution 'training' can be rate-coded, not {self.neuron} under "
                f"{self.execution!r}"
            )
        for code in (self.code, self.qk_code):
            if code.has_gaps:
                raise ValueError(f"rate_steps: code {code} has no level for every rate: train with one without a cap")


def check_dtype(dtype) -> None:
    """Refuses what is not the floating type of a product's operands.

    >>> check_dtype("int8")
    Traceback (most recent call last):
    ValueError: unknown dtype 'int8': known are float32, bfloat16, float16
    """
    try:
        name = jnp.dtype(dtype).name if dtype is not None else None
    except TypeError:
        name = None
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {shown(dtype)}: known are {', '.join(DTYPES)}")


@struct.dataclass(eq=False)
class Signal:
    """What a neuron layer sends: levels, or a spike train, with its code and threshold.

    `form` says which: `"levels"` `[B, ...]`; `"train"` `[T, B, ...]`, whose receiver adds up the whole train
    before it fires (layer-synchronous); `"steps"` `[T, B, ...]`, whose receiver fires at every step (STBP, rate codes).

    Models never ask which: they hand `integrate` a linear map.

    >>> code = SpikeCode.parse("2x2")
    >>> levels = jnp.array([[5.0, 2.0]])
    >>> Signal(levels, None, code, "levels", "n").integrate(lambda x: 3 * x)
    Array([[15.,  6.]], dtype=float32)
    >>> Signal(code.encode(levels), None, code, "train", "n").integrate(lambda x: 3 * x)
    Array([[15.,  6.]], dtype=float32)
    """

    data: jax.Array
    threshold: jax.Array | None  # the value of one level (of a spike: `worth` of them); None once folded into the rest
    code: SpikeCode | None = struct.field(pytree_node=False)  # None: real numbers (the ANN reference)
    form: str = struct.field(pytree_node=False)
    source: str = struct.field(pytree_node=False)  # the neuron layer that sent it
    kept: jax.Array | None = None  # levels as a backward pass keeps them; see `spiking.expg_twin_kept`
    worth: int = struct.field(pytree_node=False, default=1)  # levels that a spike stands for, where it is rate-coded
    analog: bool = struct.field(pytree_node=False, default=False)  # of "steps": real numbers at each, no spikes

    def integrate(self, linear_map, rest=None):
        """Applies a linear map `[N, ...] -> [N, ...]`: once to levels, step by step to spikes.

        Args:
            linear_map: what the spikes of every step go through; may return a pytree.
            rest: what its sum over time goes through, once; linear too.

        Returns:
            The current, `[B, ...]`, or `[T, B, ...]` for `"steps"`.
        """
        rest = rest or (lambda charge: charge)
        if self.form == "levels":
            return rest(linear_map(self.data))
        if self.form == "train":
            return rest(expg_charge(linear_map, self.data, self.code))
        arrived = rest(linear_map(self.planes))
        return arrived.reshape(*self.data.shape[:2], *arrived.shape[1:])  # [T, B, ...]

    def weigh(self, kernel):
        """The weights as this signal's receiver uses them: times the value of one level, until that is folded.

        The twin's backward pass moves the threshold; here it is held.
        """
        return kernel if self.threshold is None else kernel * jax.lax.stop_gradient(self.threshold)

    @property
    def planes(self):
        """The data; of `"steps"` time is merged into the batch, `[T·B, ...]`."""
        return self.data if self.form != "steps" else self.data.reshape(-1, *self.data.shape[2:])

    @property
    def spikes(self):
        """Spikes of each neuron over all its steps, `[B, ...]`; at each of them, `[T·B, ...]`, of `"steps"`."""
        if self.form == "steps":
            return self.planes
        return self.data.astype(jnp.int32).sum(0) if self.form == "train" else self.code.count(self.data)

    @property
    def steps(self) -> int:
        """`T` of whoever sent it; 0 of real numbers."""
        if self.code is not None:
            return self.code.num_steps
        return 0 if self.real else self.data.shape[0]

    @property
    def largest(self) -> int:
        """`L`, the largest level; 1 of what has no code."""
        return 1 if self.code is None else self.code.max_level

    @property
    def arriving(self) -> int:
        """The largest number that one product meets: 1 of spikes, whose steps go through one by one, else `L`."""
        return self.largest if self.form == "levels" else 1

    @property
    def real(self) -> bool:
        """Whether it carries real numbers, as the ANN reference does."""
        return self.code is None and (self.form != "steps" or self.analog)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, C)`."""
        return self.data.shape[-3:]


@struct.dataclass(eq=False)
class Current:
    """A sum of synaptic outputs, and the names of the layers that it sums (they share one fixed-point format).

    >>> a = Current(jnp.ones(2), ("a",))
    >>> (a + Current(jnp.ones(2), ("b",))).parts
    ('a', 'b')
    """

    value: jax.Array  # [B, H, W, C], or [T, B, H, W, C] where steps
    parts: tuple[str, ...] = struct.field(pytree_node=False)
    steps: bool = struct.field(pytree_node=False, default=False)

    def __add__(self, other: "Current") -> "Current":
        a, b = (x.value if x.steps or not (self.steps or other.steps) else x.value[None] for x in (self, other))
        return Current(a + b, self.parts + other.parts, self.steps or other.steps)


@struct.dataclass(eq=False)
class NeuronRecord:
    """What a neuron layer leaves in `aux`."""

    spikes: jax.Array | None  # [B, H, W] int32: spikes of each image and position, summed over channels and steps
    activity: jax.Array | None  # [B] float32: the same in all, with a gradient that a spike penalty can use
    levels: jax.Array | None  # [B, H, W, C] where captured, else None
    train: jax.Array | None  # [T, B, H, W, C] bool where captured and fired, else None
    current: jax.Array | None  # [B, H, W, C] where captured (the image has none)
    code: SpikeCode | None = struct.field(pytree_node=False)
    steps: int = struct.field(pytree_node=False)  # T; 0 of real numbers, which are no spikes
    shape: tuple[int, ...] = struct.field(pytree_node=False)  # (H, W, C)
    parts: tuple[str, ...] = struct.field(pytree_node=False)  # of its current; () for the image
    gate: bool = struct.field(pytree_node=False, default=False)  # whether it opens and closes what others send
    passes: int = struct.field(pytree_node=False, default=1)  # of real numbers: how often an image's are sent

    @property
    def real(self) -> bool:
        """Whether it sends real numbers, which are neither levels nor spikes."""
        return self.code is None and self.steps == 0


@struct.dataclass
class SynapseRecord:
    """What a synaptic layer leaves in `aux`: shapes alone, its counts are its source's."""

    role: str = struct.field(pytree_node=False)  # "stem", "hidden" or "head"
    source: str = struct.field(pytree_node=False)
    in_shape: tuple[int, ...] = struct.field(pytree_node=False)  # (H, W, C)
    out_shape: tuple[int, ...] = struct.field(pytree_node=False)
    kernel: int = struct.field(pytree_node=False)
    stride: int = struct.field(pytree_node=False)
    groups: int = struct.field(pytree_node=False)
    max_level: int = struct.field(pytree_node=False)  # of its source; 0 for real numbers

    @property
    def depth_wise(self) -> bool:
        """Whether every channel has a kernel of its own."""
        return self.groups == self.in_shape[-1] == self.out_shape[-1]


@struct.dataclass(eq=False)
class AttentionRecord:
    """What an attention, or a part of one, leaves in `aux`."""

    synops: jax.Array | None  # [B] int32
    sources: tuple[str, ...] = struct.field(pytree_node=False)  # q, k, v; one or two of them; what is gated and a gate
    #: of each product: multiply-accumulates of one dense pass, and the neuron layers whose spikes meet in it
    products: tuple[tuple[int, tuple[str, ...]], ...] = struct.field(pytree_node=False)
    bound: int = struct.field(pytree_node=False)  # the largest count that can arrive; of attention m·d·L_q·L_k·L_v
    out_shape: tuple[int, ...] = struct.field(pytree_node=False)
