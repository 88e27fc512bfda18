"""Layers as they are deployed: folded weights and thresholds that `convert` made; dense, or spiking in time."""

import flax.linen as nn
import jax.numpy as jnp

from ge2mst_jax.nn.attention import attention_counts
from ge2mst_jax.nn.maps import conv2d
from ge2mst_jax.nn.neuron import NeuronLayer
from ge2mst_jax.nn.synapse import HeadLayer, SynapseLayer, summed_over_tokens
from ge2mst_jax.nn.wire import Signal
from ge2mst_jax.spiking import align, expg_fire, ladder_levels


class Neuron(NeuronLayer):
    __doc__ = NeuronLayer.__doc__

    def fire(self, current, code, name, unit):
        """`(Signal, None)`; `threshold`, in the units of its fixed-point current, is a scalar or one a channel."""
        threshold = self.get_variable("params", "threshold")  # only `convert` makes it
        if self.wire.execution == "dense":
            return Signal(ladder_levels(current.value, threshold, code), None, code, "levels", name), None
        return Signal(expg_fire(current.value, threshold, code), None, code, "train", name), None


class Synapse(SynapseLayer):
    __doc__ = "`y = conv(n, W') + b'`. " + SynapseLayer.__doc__

    def convolve(self, signal, kernel, train, unit):
        """The convolution by plain sums of products, and the bias."""
        current = signal.integrate(lambda x: conv2d(x, kernel, self.stride, exact=True))
        return current + align(self.param("bias", nn.initializers.zeros, (self.features,)), current)


class Head(HeadLayer):
    __doc__ = HeadLayer.__doc__

    def read_out(self, signal, kernel, bias):
        """The certified sums: every spike adds its own row, before tokens are summed, so no product meets a count."""
        return bias[None] + signal.integrate(
            lambda x: summed_over_tokens(jnp.einsum("bhwc,ck->bhwk", x, kernel, precision="highest"))
        )


def attend(q: Signal, k: Signal, v: Signal, heads: int, scales, name: str):
    """`(Current, None, aux)`: counts are integers in the units of their current already."""
    counts, aux = attention_counts(q, k, v, heads, scales, name, "highest")
    return counts, None, aux
