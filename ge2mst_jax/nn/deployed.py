"""Layers as they are deployed: integer weights and thresholds that `convert` made; dense, or spiking in time."""

import functools

import jax.numpy as jnp

from ge2mst_jax.grouping import attention_halves
from ge2mst_jax.nn.attention import AttentionLayer
from ge2mst_jax.nn.gates import GatedLayer, GateSumsLayer
from ge2mst_jax.nn.neuron import NeuronLayer
from ge2mst_jax.nn.planes import EXACT, integer_conv, integer_sums
from ge2mst_jax.nn.synapse import HeadLayer, SynapseLayer, summed_over_tokens
from ge2mst_jax.nn.wire import Signal
from ge2mst_jax.spiking import align, expg_fire, ladder_levels


class Neuron(NeuronLayer):
    __doc__ = NeuronLayer.__doc__

    def fire(self, current, code, name, unit):
        """`(Signal, None)`; `threshold`, an even integer in the units of its current, is a scalar or one a channel."""
        threshold = self.get_variable("params", "threshold")  # only `convert` makes it
        if self.wire.execution == "dense":
            return Signal(ladder_levels(current.value, threshold, code), None, code, "levels", name), None
        return Signal(expg_fire(current.value, threshold, code).astype(jnp.uint8), None, code, "train", name), None


class Synapse(SynapseLayer):
    __doc__ = "`y = ⌊conv(n, W)/2^g + ½⌋ + b`, in int32; `W` has `g` guard bits. " + SynapseLayer.__doc__

    def convolve(self, signal, kernel, train, unit):
        """The convolution in planes, whole before it is rounded, and the bias."""

        planes = self.get_variable("planes", "kernel")  # `DeployedNet.variables` cuts them once

        def linear_map(x):
            level, arithmetic = signal.code.max_level, self.wire.arithmetic
            return integer_sums(x, kernel, self.stride, level, arithmetic, signal.arriving, planes)

        current = signal.integrate(linear_map).rounded(self.get_variable("params", "guard"))  # `convert` makes it
        return current + align(self.get_variable("params", "bias"), current)


class Head(HeadLayer):
    __doc__ = HeadLayer.__doc__

    def read_out(self, signal, kernel, bias):
        """The certified sums: every spike adds its own row, before tokens are summed, so no product meets a count."""

        def linear_map(x):
            rows = integer_conv(x, kernel[None, None], 1, signal.code.max_level, self.wire.arithmetic)
            return summed_over_tokens(rows)

        return bias[None] + signal.integrate(linear_map)


class Shifted:
    """A deployed counting layer. Counts are below `2^24`, and one operand of every product is a spike or a level."""

    halves = staticmethod(functools.partial(attention_halves, precision="highest"))
    operand = jnp.float32

    def handed_on(self, counts, signals, aux):
        """`(Current, None)`: the counts, shifted to their current's `2^-f` by the layer's `shift`."""
        ((name, record),) = aux.items()
        if record.bound > EXACT:
            raise ValueError(
                f"{name}: counts up to {record.bound} leave float32's {EXACT}: use smaller token groups, or codes of "
                "fewer levels"
            )
        shift = self.get_variable("params", "shift")  # only `convert` makes it
        return counts.replace(value=jnp.left_shift(counts.value.astype(jnp.int32), shift)), None


class Attention(Shifted, AttentionLayer):
    __doc__ = AttentionLayer.__doc__


class GateSums(Shifted, GateSumsLayer):
    __doc__ = GateSumsLayer.__doc__


class Gated(Shifted, GatedLayer):
    __doc__ = GatedLayer.__doc__
