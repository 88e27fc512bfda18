"""Layers as they are trained: raw parameters, BatchNorm, twins; each says what it folds itself to (`convert` asks)."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.grouping import training_attention
from ge2mst_jax.nn.attention import AttentionLayer
from ge2mst_jax.nn.gates import GatedLayer, GateSumsLayer
from ge2mst_jax.nn.kept import of_levels
from ge2mst_jax.nn.maps import conv2d
from ge2mst_jax.nn.neuron import NeuronLayer
from ge2mst_jax.nn.norm import EPSILON, BatchNorm
from ge2mst_jax.nn.synapse import HeadLayer, SynapseLayer, summed_over_tokens, tokens_of
from ge2mst_jax.nn.wire import Signal
from ge2mst_jax.spiking import (
    align,
    expg_spike_count,
    expg_twin,
    expg_twin_kept,
    halves_to_even,
    if_params,
    lif_fire,
    lif_params,
    plif_params,
    qcfs_twin,
    sfa_twin,
)


def folding(module) -> bool:
    """Whether a layer shall write what it folds itself to into the collection `deployed` (`convert` asks for it)."""
    return module.is_mutable_collection("deployed") and not module.is_initializing()


def first_threshold(code) -> float:
    """A threshold such that the top level stands for two standard deviations of a normalised current."""
    return max(2.0 / code.max_level, 0.25)


class Neuron(NeuronLayer):
    __doc__ = NeuronLayer.__doc__

    def fire(self, current, code, name, unit):
        """`(Signal, activity)`; parameters: `raw` (`expg`, `qcfs`), with `θ = softplus(raw)`, one scalar, or one a
        head; `raw_leak` (`plif`), with `1/τ = σ(raw_leak)`."""
        if self.wire.neuron == "relu":
            return self._analog(current.value, code, name), None
        if self.wire.neuron == "sfa":
            return self._fixed_threshold(current.value, code, name, unit)
        if self.wire.neuron in ("expg", "qcfs"):
            return self._learned_threshold(current, code, name, unit)
        return self._stepped(current, name)

    def _analog(self, current, code, name):
        """ReLU; a gate of real numbers is binary, too, and passes its gradient as those of spikes do."""
        if not self.gate:
            return Signal(nn.relu(current).astype(self.wire.dtype), None, None, "levels", name)
        threshold = jnp.full((), first_threshold(code), jnp.float32)
        return Signal(expg_twin(current, threshold, code, self.wire.dtype), threshold, None, "levels", name)

    def _fixed_threshold(self, current, code, name, unit):
        current = halves_to_even(current) if self.wire.to_even else current
        levels = sfa_twin(current, code, self.wire.dtype)
        activity = jnp.sum(expg_spike_count(current, 1.0, code), (1, 2, 3))
        self._fold(jnp.ones(()), unit)
        return Signal(levels, jnp.full((), 1 / code.max_level), code, "levels", name), activity

    def _learned_threshold(self, current, code, name, unit):
        first = float(np.log(np.expm1(first_threshold(code))))
        raw = self.param("raw", nn.initializers.constant(first), (self.heads,) if self.heads > 1 else ())
        threshold = nn.softplus(raw)
        firing = jnp.repeat(threshold, current.value.shape[-1] // self.heads) if self.heads > 1 else threshold
        if self.wire.rate_steps:
            return self._rate_coded(current, threshold, firing, code, name)
        if self.wire.neuron == "expg":
            levels, kept, spikes = expg_twin_kept(current.value, firing, code, self.wire.dtype)
        else:
            levels, kept = qcfs_twin(current.value, firing, code, self.wire.dtype), None
            spikes = expg_spike_count(current.value, firing, code)
        activity = jnp.sum(spikes, (1, 2, 3))
        self._fold(firing, unit)
        return Signal(levels, threshold, code, "levels", name, kept), activity

    def _fold(self, firing, unit):
        if folding(self):
            self.put_variable("deployed", "threshold", firing if unit is None else firing / unit)

    def _rate_coded(self, current, threshold, firing, code, name):
        """A spike is worth the top level, `λ = Lθ`; so is the threshold at which it is fired, from `V = λ/2` on."""
        top = code.max_level
        arriving, largest = at_every_step(current, self.wire.rate_steps), top * firing
        spikes = lif_fire(arriving, if_params(threshold=largest), largest / 2)
        return self._sent(spikes, name, top * threshold, top)

    def _stepped(self, current, name):
        settings = dataclasses.asdict(self.wire.lif)
        tau = settings.pop("tau")
        if self.wire.neuron == "plif":
            start = nn.initializers.constant(float(np.log(1 / (tau - 1))))
            params = plif_params(self.param("raw_leak", start, ()), **settings)
        else:
            params = if_params(**settings) if self.wire.neuron == "if" else lif_params(tau, **settings)
        return self._sent(lif_fire(at_every_step(current, self.wire.code.num_steps), params), name)

    def _sent(self, spikes, name, threshold=None, worth=1):
        """Spikes `[T, B, H, W, C]` as a signal, and their number, whose gradient is the surrogate's."""
        activity = jnp.sum(spikes, (0, 2, 3, 4))
        return Signal(spikes.astype(self.wire.dtype), threshold, None, "steps", name, worth=worth), activity


def at_every_step(current, steps: int):
    """`[T, B, H, W, C]`: a current that has no steps is the same at each of them."""
    return current.value if current.steps else jnp.broadcast_to(current.value, (steps, *current.value.shape))


class Synapse(SynapseLayer):
    __doc__ = "`y = BN(conv(n))`. " + SynapseLayer.__doc__

    def convolve(self, signal, kernel, train, unit):
        """The normalised convolution. Folded: `W' = W·γ/σ`, `b' = β - μγ/σ`, in units of `unit` where given."""
        weights = kernel.astype(self.wire.dtype)

        def convolved(levels, weights):
            return conv2d(levels.astype(weights.dtype), weights, self.stride)

        current = signal.integrate(lambda x: of_levels(convolved, signal.replace(data=x), weights))
        if signal.worth > 1:  # the norm's statistics are those of sums of levels
            current = signal.worth * current
        if not self.norm:
            return current
        norm = BatchNorm(name="norm")
        normalised = norm(current, train)
        if folding(self):
            params, stats = norm.variables["params"], norm.variables["batch_stats"]
            gain = params["scale"] / jnp.sqrt(stats["var"] + EPSILON)
            folded = {
                "kernel": weights.astype(jnp.float32) * align(gain, kernel),  # the weights that were multiplied
                "bias": params["bias"] - stats["mean"] * gain,
            }
            for key, value in folded.items():
                self.put_variable("deployed", key, value if unit is None else value / align(unit, value))
        return normalised


class Head(HeadLayer):
    __doc__ = HeadLayer.__doc__

    def read_out(self, signal, kernel, bias):
        """Logits, averaged over tokens (and steps). Folded: `W' = W·θ`, and `N·b`."""
        tokens = tokens_of(signal)
        weights = signal.weigh(kernel) / tokens
        logits = signal.integrate(lambda x: summed_over_tokens(x.astype(jnp.float32)) @ weights)
        if folding(self):
            self.put_variable("deployed", "kernel", signal.weigh(kernel))
            self.put_variable("deployed", "bias", tokens * bias)
        return (logits.mean(0) if signal.form == "steps" else logits) + bias[None]


def whole(q, k, scales, *, grid, rates, weights, value_width):
    """Attention of levels as two linear maps of which the first is all of it."""
    return lambda v: training_attention(q, k, v, scales, grid=grid, rates=rates), lambda attended: attended


class Valued:
    """A counting layer in training."""

    halves = staticmethod(whole)

    @property
    def operand(self):
        return self.wire.dtype

    def handed_on(self, counts, signals, aux):
        """`(Current, unit)`: counts times the value of one, which thresholds give each channel."""
        unit = self.unit(*signals)
        return counts.replace(value=align(unit, counts.value) * counts.value), unit


class Attention(Valued, AttentionLayer):
    __doc__ = AttentionLayer.__doc__


class GateSums(Valued, GateSumsLayer):
    __doc__ = GateSumsLayer.__doc__


class Gated(Valued, GatedLayer):
    __doc__ = GatedLayer.__doc__
