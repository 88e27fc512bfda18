"""Attention that masks, as layers: the sums that a gate decides by, and what it lets through; trained or deployed."""

import math

import jax
import jax.numpy as jnp

from ge2mst_jax.grouping import channel_sums, gated, head_sums, per_channel
from ge2mst_jax.nn.attention import CountingLayer, of_images, value_of
from ge2mst_jax.nn.wire import AttentionRecord, Current, Signal
from ge2mst_jax.spiking import SpikeCode

#: Of a gate: it is open or not.
BINARY = SpikeCode(1, 1)
#: What neurons send is worth about `2^-bits` where their currents are normalised: `1.3` bits unless said here. Sums are
#: scaled by it, such that about half of the gates open at the start (those of `sfa` at a half, not at 1).
BITS = {"sfa": 2.4, "lif": 3.5, "plif": 3.5}
#: Counts are whole numbers in float32, which bfloat16 operands would round.
WHOLE = jnp.float32


class GateSumsLayer(CountingLayer):
    __doc__ = (
        "`Σ_tokens k ⊙ v` of each channel (two signals), or `Σ_channels q` of each token and head (one). "
        + CountingLayer.__doc__
    )

    def count(self, *signals):
        *held, arriving = signals
        height, width, channels = arriving.image_shape
        if held:
            (k,) = held
            weights = k.code.step_weights if k.form == "train" else None
            keys = k.planes.astype(WHOLE)
            sums = arriving.integrate(lambda x: channel_sums(keys, x.astype(WHOLE), weights))
            terms, shape = height * width, (1, 1, channels)
        else:
            sums = arriving.integrate(lambda x: head_sums(x.astype(WHOLE), self.heads))
            terms, shape = channels // self.heads, (height, width, self.heads)
        return counted(self, sums, signals, terms, shape)

    def unit(self, *signals):
        """`2^{2 bits}/N θ_k θ_v`, `[C]`, or `2^bits/d θ_q`, `[h]`: means over `N` tokens, or a head's `d` channels."""
        height, width, channels = signals[0].image_shape
        terms = height * width if len(signals) == 2 else channels // self.heads
        mean = 2.0 ** (len(signals) * BITS.get(self.wire.neuron, 1.3)) / terms if self.worth is None else self.worth
        unit = value_of(signals, jnp.full((self.heads,), mean, jnp.float32))
        return jnp.repeat(unit, channels // self.heads) if len(signals) == 2 else unit


class GatedLayer(CountingLayer):
    __doc__ = "`gate ⊙ x`: the spikes of `x` whose gate is open. " + CountingLayer.__doc__

    def count(self, x, gate):
        opened = (gate.data[0] if gate.form == "train" else gate.planes).astype(WHOLE)  # a gate fires in one step
        passed = x.integrate(lambda plane: gated(opened, plane.astype(WHOLE)))
        return counted(self, passed, (x, gate), 1, x.image_shape)

    def unit(self, x, gate):
        """`θ_x θ_gate`, `[C]`."""
        unit = value_of((x, gate), jnp.ones((self.heads,), jnp.float32))
        return jnp.repeat(unit, x.image_shape[-1] // self.heads)


def counted(layer: CountingLayer, counts, signals: tuple[Signal, ...], terms: int, out_shape):
    """Counts as a current of integers, and what they leave in `aux`: sums of so many products of one level each."""
    name, first = "/".join(layer.path), signals[0]
    made = AttentionRecord(
        synops=None if layer.wire.capture == "none" else meetings(signals),
        sources=tuple(signal.source for signal in signals),
        products=((math.prod(first.image_shape), tuple(signal.source for signal in signals)),),
        bound=terms * math.prod(signal.largest for signal in signals),
        out_shape=out_shape,
    )
    return Current(counts, (name,), first.form == "steps"), {name: made}


def meetings(signals: tuple[Signal, ...]):
    """`[B]` int32: pairs of spikes of two signals at one neuron, or the spikes of one; 0 of real numbers."""
    first = signals[0]
    if first.real:
        return jnp.zeros(len(first.data), jnp.int32)
    met = first.spikes.astype(jnp.int32)
    for signal in signals[1:]:
        met = met * per_channel(signal.spikes.astype(jnp.int32), met.shape[-1])
    return of_images(jnp.sum(jax.lax.stop_gradient(met), (1, 2, 3)), first)
