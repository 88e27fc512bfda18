"""The neuron layer: turns a current into a signal, by the neuron's name and the execution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.nn.wire import Current, NeuronRecord, Signal, Wire, folding
from ge2mst_jax.spiking import (
    SpikeCode,
    expg_fire,
    expg_spike_count,
    expg_twin,
    if_params,
    ladder_levels,
    lif_fire,
    lif_params,
    plif_params,
    qcfs_twin,
    sfa_twin,
)

#: name: what it is. The first three send levels in one pass, the last three fire at every step.
NEURONS = {
    "expg": "ExpG-IF: grouped exponential code, one-pass twin, lossless",
    "qcfs": "QCFS: rate code in one pass, the activation of ANN-SNN conversion",
    "sfa": "spike-firing approximation: rate code in one pass, fixed threshold",
    "relu": "the ANN reference",
    "if": "integrate-and-fire, STBP",
    "lif": "leaky integrate-and-fire, STBP",
    "plif": "leaky integrate-and-fire with a learned leak, STBP",
}
STEPPED = ("if", "lif", "plif")
BINARY = SpikeCode.parse("1x1")


def record(signal: Signal, activity, wire: Wire, current: Current | None) -> NeuronRecord:
    """What a neuron layer leaves in `aux`, from the signal that it sends."""
    timed, code = signal.form != "levels", signal.code
    if timed:
        spikes = signal.data.sum(0)
    elif code is None:
        spikes = (signal.data != 0).astype(jnp.float32)
    else:
        spikes = code.encode(jax.lax.stop_gradient(signal.data)).sum(0)
    spikes = jnp.sum(spikes.astype(jnp.int32), -1)  # [B, H, W]
    captured = wire.capture == "levels"
    levels = code.decode(signal.data) if timed and code is not None else signal.data
    return NeuronRecord(
        spikes=spikes,
        activity=jnp.sum(spikes, (1, 2)).astype(jnp.float32) if activity is None else activity,
        levels=levels if captured else None,
        train=signal.data.astype(bool) if captured and timed else None,
        current=current.value if captured and current is not None else None,
        code=code,
        shape=signal.image_shape,
        parts=() if current is None else current.parts,
    )


class Neuron(nn.Module):
    """A layer of neurons of the wire's kind.

    Training parameters (`expg`, `qcfs`): `raw`, with `θ = softplus(raw)`, one scalar, or one a head. A deployed
    layer holds `threshold` in the units of its fixed-point current, a scalar or one a channel.

    Args:
        wire: the network's agreement.
        code: another code than the wire's (`q`, `k`: binary).
        heads: thresholds a layer; channels are shared out among them.

    Call: `(current, unit=None) -> (Signal, aux)`. `unit` is the value of one unit of the current where that is a
    count (attention), `[C]`: the deployed threshold is `θ/unit`.
    """

    wire: Wire
    code: SpikeCode | None = None
    heads: int = 1

    @nn.compact
    def __call__(self, current: Current, unit=None):
        name = "/".join(self.path)
        code = self.code or self.wire.code
        if self.wire.deployed:
            signal, activity = self._deployed(current.value, code, name)
        elif self.wire.neuron in STEPPED:
            signal, activity = self._stepped(current, name)
        else:
            signal, activity = self._one_pass(current.value, code, name, unit)
        return signal, {name: record(signal, activity, self.wire, current)}

    def _deployed(self, current, code, name):
        threshold = self.get_variable("params", "threshold")  # a scalar, or [C]; only `convert` makes it
        if self.wire.execution == "dense":
            return Signal(ladder_levels(current, threshold, code), None, code, "levels", name), None
        return Signal(expg_fire(current, threshold, code), None, code, "train", name), None

    def _one_pass(self, current, code, name, unit):
        if self.wire.neuron == "relu":
            return Signal(nn.relu(current).astype(self.wire.dtype), None, None, "levels", name), None
        if self.wire.neuron == "sfa":
            levels, activity = sfa_twin(current, code, self.wire.dtype), None
            threshold = jnp.full((), 1 / code.max_level)
        else:
            # A threshold such that the top level stands for two standard deviations of a normalised current.
            first = float(np.log(np.expm1(max(2.0 / code.max_level, 0.25))))
            shape = (self.heads,) if self.heads > 1 else ()
            raw = self.param("raw", nn.initializers.constant(first), shape)
            threshold = nn.softplus(raw)
            firing = jnp.repeat(threshold, current.shape[-1] // self.heads) if self.heads > 1 else threshold
            twin = expg_twin if self.wire.neuron == "expg" else qcfs_twin
            levels = twin(current, firing, code, self.wire.dtype)
            activity = jnp.sum(expg_spike_count(current, firing, code), (1, 2, 3))
            if folding(self):
                self.put_variable("deployed", "threshold", firing if unit is None else firing / unit)
        return Signal(levels, threshold, code, "levels", name), activity

    def _stepped(self, current, name):
        steps = self.wire.code.num_steps
        value = current.value
        if not current.steps:
            value = jnp.broadcast_to(value, (steps, *value.shape))  # a constant current
        if self.wire.neuron == "plif":
            params = plif_params(self.param("raw_leak", nn.initializers.zeros, ()))
        else:
            params = if_params() if self.wire.neuron == "if" else lif_params()
        spikes = lif_fire(value, params).astype(self.wire.dtype)  # [T, B, H, W, C]
        return Signal(spikes, None, None, "steps", name), None
