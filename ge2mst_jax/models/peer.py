"""What all peers share: their fields, how layers are made and recorded, and attention as spiking transformers have it.

A peer is trained and run as it was published, step by step (`lif`, `plif`, `if`) or with integers (`sfa`); its layers
are ours, so that one energy count, one trainer and one evaluation serve them all.
"""

import collections
import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_choice, check_flag, check_whole, shown
from ge2mst_jax.grouping import Scale
from ge2mst_jax.models.ge2mst import REMAT
from ge2mst_jax.nn import (
    NORMALIZE,
    Attention,
    Counts,
    Current,
    Gated,
    GateSums,
    Head,
    Neuron,
    Presented,
    Signal,
    Synapse,
    Wire,
    refuse_others,
)
from ge2mst_jax.spiking import LIFSettings, SpikeCode

#: As Spikformer and its successors set them: SpikingJelly's LIF, whose surrogate is a Sigmoid of α = 4.
SIGMOID_LIF = LIFSettings(surrogate="sigmoid")


class Layers:
    """Makes the layers of one module, in its scope, and keeps what they leave in `aux`."""

    def __init__(self, wire: Wire, train: bool):
        self.wire, self.train, self.aux = wire, train, {}

    def keep(self, layer, *arriving):
        """What a layer makes of what arrives."""
        *made, aux = layer(*arriving)
        self.aux |= aux
        return made[0] if len(made) == 1 else made

    def fire(self, current: Current, name: str, share: float = 1.0, unit=None, **fields) -> Signal:
        """Neurons, their threshold times `share`."""
        lif = dataclasses.replace(self.wire.lif, threshold=share * self.wire.lif.threshold)
        return self.keep(Neuron(dataclasses.replace(self.wire, lif=lif), name=name, **fields), current, unit)

    def synapse(self, signal: Signal, features: int, kernel: int = 1, *, name: str, **fields) -> Current:
        """A convolution and its BatchNorm."""
        return self.keep(Synapse(self.wire, features, kernel, name=name, **fields), signal, self.train)

    def project(self, signal: Signal, features: dict[str, int]) -> list[Signal]:
        """The neurons of `q`, `k`, ...: each of a synapse of its own."""
        return [self.fire(self.synapse(signal, width, name=name), f"neuron_{name}") for name, width in features.items()]

    def attend(self, q: Signal, k: Signal, v: Signal, heads: int, worth: float, share: float = 0.5) -> Signal:
        """Spikes of `SN(worth · (q kᵀ) v)` over all tokens."""
        scales = (Scale("block", v.image_shape[:2]),)
        attention = Attention(self.wire, heads, scales, worth, name="attention")
        current, unit = self.keep(attention, q, k, v)
        return self.fire(current, "neuron_attention", share, unit)

    def mask(self, masked: Signal, gated_by: tuple[Signal, ...], heads: int) -> Signal:
        """Spikes that a gate of half the threshold lets through: `SN(Σ channels of a head)` of one signal, or `SN(Σ
        tokens)` of two that meet."""
        sums, unit = self.keep(GateSums(self.wire, heads, worth=1.0, name="gate"), *gated_by)
        gate = self.fire(sums, "neuron_gate", 0.5, unit, gate=True)
        passed, _ = self.keep(Gated(self.wire, heads, worth=1.0, name="attention"), masked, gate)
        return self.keep(Counts(self.wire, name="masked"), passed)


class Block(nn.Module):
    """A part of a peer: `layers` in a scope of its own.

    Call: `(arriving, train) -> (sent, aux)`, currents or signals.
    """

    wire: Wire

    @nn.compact
    def __call__(self, arriving, train: bool):
        layers = Layers(self.wire, train)
        return self.layers(layers, arriving), layers.aux


class Peer(nn.Module):
    """A published spiking transformer.

    Args:
        num_classes: logits.
        code: gives `T`, its steps; of `sfa` its largest level too.
        neuron: one of the family's `NEURONS`.
        lif: what its neurons are set to, by default as its authors did.
        normalize: how images are presented, a name from `nn.NORMALIZE`.
        remat: one of `REMAT`: what a block's backward pass computes anew.
        execution: `"training"`, as it was published; nothing is folded.
        capture, dtype: see `nn.Wire`.

    Call: `(images [B, H, W, C], train=False)`, float in [0, 1] or uint8. Returns `(logits [B, num_classes], aux)`.

    Raises:
        ValueError: a field out of range, a neuron of another family, images that are none.
    """

    num_classes: int
    code: SpikeCode = SpikeCode(4, 1)
    neuron: str = "lif"
    lif: LIFSettings = SIGMOID_LIF
    normalize: str = "imagenet"
    remat: str = "none"
    execution: str = "training"
    capture: str = "counts"
    dtype: Any = jnp.float32

    #: Neurons that the family is made of.
    NEURONS = ("lif", "plif", "if")
    #: Whether the classifier has a bias.
    HEAD_BIAS = True

    def __post_init__(self):
        check_whole("num_classes", self.num_classes, 1, 2**20)
        check_choice("neuron of this network", self.neuron, self.NEURONS)
        check_choice("normalize", self.normalize, NORMALIZE)
        check_choice("remat", self.remat, REMAT)
        check_choice("execution of this network", self.execution, ("training",))
        for field in dataclasses.fields(self):
            if field.name not in Peer.__dataclass_fields__:
                check_own(field.name, getattr(self, field.name), field.default)
        _ = self.wire
        super().__post_init__()

    @property
    def num_steps(self) -> int:
        """`T`."""
        return self.code.num_steps

    @property
    def wire(self) -> Wire:
        """What its layers agree on."""
        return Wire(self.code, self.neuron, self.execution, self.capture, self.dtype, lif=self.lif)

    def part(self, block: type[Block]) -> type[Block]:
        """A kind of block, computed anew in the backward pass where `remat` says so."""
        if self.remat == "none":
            return block
        return nn.remat(block, policy=getattr(jax.checkpoint_policies, self.remat), static_argnums=(2,))

    @nn.compact
    def __call__(self, images, train: bool = False):
        layers = Layers(self.wire, train)
        signal = layers.keep(Presented(self.wire, self.normalize, name="image"), images)
        signal = self.body(layers, signal)
        logits = layers.keep(Head(self.wire, self.num_classes, self.HEAD_BIAS, name="head"), signal)
        return refuse_others(logits, images), collections.OrderedDict(layers.aux)


def check_own(name: str, value, usual) -> None:
    """Refuses a value of a family's own field that is not of its usual value's kind: a flag, a text of as many digits 0
    and 1, a whole number, or as many of them.

    >>> check_own("depths", (1, 2), (1, 2, 7))
    Traceback (most recent call last):
    ValueError: depths is (1, 2): it must be 3 whole numbers
    """
    if isinstance(usual, bool):
        check_flag(name, value)
    elif isinstance(usual, str):
        if not isinstance(value, str) or not re.fullmatch(f"[01]{{{len(usual)}}}", value):
            raise ValueError(f"{name} is {shown(value)}: it must be {len(usual)} digits, each 0 or 1")
    elif isinstance(usual, tuple):
        if not isinstance(value, tuple) or len(value) != len(usual):
            raise ValueError(f"{name} is {shown(value)}: it must be {len(usual)} whole numbers")
        for each, one in zip(value, usual, strict=True):
            check_own(name, each, one)
    else:
        check_whole(name, value, 0 if name in ("depth", "depths", "kernels") else 1, 2**16)


def check_heads(channels: int, heads: int) -> None:
    """Refuses heads that cannot share the channels.

    >>> check_heads(10, 4)
    Traceback (most recent call last):
    ValueError: 4 heads cannot share 10 channels equally
    """
    if channels % heads:
        raise ValueError(f"{heads} heads cannot share {shown(channels)} channels equally")
