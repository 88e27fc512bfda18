"""Twins: the one-pass closed form of neurons that send levels, with hand-written backward passes.

A twin returns levels `n`; the value that it stands for is `θ·n`. Its backward pass is that of this value, with the
outer `θ` held: take `stop_gradient(θ)·n` (as `nn.Signal` does) and every gradient is right. So nothing but the current
is kept, which the compiler computes anew from what a BatchNorm keeps anyway.
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
    # No rounded quotient meets every tie. This one is the level or the one below; an exact comparison says which.
    below = jnp.floor(current * (1 / theta) + 0.499)
    more = current + theta / 2 >= (below + 1) * theta
    return project(jnp.clip(below + more, 0, code.max_level), code)


def _sum_to(gradient, threshold):
    """Sums a gradient over the axes along which the threshold was broadcast."""
    axes = range(gradient.ndim)
    kept = [axis for axis, size in zip(reversed(axes), reversed(threshold.shape), strict=False) if size != 1]
    summed = jnp.sum(gradient, axis=[axis for axis in axes if axis not in kept])
    return summed.reshape(threshold.shape).astype(threshold.dtype)


def _twin(to_top):
    """A staircase whose backward pass is the value's: `g` inside `[0, θL]`, and `to_top` of the gradient `g` for `θL`.

    Levels are returned, so what arrives is `θ·g` and what leaves is divided by `θ` again.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
    def twin(current, threshold, code, dtype):
        return _staircase(current, threshold, code).astype(dtype)

    def forward(current, threshold, code, dtype):
        return twin(current, threshold, code, dtype), (current, threshold)

    def backward(code, dtype, residuals, gradient):
        current, threshold = residuals
        theta, gradient = align(threshold, current), gradient.astype(current.dtype)
        inside = (current >= 0) & (current <= theta * code.max_level)
        # Factors wait until after the sum: before it the compiler would keep them as large as the layer.
        moved = _sum_to(to_top(gradient, current, theta, code), threshold) * code.max_level / threshold
        return jnp.where(inside, gradient / theta, 0), moved

    twin.defvjp(forward, backward)
    return twin


def _expg_to_top(gradient, current, theta, code):
    return jnp.where(current > theta * code.max_level, gradient, 0)


def _qcfs_to_top(gradient, current, theta, code):
    error = jnp.where(current < 0, 0, _staircase(current, theta, code) - current / theta) / code.max_level
    return jnp.where(current > theta * code.max_level, 1, error) * gradient


_expg = _twin(_expg_to_top)
_qcfs = _twin(_qcfs_to_top)


def expg_twin(current, threshold, code: SpikeCode, dtype=None):
    """Levels of ExpG-IF neurons in one pass, `n = project(clip(⌊I/θ + ½⌋, 0, L))`.

    Backward, for the value `θn` with the outer `θ` held: `∂(θn)/∂I` is 1 inside `[0, θL]` and 0 outside, `∂(θn)/∂θ`
    is `L` where `I > θL` and 0 elsewhere: only saturated currents move the threshold. Cost and memory do not depend
    on `T`.

    Args:
        current: `I`, `[...]`, floating; use float32, bf16 flips levels.
        threshold: `θ > 0`, scalar or broadcasting to `current`'s last axes.
        code: the neuron's code.
        dtype: of the levels, if not the current's; bf16 holds all of them exactly.

    Returns:
        Levels `[...]`, integers `0..L`.

    Source: our reading of "lossless conversion with constant training overhead" in the abstract of
    arXiv:2604.08894; `expg_fire` is the neuron.

    >>> expg_twin(jnp.array([-1.0, 0.5, 2.4, 99.0]), 1.0, SpikeCode.parse("2x2"))
    Array([0., 1., 2., 6.], dtype=float32)
    >>> value = lambda i, t: jax.lax.stop_gradient(t) * expg_twin(i, t, SpikeCode.parse("2x2"))
    >>> [float(g) for g in jax.grad(value, (0, 1))(1.2, 0.5)], [float(g) for g in jax.grad(value, (0, 1))(99.0, 0.5)]
    ([1.0, 0.0], [0.0, 6.0])
    """
    current = jnp.asarray(current)
    return _expg(current, jnp.asarray(threshold, current.dtype), code, jnp.dtype(dtype or current.dtype))


def qcfs_twin(current, threshold, code: SpikeCode, dtype=None):
    """Levels of the QCFS activation, `n = clip(⌊I/θ + ½⌋, 0, L)`, trained straight through.

    Backward, for the value `θn` with the outer `θ` held: `∂(θn)/∂I` is 1 inside `[0, θL]`, `∂(θn)/∂θ` is the rounding
    error `n - I/θ` inside and `L` above. In QCFS's own terms `λ = θL`.

    Args, Returns: as `expg_twin`; the code should be a rate code, `"4x1"`.

    Source: Bu et al., ICLR 2022 (QCFS).

    >>> qcfs_twin(jnp.array([0.6, 9.0]), 0.5, SpikeCode.parse("4x1"))
    Array([1., 4.], dtype=float32)
    """
    current = jnp.asarray(current)
    return _qcfs(current, jnp.asarray(threshold, current.dtype), code, jnp.dtype(dtype or current.dtype))


def sfa_twin(current, code: SpikeCode, dtype=None):
    """Levels of spike-firing approximation, `n = ⌊clip(I, 0, L) + ½⌋`: a threshold of 1 that nothing learns.

    Its value is `n/L`. Backward: `∂n/∂I` is 1 inside `[0, L]`.

    Args:
        current: `I`, `[...]`, floating.
        code: a rate code, `"4x1"`.
        dtype: as in `expg_twin`.

    Source: Yao et al., 2025 (Spike-Driven Transformer V3).

    >>> sfa_twin(jnp.array([0.4, 2.6, 9.0]), SpikeCode.parse("4x1"))
    Array([0., 3., 4.], dtype=float32)
    """
    current = jnp.asarray(current)
    return _expg(current, jnp.ones((), current.dtype), code, jnp.dtype(dtype or current.dtype))


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
