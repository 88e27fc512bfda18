"""What every synaptic layer is, trained or deployed: a convolution of a signal, and the read-out."""

import flax.linen as nn
import jax.numpy as jnp

from ge2mst_jax.checks import check_whole
from ge2mst_jax.nn.maps import check_kernel
from ge2mst_jax.nn.wire import Current, Signal, SynapseRecord, Wire

MOST_CHANNELS = 2**20


class SynapseLayer(nn.Module):
    """A convolution of a signal's levels or spikes; `training.Synapse` and `deployed.Synapse` say what follows it.

    The value of a level, `θ`, is no factor here: BatchNorm divides by the scale of what it gets, so `BN(conv(θn))` is
    the same (but for its epsilon), and its statistics have folded `θ` already.

    Args:
        wire: the network's agreement.
        features: `C_out`.
        kernel: side of the kernel, odd.
        stride: of both axes.
        group_width: channels a group; `None` is one group, 1 is depth-wise.
        role: `"stem"` or `"hidden"`, for the energy conventions.
        norm: whether BatchNorm follows; a map that another linear map follows may do without.

    Call: `(signal, train, unit=None) -> (Current, aux)`.
    """

    wire: Wire
    features: int
    kernel: int = 1
    stride: int = 1
    group_width: int | None = None
    role: str = "hidden"
    norm: bool = True

    @nn.compact
    def __call__(self, signal: Signal, train: bool, unit=None):
        name = "/".join(self.path)
        check_whole("features", self.features, 1, MOST_CHANNELS)
        channels = signal.image_shape[-1]
        fan_in = (
            channels if self.group_width is None else check_whole("group_width", self.group_width, 1, MOST_CHANNELS)
        )
        if channels % fan_in or self.features % (channels // fan_in):
            raise ValueError(
                f"{name}: groups of {fan_in} channels do not divide {channels} input and "
                f"{self.features} output channels"
            )
        check_kernel(self.kernel, self.stride)
        shape = (self.kernel, self.kernel, fan_in, self.features)
        check_given(self, "kernel", shape)
        kernel = self.param("kernel", nn.initializers.variance_scaling(2.0, "fan_in", "normal"), shape)
        current = self.convolve(signal, kernel, train, unit)
        shape = current.shape[-3:]
        made = synapse_record(signal, self.role, shape, self.kernel, self.stride, channels // fan_in)
        return Current(current, (name,), signal.form == "steps"), {name: made}


class HeadLayer(nn.Module):
    """The read-out: one linear map of spike counts, `logits = (W·θ · Σ_tokens n)/N + b`.

    Deployed it returns the certified sum `W'·Σn + N·b`, which `convert` divides by `N` afterwards. Networks that fire
    at every step are averaged over their steps.

    Args:
        wire: the network's agreement.
        classes: number of logits.
        bias: whether `b` is there.

    Call: `signal -> (logits [B, classes], aux)`.
    """

    wire: Wire
    classes: int
    bias: bool = True

    @nn.compact
    def __call__(self, signal: Signal):
        shape = (signal.image_shape[-1], self.classes)
        check_given(self, "kernel", shape)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        zeros, shape = nn.initializers.zeros, (self.classes,)
        bias = self.param("bias", zeros, shape) if self.bias else jnp.zeros(shape)
        logits = self.read_out(signal, kernel, bias)
        return logits, {"/".join(self.path): synapse_record(signal, "head", (1, 1, self.classes))}


def check_given(layer: nn.Module, key: str, shape) -> None:
    """Refuses a parameter of another shape than the signal that arrives asks for.

    Raises:
        ValueError: names the layer and both shapes.
    """
    given = layer.get_variable("params", key)
    if given is not None and given.shape != shape:
        raise ValueError(
            f"{'/'.join(layer.path)}: its {key} is {given.shape}, but what arrives asks for {shape}: images of other "
            "channels, or variables of another network"
        )


def synapse_record(signal: Signal, role: str, out_shape, kernel: int = 1, stride: int = 1, groups: int = 1):
    """What a synaptic layer leaves in `aux`."""
    return SynapseRecord(
        role=role,
        source=signal.source,
        in_shape=signal.image_shape,
        out_shape=tuple(out_shape),
        kernel=kernel,
        stride=stride,
        groups=groups,
        max_level=0 if signal.code is None else signal.code.max_level,
    )


def tokens_of(signal: Signal) -> int:
    """`N`, positions of the token grid."""
    height, width, _ = signal.image_shape
    return height * width


def summed_over_tokens(x):
    return jnp.sum(x, (1, 2))
