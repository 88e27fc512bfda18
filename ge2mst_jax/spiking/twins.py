"""Twins: the one-pass closed form of neurons that send levels, with hand-written backward passes.

A twin returns levels `n`; the value that it stands for is `θ·n`. Each backward pass keeps the current and
the threshold alone (arrays that the forward pass holds anyway) and computes the rest anew.
"""

import functools

import jax
import jax.numpy as jnp

from ge2mst_jax.spiking.codes import SpikeCode
from ge2mst_jax.spiking.neurons import align


def project(levels, code: SpikeCode):
    """The largest level `<= n` that greedy encoding reaches; the identity for codes without gaps.

    Args:
        levels: integers `0..L` in any numeric dtype.

    >>> project(jnp.array([6.0, 7.0, 8.0]), SpikeCode.parse("2x3/1"))
    Array([6., 6., 8.], dtype=float32)
    """
    return code.decode(code.encode(levels)) if code.has_gaps else levels


def _staircase(current, threshold, code):
    theta = align(threshold, current)
    # A compiled I/θ may be I·(1/θ), which misses ties: the level is off by one at most, and two comparisons mend it.
    nearest = jnp.clip(jnp.floor(current / theta + 0.5), 0, code.max_level)
    membrane = current + theta / 2
    above = (membrane >= (nearest + 1) * theta).astype(current.dtype)
    below = (membrane < nearest * theta).astype(current.dtype)
    return project(jnp.clip(nearest + above - below, 0, code.max_level), code)


def _sum_to(gradient, threshold):
    """Sums a gradient over the axes along which the threshold was broadcast."""
    axes = range(gradient.ndim)
    kept = [axis for axis, size in zip(reversed(axes), reversed(threshold.shape), strict=False) if size != 1]
    summed = jnp.sum(gradient, axis=[axis for axis in axes if axis not in kept])
    return summed.reshape(threshold.shape).astype(threshold.dtype)


def _twin(threshold_slope):
    """A staircase whose backward pass has `∂n/∂I = 1/θ` inside `[0, θL]` and a given `θ ∂n/∂θ` there."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def twin(current, threshold, code):
        return _staircase(current, threshold, code)

    def forward(current, threshold, code):
        return _staircase(current, threshold, code), (current, threshold)

    def backward(code, residuals, gradient):
        current, threshold = residuals
        theta = align(threshold, current)
        inside = (current >= 0) & (current <= theta * code.max_level)
        # ∂n/∂I = 1/θ: the value θn follows the current one to one.
        to_current = jnp.where(inside, gradient / theta, 0)
        return to_current, _sum_to(-to_current * threshold_slope(current, theta, code), threshold)

    twin.defvjp(forward, backward)
    return twin


_expg = _twin(_staircase)
_qcfs = _twin(lambda current, theta, code: current / theta)


def expg_twin(current, threshold, code: SpikeCode):
    """Levels of ExpG-IF neurons in one pass, `n = project(clip(⌊I/θ + ½⌋, 0, L))`.

    Backward, for the value `θn`: `∂(θn)/∂I` is 1 inside `[0, θL]` and 0 outside, `∂(θn)/∂θ` is `L` where
    `I > θL` and 0 elsewhere: only saturated currents move the threshold. For `n` itself that is `∂n/∂I = 1/θ`
    and `∂n/∂θ = -n/θ` inside, 0 outside. Cost and memory do not depend on `T`.

    Args:
        current: `I`, `[...]`, floating; use float32, bf16 flips levels.
        threshold: `θ > 0`, scalar or broadcasting to `current`'s last axes.
        code: the neuron's code.

    Returns:
        Levels `[...]`, integers `0..L` in the current's dtype.

    Source: our reading of "lossless conversion with constant training overhead" in the abstract of
    arXiv:2604.08894; `expg_fire` is the neuron.

    >>> expg_twin(jnp.array([-1.0, 0.5, 2.4, 99.0]), 1.0, SpikeCode.parse("2x2"))
    Array([0., 1., 2., 6.], dtype=float32)
    >>> jax.grad(lambda t: t * expg_twin(jnp.array(99.0), t, SpikeCode.parse("2x2")))(1.0)
    Array(6., dtype=float32, weak_type=True)
    """
    current = jnp.asarray(current)
    return _expg(current, jnp.asarray(threshold, current.dtype), code)


def qcfs_twin(current, threshold, code: SpikeCode):
    """Levels of the QCFS activation, `n = clip(⌊I/θ + ½⌋, 0, L)`, trained straight through.

    Backward: `∂n/∂I = 1/θ` and `∂n/∂θ = -I/θ²` inside `[0, θL]`, 0 outside, so the value `θn` moves the
    threshold by its rounding error inside and by `L` where saturated. In QCFS's own terms `λ = θL`.

    Args, Returns: as `expg_twin`; the code should be a rate code, `"4x1"`.

    Source: Bu et al., ICLR 2022 (QCFS).

    >>> qcfs_twin(jnp.array([0.6, 9.0]), 0.5, SpikeCode.parse("4x1"))
    Array([1., 4.], dtype=float32)
    """
    current = jnp.asarray(current)
    return _qcfs(current, jnp.asarray(threshold, current.dtype), code)


def sfa_twin(current, code: SpikeCode):
    """Levels of spike-firing approximation, `n = ⌊clip(I, 0, L) + ½⌋`: a threshold of 1 that nothing learns.

    Its value is `n/L`. Backward: `∂n/∂I` is 1 inside `[0, L]`.

    Args:
        current: `I`, `[...]`, floating.
        code: a rate code, `"4x1"`.

    Source: Yao et al., 2025 (Spike-Driven Transformer V3).

    >>> sfa_twin(jnp.array([0.4, 2.6, 9.0]), SpikeCode.parse("4x1"))
    Array([0., 3., 4.], dtype=float32)
    """
    current = jnp.asarray(current)
    return _qcfs(current, jax.lax.stop_gradient(jnp.ones((), current.dtype)), code)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spike_count(current, threshold, code):
    return code.encode(_staircase(current, threshold, code)).sum(0)


def _spike_count_forward(current, threshold, code):
    return _spike_count(current, threshold, code), (current, threshold)


def _spike_count_backward(code, residuals, gradient):
    current, threshold = residuals
    theta = align(threshold, current)
    level = current / theta
    counts = jnp.asarray(code.spike_counts, current.dtype)
    slopes = jnp.append(counts[1:] - counts[:-1], 0)
    inside = (level >= 0) & (level < code.max_level)
    slope = slopes[jnp.clip(jnp.floor(level), 0, code.max_level).astype(jnp.int32)]
    to_current = jnp.where(inside, gradient * slope / theta, 0)
    return to_current, _sum_to(-to_current * level, threshold)


_spike_count.defvjp(_spike_count_forward, _spike_count_backward)


def expg_spike_count(current, threshold, code: SpikeCode):
    """Spikes that each ExpG-IF neuron fires, exact forward and smooth enough to steer backward.

    The count is piecewise constant in the current, so the gradient is that of the code's count table,
    interpolated linearly over the level `I/θ` in `[0, L]`; 0 outside.

    Args: as `expg_twin`.

    Returns:
        Counts `[...]`, `0..T` in the current's dtype.

    >>> expg_spike_count(jnp.array([0.2, 3.0, 5.0]), 1.0, SpikeCode.parse("2x2"))
    Array([0., 2., 3.], dtype=float32)
    >>> float(jax.grad(expg_spike_count)(2.25, 1.0, SpikeCode.parse("2x2")))
    1.0
    """
    current = jnp.asarray(current)
    return _spike_count(current, jnp.asarray(threshold, current.dtype), code)


def ladder_levels(current, threshold, code: SpikeCode):
    """Levels of deployed ExpG-IF neurons, without a division: `n = project(Σ_{l=1..L} [I + θ/2 ≥ lθ])`.

    Exact where `I`, `θ` and `θ/2` are multiples of `2^-f` below `2^(24-f)`: then equal to `expg_fire`'s level.

    Args, Returns: as `expg_twin`; no gradient.

    >>> ladder_levels(jnp.array([-1.0, 0.5, 2.25, 99.0]), 1.0, SpikeCode.parse("2x2"))
    Array([0., 1., 2., 6.], dtype=float32)
    """
    current = jnp.asarray(current)
    theta = align(jnp.asarray(threshold, current.dtype), current)
    membrane = current + theta / 2
    levels = sum((membrane >= level * theta).astype(current.dtype) for level in range(1, code.max_level + 1))
    return project(levels, code)
