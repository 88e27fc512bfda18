"""Blocks: the stem, attention, the group-wise feed-forward and the convolution block. Residual sums join currents."""

import flax.linen as nn
import jax.numpy as jnp

from ge2mst_jax.grouping import Scale
from ge2mst_jax.nn.gates import BINARY
from ge2mst_jax.nn.images import check_images, pixels
from ge2mst_jax.nn.layers import Attention, Gated, GateSums, Neuron, Synapse
from ge2mst_jax.nn.neuron import record
from ge2mst_jax.nn.wire import ATTENTIONS, Current, Signal, Wire
from ge2mst_jax.spiking import SpikeCode

PIXELS = SpikeCode.parse("1x8")
INPUT_CODES = ("direct", "1x8")


class Stem(nn.Module):
    """Presents the image as a signal and takes it to the first current.

    `input_code="1x8"`: a uint8 pixel is exactly the `1x8` code of its value, so a deployed stem accumulates
    bit planes. `"direct"`: the same integers are presented once, one multiply-accumulate pass.

    Call: `(images [B, H, W, C], train) -> (Current, aux)`.
    """

    wire: Wire
    features: int
    kernel: int = 3
    stride: int = 1
    input_code: str = "1x8"

    @nn.compact
    def __call__(self, images, train: bool):
        check_images(images)
        name = "/".join((*self.path, "image"))
        coded = self.input_code == "1x8"
        spiking = self.wire.execution == "spiking" and coded
        data, form = pixels(images), "levels"
        if spiking:
            data, form = PIXELS.encode(data), "train"
        signal = Signal(data, None, PIXELS, form, name)
        current, aux = Synapse(self.wire, self.features, self.kernel, self.stride, role="stem", name="synapse")(
            signal, train
        )
        if coded:
            aux[name] = record(signal, jnp.zeros(images.shape[0]), self.wire, None)
        return current, aux


class SelfAttention(nn.Module):
    """The wire's attention with its depth-wise convolution half, between two currents.

    `q`, `k` (of the wire's `qk_code`, a threshold a head) and `v` come from the block input's spikes; the attention
    neuron's current is what `attended` gives plus `BN(dw(v))` where the wire says `local` (`BN(dw(k))` where there is
    no `v`), and a 1×1 synapse takes its spikes back to the stream. Deployed, that current is counted in units of what
    one count is worth, so that attention joins as the integer that it is.

    Args:
        wire: the network's agreement.
        heads: attention heads.
        scales: token groups that the heads share, of `gw_ssa`.

    Call: `(Current, train) -> (Current, aux)`.
    """

    wire: Wire
    heads: int
    scales: tuple[Scale, ...]

    @nn.compact
    def __call__(self, current: Current, train: bool):
        channels, kind = current.value.shape[-1], ATTENTIONS[self.wire.attention]
        signal, aux = Neuron(self.wire, name="neuron")(current)
        signals = {}
        for key in "qkv" if kind.value_expand else "qk":
            features = channels * kind.value_expand if key == "v" else channels
            made, more = Synapse(self.wire, features, name=key)(signal, train)
            aux |= more
            code, shares = (None, 1) if key == "v" else (self.wire.qk_code, self.heads)
            neuron = Neuron(self.wire, code, shares, name=f"neuron_{key}")
            signals[key], more = neuron(made)
            aux |= more
        summed, unit, more = attended(self.wire, self.heads, self.scales, signals)
        aux |= more
        if self.wire.local:
            local = Synapse(self.wire, features, 3, group_width=1, name="local")
            local, more = local(signals.get("v", signals["k"]), train, unit)
            aux |= more
            summed = summed + local
        signal, more = Neuron(self.wire, name="neuron_out")(summed, unit)
        aux |= more
        out, more = Synapse(self.wire, channels, name="out")(signal, train)
        return out, aux | more


def attended(wire: Wire, heads: int, scales: tuple[Scale, ...], signals: dict[str, Signal]):
    """What the wire's attention makes of its signals.

    | attention | current | per |
    |---|---|---|
    | `gw_ssa`, `ssa`, `sdsa` | `2^-p θ_q θ_k θ_v (q kᵀ) v` | token group of a scale; all tokens |
    | `sdsa_v1` | `θ_q θ_g g ⊙ q`, `g = SN(c²/N θ_k θ_v Σ_tokens k ⊙ v)` | channel |
    | `qk_token` | `θ_k θ_g g ⊙ k`, `g = SN(c/d θ_q Σ_channels q)` | token and head |

    `SN` is a binary neuron with a threshold a head; `c = 2^bits` (`gates.BITS`) lets about half of the gates open at
    first. As every spike, one of a gate is worth its threshold. Of real numbers (the ANN reference) a gate is binary
    too, at a threshold that nothing learns: a sum without an upper end would multiply what it should mask.

    Args:
        wire, heads, scales: as of `SelfAttention`.
        signals: `q` and `k`, `[..., H, W, C]`, and `v`, `[..., H, W, value_expand·C]`, where there is one.

    Returns:
        `(Current, unit, aux)`, as wide as `v`, or as `k` where there is none.

    Source: our reading of GW-SSA (`ge2mst_jax.grouping.attention`); Zhou et al., ICLR 2023 (`ssa`); Yao et al., 2025
    (`sdsa`; here without the scale `2/√d`); `ge2mst_jax.grouping.gates` (`sdsa_v1`, `qk_token`).
    """
    kind = ATTENTIONS[wire.attention]
    if kind.masks:
        sums, unit, aux = GateSums(wire, heads, name="gate")(*(signals[key] for key in kind.gated_by))
        gate, more = Neuron(wire, BINARY, heads, gate=True, name="neuron_gate")(sums, unit)
        passed, unit, last = Gated(wire, heads, name="attention")(signals[kind.masks], gate)
        return passed, unit, aux | more | last
    if not kind.groups:
        scales = (Scale("block", signals["v"].image_shape[:2]),)
    return Attention(wire, heads, scales, name="attention")(*signals.values())


class FeedForward(nn.Module):
    """Group-wise feed-forward: 1×1 up, grouped 3×3 with a residual, 1×1 down.

    Args:
        wire: the network's agreement.
        expand: hidden width over the stream's.
        group_width: channels a group of the 3×3; narrower hidden layers are one group.

    Call: `(Current, train) -> (Current, aux)`.
    """

    wire: Wire
    expand: int = 4
    group_width: int = 128

    @nn.compact
    def __call__(self, current: Current, train: bool):
        channels = current.value.shape[-1]
        hidden = channels * self.expand
        signal, aux = Neuron(self.wire, name="neuron_up")(current)
        up, more = Synapse(self.wire, hidden, name="up")(signal, train)
        aux |= more
        signal, more = Neuron(self.wire, name="neuron_group")(up)
        aux |= more
        grouped, more = Synapse(self.wire, hidden, 3, group_width=min(self.group_width, hidden), name="group")(
            signal, train
        )
        aux |= more
        signal, more = Neuron(self.wire, name="neuron_down")(up + grouped)
        aux |= more
        down, more = Synapse(self.wire, channels, name="down")(signal, train)
        return down, aux | more


def drop_path(current: Current, rate: float, train: bool) -> Current:
    """A branch of the membrane shortcut, dropped for an image with probability `rate` and scaled up where kept."""
    if not rate or not train:
        return current
    batch = 1 if current.steps else 0
    shared = [axis for axis in range(current.value.ndim) if axis != batch]
    dropped = nn.Dropout(rate, broadcast_dims=shared, deterministic=False)
    return current.replace(value=dropped(current.value))


class ConvBlock(nn.Module):
    """Convolution block: two dense 3×3 synapses in a membrane shortcut.

    Args:
        wire: the network's agreement.
        drop_path: see `drop_path`.

    Call: `(Current, train) -> (Current, aux)`, the stream after the block.
    """

    wire: Wire
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, current: Current, train: bool):
        channels = current.value.shape[-1]
        signal, aux = Neuron(self.wire, name="neuron_0")(current)
        inner, more = Synapse(self.wire, channels, 3, name="conv_0")(signal, train)
        aux |= more
        signal, more = Neuron(self.wire, name="neuron_1")(inner)
        aux |= more
        inner, more = Synapse(self.wire, channels, 3, name="conv_1")(signal, train)
        return current + drop_path(inner, self.drop_path, train), aux | more


class AttentionBlock(nn.Module):
    """The wire's attention, then the group-wise feed-forward, each in a membrane shortcut.

    Call: `(Current, train) -> (Current, aux)`, the stream after the block.
    """

    wire: Wire
    heads: int
    scales: tuple[Scale, ...]
    expand: int = 4
    group_width: int = 128
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, current: Current, train: bool):
        made, aux = SelfAttention(self.wire, self.heads, self.scales, name="attention")(current, train)
        current = current + drop_path(made, self.drop_path, train)
        fed, more = FeedForward(self.wire, self.expand, self.group_width, name="feed_forward")(current, train)
        return current + drop_path(fed, self.drop_path, train), aux | more


class Downsample(nn.Module):
    """Between stages: neurons, then a strided 3×3 synapse that starts a new stream.

    Call: `(Current, train) -> (Current, aux)`.
    """

    wire: Wire
    features: int

    @nn.compact
    def __call__(self, current: Current, train: bool):
        signal, aux = Neuron(self.wire, name="neuron")(current)
        down, more = Synapse(self.wire, self.features, 3, 2, name="synapse")(signal, train)
        return down, aux | more
