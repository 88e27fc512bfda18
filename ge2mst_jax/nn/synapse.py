"""The synaptic layer: convolution, then BatchNorm in training, or folded weights and a bias once deployed."""

import flax.linen as nn
import jax.numpy as jnp

from ge2mst_jax.nn.maps import conv2d
from ge2mst_jax.nn.wire import Current, Signal, SynapseRecord, Wire, folding
from ge2mst_jax.spiking import align


class Synapse(nn.Module):
    """`y = BN(conv(n))` of a signal's levels or spikes; grouped, depth-wise, strided or 1×1 by its fields.

    The value of a level, `θ`, is no factor here: BatchNorm divides by the scale of what it gets, so `BN(conv(θn))` is
    the same (but for its epsilon), and its statistics have folded `θ` already.

    Deployed: `y = conv(n, W') + b'` with `W' = W·γ/σ` and `b' = β - μγ/σ`, in units of `unit` where one is given.

    Args:
        wire: the network's agreement.
        features: `C_out`.
        kernel: side of the kernel, odd.
        stride: of both axes.
        group_width: channels a group; `None` is one group, 1 is depth-wise.
        role: `"stem"` or `"hidden"`, for the energy conventions.

    Call: `(signal, train, unit=None) -> (Current, aux)`.
    """

    wire: Wire
    features: int
    kernel: int = 1
    stride: int = 1
    group_width: int | None = None
    role: str = "hidden"

    @nn.compact
    def __call__(self, signal: Signal, train: bool, unit=None):
        name = "/".join(self.path)
        fan_in = self.group_width or signal.image_shape[-1]
        if signal.image_shape[-1] % fan_in or self.features % (signal.image_shape[-1] // fan_in):
            raise ValueError(
                f"{name}: groups of {fan_in} channels do not divide "
                f"{signal.image_shape[-1]} input and {self.features} output channels"
            )
        shape = (self.kernel, self.kernel, fan_in, self.features)
        kernel = self.param("kernel", nn.initializers.variance_scaling(2.0, "fan_in", "normal"), shape)
        if self.wire.deployed:
            current = signal.integrate(lambda x: conv2d(x, kernel, self.stride, exact=True))
            current = current + align(self.param("bias", nn.initializers.zeros, (self.features,)), current)
        else:
            weights = kernel.astype(self.wire.dtype)
            current = signal.integrate(lambda x: conv2d(x.astype(weights.dtype), weights, self.stride))
            current = self._normalise(current, kernel, train, unit)
        made = SynapseRecord(
            role=self.role,
            source=signal.source,
            in_shape=signal.image_shape,
            out_shape=current.shape[-3:],
            kernel=self.kernel,
            stride=self.stride,
            groups=signal.image_shape[-1] // fan_in,
            max_level=0 if signal.code is None else signal.code.max_level,
        )
        return Current(current, (name,), signal.form == "steps"), {name: made}

    def _normalise(self, current, kernel, train, unit):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="norm")
        normalised = norm(current.reshape(-1, *current.shape[-3:])).reshape(current.shape)
        if folding(self):
            params, stats = norm.variables["params"], norm.variables["batch_stats"]
            gain = params["scale"] / jnp.sqrt(stats["var"] + norm.epsilon)
            folded = {
                "kernel": kernel * align(gain, kernel),
                "bias": params["bias"] - stats["mean"] * gain,
            }
            for key, value in folded.items():
                self.put_variable("deployed", key, value if unit is None else value / align(unit, value))
        return normalised


class Head(nn.Module):
    """The read-out: one linear map of spike counts, `logits = (W·θ · Σ_tokens n)/N + b`.

    Deployed it returns the certified sum `W'·Σn + N·b`, which `convert` divides by `N` afterwards. Networks that fire
    at every step are averaged over their steps.

    Args:
        wire: the network's agreement.
        classes: number of logits.

    Call: `signal -> (logits [B, classes], aux)`.
    """

    wire: Wire
    classes: int

    @nn.compact
    def __call__(self, signal: Signal):
        name = "/".join(self.path)
        height, width, channels = signal.image_shape
        tokens = height * width
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (channels, self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        if self.wire.deployed:
            # Every spike adds its own row, before tokens are summed: no product with a count.
            def readout(x):
                arrived = jnp.einsum("bhwc,ck->bhwk", x, kernel, precision="highest")
                return jnp.sum(arrived, (1, 2))

            logits = signal.integrate(readout) + bias[None]
        else:
            weights = signal.weigh(kernel) / tokens
            logits = signal.integrate(lambda x: jnp.sum(x.astype(jnp.float32), (1, 2)) @ weights)
            logits = (logits.mean(0) if signal.form == "steps" else logits) + bias[None]
            if folding(self):
                self.put_variable("deployed", "kernel", signal.weigh(kernel))
                self.put_variable("deployed", "bias", tokens * bias)
        made = SynapseRecord(
            role="head",
            source=signal.source,
            in_shape=signal.image_shape,
            out_shape=(1, 1, self.classes),
            kernel=1,
            stride=1,
            groups=1,
            max_level=0 if signal.code is None else signal.code.max_level,
        )
        return logits, {name: made}
