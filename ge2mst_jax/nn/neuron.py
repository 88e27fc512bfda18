"""What every neuron layer is, trained or deployed: from a current to a signal, and what it leaves in `aux`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_whole
from ge2mst_jax.nn.wire import Current, NeuronRecord, Signal, Wire
from ge2mst_jax.spiking import SpikeCode


class NeuronLayer(nn.Module):
    """A layer of neurons of the wire's kind; `training.Neuron` and `deployed.Neuron` say how they fire.

    Args:
        wire: the network's agreement.
        code: another code than the wire's (`q`, `k`: its `qk_code`).
        heads: thresholds a layer; channels are shared out among them.
        gate: whether it opens and closes what others send: binary whatever the wire's neuron.

    Call: `(current, unit=None) -> (Signal, aux)`. `unit` is the value of one unit of the current where that is a
    count (attention), `[C]`: the deployed threshold is `θ/unit`.
    """

    wire: Wire
    code: SpikeCode | None = None
    heads: int = 1
    gate: bool = False

    @nn.compact
    def __call__(self, current: Current, unit=None):
        name = "/".join(self.path)
        check_whole("heads", self.heads, 1, current.value.shape[-1])
        if current.value.shape[-1] % self.heads:
            raise ValueError(f"{name}: {self.heads} heads cannot share {current.value.shape[-1]} channels equally")
        signal, activity = self.fire(current, self.code or self.wire.code, name, unit)
        return signal, {name: record(signal, activity, self.wire, current).replace(gate=self.gate)}


def record(signal: Signal, activity, wire: Wire, current: Current | None) -> NeuronRecord:
    """What a neuron layer leaves in `aux`, from the signal that it sends; real numbers are no spikes and count none."""
    about = {"code": signal.code, "steps": signal.steps, "shape": signal.image_shape}
    about["parts"] = () if current is None else current.parts
    if signal.real and signal.form == "steps":
        about["passes"] = signal.data.shape[0]
    if wire.capture == "none":
        return NeuronRecord(None, None, None, None, None, **about)
    timed, code = signal.form != "levels", signal.code
    if signal.real:
        spikes = jnp.zeros_like(signal.data[0] if timed else signal.data)
    elif timed:
        spikes = signal.data.astype(jnp.int32).sum(0)
    else:
        spikes = code.count(jax.lax.stop_gradient(signal.data))
    spikes = jnp.sum(spikes.astype(jnp.int32), -1)  # [B, H, W]
    captured = wire.capture == "levels"
    levels = code.decode(signal.data) if timed and code is not None else signal.data
    return NeuronRecord(
        spikes=spikes,
        activity=jnp.sum(spikes, (1, 2)).astype(jnp.float32) if activity is None else activity,
        levels=levels if captured else None,
        train=signal.data.astype(bool) if captured and timed else None,
        current=current.value if captured and current is not None else None,
        **about,
    )
