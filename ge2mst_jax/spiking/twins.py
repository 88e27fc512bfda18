"""Twins: the one-pass closed form of neurons that send levels, with derivatives that are stated, not traced.

A twin returns levels `n`; the value that it stands for is `θ·n`. Its derivative is that of this value, with the
outer `θ` held: take `stop_gradient(θ)·n` (as `nn.Signal` does) and every gradient is right; `expg_activation` gives the
value itself. The backward pass keeps nothing but the current, which the
compiler computes anew from what a BatchNorm keeps anyway; forward mode works too.

Types, of all functions here: integer currents with integer thresholds are computed in integers, exactly; everything
else in float32 (float64 where an argument is), whatever mixture comes. Levels have the current's floating type.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ge2mst_jax.checks import shown
from ge2mst_jax.spiking.codes import SpikeCode
from ge2mst_jax.spiking.neurons import expg_fire
from ge2mst_jax.spiking.operands import FLOATS, charged, forward_only, meant, not_before, operands

#: Up to so many, a comparison a level costs less than a greedy step a spike.
FEW_LEVELS = 8


def project(levels, code: SpikeCode):
    """The largest level `<= n` that greedy encoding reaches; the identity for codes without gaps.

    Args:
        levels: integers `0..L` in any numeric dtype.

    >>> project(jnp.array([6.0, 7.0, 8.0]), SpikeCode.parse("2x3/1"))
    Array([6., 6., 8.], dtype=float32)
    """
    code = SpikeCode.of(code)
    return code.decode(code.encode(levels)) if code.has_gaps else levels


def _staircase(current, theta, code):
    current, theta = meant(current, theta, code.max_level)
    membrane = charged(current, theta)
    if jnp.issubdtype(current.dtype, jnp.integer):
        level = membrane // theta
    else:
        # No rounded quotient meets every tie. This one is the level or the one below; an exact comparison says which.
        below = jnp.floor(current * (1 / theta) + 0.499)
        level = below + (membrane >= (below + 1) * theta)
    return project(jnp.clip(level, 0, code.max_level), code)


def _twin(slope):
    """A staircase whose derivative is the value's, `slope`, divided by `θ`: what is returned are levels."""

    @functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
    def twin(current, theta, code):
        return _staircase(current, theta, code)

    @twin.defjvp
    def tangent(code, primals, tangents):
        return twin(*primals, code), _kept_small(slope, code, primals, tangents, of_levels=True)

    return twin


def _kept_small(slope, code, primals, tangents, of_levels):
    """A derivative of which the backward pass keeps the current and the threshold alone, no mask and no product."""

    def moved(current, theta, d_current, d_theta):
        current, theta = meant(current, theta, code.max_level)
        moved_value = slope(current, theta, code, d_current, d_theta)
        # Divided last: of a tangent that was divided first the compiler keeps a product as large as the layer.
        return moved_value / theta if of_levels else moved_value

    return jax.checkpoint(moved, prevent_cse=False)(*primals, *tangents)


def _expg_slope(current, theta, code, d_current, d_theta):
    top = theta * code.max_level
    inside = (current >= 0) & (current <= top)
    return jnp.where(inside, d_current, 0) + jnp.where(current > top, code.max_level * d_theta, 0)


def _qcfs_slope(current, theta, code, d_current, d_theta):
    top = theta * code.max_level
    inside = (current >= 0) & (current <= top)
    error = jnp.where(
        inside, _staircase(current, theta, code) - current / theta, jnp.where(current > top, code.max_level, 0)
    )
    return jnp.where(inside, d_current, 0) + error * d_theta


def _count_slope(current, theta, code, d_current, d_theta):
    level = jnp.clip(current / theta, 0, code.max_level)
    counts = jnp.asarray(code.spike_counts, current.dtype)
    slopes = jnp.append(counts[1:] - counts[:-1], 0)
    inside = (current >= 0) & (level < code.max_level)
    slope = jnp.where(inside, slopes[jnp.floor(level).astype(jnp.int32)], 0)
    return slope * d_current - slope * level * d_theta


_expg = _twin(_expg_slope)
_qcfs = _twin(_qcfs_slope)


def _levels(twin, current, threshold, code, dtype):
    code = SpikeCode.of(code)
    current, theta, own = operands(current, threshold, code.max_level)
    return twin(current, theta, code).astype(_type_of_levels(dtype, own))


def _type_of_levels(dtype, own):
    if dtype is not None and jnp.dtype(dtype).name not in FLOATS:
        raise ValueError(f"dtype of levels is {jnp.dtype(dtype)}: it must be one of {', '.join(FLOATS)}")
    return own if dtype is None else dtype


def expg_twin(current, threshold, code: SpikeCode, dtype=None):
    """Levels of ExpG-IF neurons in one pass, `n = project(clip(⌊I/θ + ½⌋, 0, L))`.

    Derivative, of the value `θn` with the outer `θ` held: `∂(θn)/∂I` is 1 inside `[0, θL]` and 0 outside, `∂(θn)/∂θ`
    is `L` where `I > θL` and 0 elsewhere: only saturated currents move the threshold. Cost and memory do not depend
    on `T`. Works in reverse and forward mode.

    Args:
        current: `I`, `[...]`, floating or integer (see the top of this file); use float32, bf16 flips levels. A nan is
            level 0 and passes no gradient.
        threshold: `θ`, scalar or broadcasting to `current`'s last axes, above 0 and finite, `1e-30..1e30`. Keep it so
            by learning a raw number: `θ = softplus(raw)`. A value that only shows inside `jit` and is not so gives
            level 0 without a gradient, as it gives no spike in `expg_fire`.
        code: the neuron's, or its text.
        dtype: of the levels, if not the current's; bf16 holds all of them exactly.

    Returns:
        Levels `[...]`, integers `0..L`.

    Raises:
        ValueError: no numbers, a known threshold out of range, or one that is broader than the current.

    Source: our reading of "lossless conversion with constant training overhead" in the abstract of
    arXiv:2604.08894; `expg_fire` is the neuron.

    >>> expg_twin(jnp.array([-1.0, 0.5, 2.4, 99.0]), 1.0, SpikeCode.parse("2x2"))
    Array([0., 1., 2., 6.], dtype=float32)
    >>> value = lambda i, t: jax.lax.stop_gradient(t) * expg_twin(i, t, SpikeCode.parse("2x2"))
    >>> [float(g) for g in jax.grad(value, (0, 1))(1.2, 0.5)], [float(g) for g in jax.grad(value, (0, 1))(99.0, 0.5)]
    ([1.0, 0.0], [0.0, 6.0])
    """
    return _levels(_expg, current, threshold, code, dtype)


def expg_twin_kept(current, threshold, code: SpikeCode, dtype=None):
    """`expg_twin`, its spikes, and what the backward pass of both keeps: one byte a neuron, in which the levels are.

    The byte is `n`, plus 128 where the current lies outside `[0, θL]` (below it where `n` is 0); two bytes for codes
    of more than 127 levels. Layers that get the levels may keep the same bytes (`kept_levels` reads them), so that a
    network in training holds one byte a neuron where an ANN holds a float. Reverse mode only.

    The derivative of the spikes is that of `expg_spike_count`, its mean `s(n)` over the currents that fire the same
    level: `s(n)/θ` to the current, `-s(n)·n/θ` to the threshold, 0 outside of `[0, θL]`. Between neighbours
    `s(n) = (c(n+1) - c(n-1))/2` of the count table `c`.

    Args, Raises: as `expg_twin`.

    Returns:
        `(levels, bytes, spikes)`, the bytes uint8 or uint16, the spikes `0..T` in the current's floating type.

    >>> levels, kept, spikes = expg_twin_kept(jnp.array([-1.0, 0.5, 2.4, 99.0]), 1.0, SpikeCode.parse("2x2"))
    >>> kept, kept_levels(kept), spikes
    (Array([128,   1,   2, 134], dtype=uint8), Array([0, 1, 2, 6], dtype=uint8), Array([0., 1., 1., 4.], dtype=float32))
    """
    code = SpikeCode.of(code)
    current, theta, own = operands(current, threshold, code.max_level)
    levels, kept, spikes = _in_bytes(current, theta, code)
    return levels.astype(_type_of_levels(dtype, own)), kept, spikes.astype(own)


def kept_levels(kept):
    """The levels in what `expg_twin_kept` keeps.

    Raises:
        ValueError: neither uint8 nor uint16.

    >>> kept_levels(jnp.array([134, 3], jnp.uint8))
    Array([6, 3], dtype=uint8)
    """
    if getattr(kept, "dtype", None) not in (jnp.uint8, jnp.uint16):
        raise ValueError(f"kept is {shown(kept)}: it must be the bytes of expg_twin_kept, uint8 or uint16")
    return kept & (0xFF if kept.dtype == jnp.uint16 else 0x7F)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _in_bytes(current, theta, code):
    levels = _staircase(current, theta, code)
    current, theta = meant(current, theta, code.max_level)
    outside = (current < 0) | (current > theta * code.max_level)
    kind, mark = (jnp.uint8, 128) if code.max_level < 128 else (jnp.uint16, 256)
    return levels, levels.astype(kind) + mark * outside.astype(kind), code.count(levels)


def _in_bytes_forward(current, theta, code):
    levels, kept, spikes = _in_bytes(current.value, theta.value, code)
    return (levels, kept, spikes), (kept, theta.value)


def _in_bytes_backward(code, saved, gradients):
    # The spikes' gradient is there long before that of the value, for which whatever is made of the bytes waits.
    of_value, _, of_spikes = gradients
    of_value = jnp.zeros(of_value.shape, of_value.dtype) if isinstance(of_value, SymbolicZero) else of_value
    (kept, theta), of_value = not_before(of_value, saved)
    theta = meant(jnp.ones_like(theta), theta, code.max_level)[1]
    outside, levels = kept > (255 if kept.dtype == jnp.uint16 else 127), kept_levels(kept)
    to_theta = jnp.where(outside & (levels > 0), code.max_level * of_value, 0)
    if not isinstance(of_spikes, SymbolicZero):
        of_spikes = jnp.where(outside, 0, jnp.asarray(mean_slopes(code), of_spikes.dtype)[levels] * of_spikes)
        of_value, to_theta = of_value + of_spikes, to_theta - of_spikes * levels
    shared = tuple(axis for axis, side in enumerate(theta.shape) if side == 1)
    return jnp.where(outside, 0, of_value) / theta, jnp.sum(to_theta, shared, keepdims=True) / theta


_in_bytes.defvjp(_in_bytes_forward, _in_bytes_backward, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _value(current, theta, levels, code):
    return meant(current, theta, code.max_level)[1] * levels


@_value.defjvp
def _value_tangent(code, primals, tangents):
    return _value(*primals, code), _kept_small(_expg_slope, code, primals[:2], tangents[:2], of_levels=False)


def expg_activation(current, threshold, code: SpikeCode):
    """ExpG-IF neurons in training: what their levels are worth, `θn`, and the levels `n`.

    The value has every gradient: 1 to the current inside `[0, θL]`, `L` to the threshold where `I > θL`. Use it as you
    would a ReLU's output; the levels are what `expg_fire` encodes, with the derivative of `expg_twin`: do not multiply
    them by `θ` again.

    Args: as `expg_twin`.

    Returns:
        `(value, levels)`, `[...]` each, in the current's floating type.

    Raises, Source: as `expg_twin`.

    >>> expg_activation(jnp.array([-1.0, 0.5, 2.4, 99.0]), 0.5, SpikeCode.parse("2x2"))
    (Array([0. , 0.5, 2.5, 3. ], dtype=float32), Array([0., 1., 5., 6.], dtype=float32))
    >>> [float(g) for g in jax.grad(lambda i, t: expg_activation(i, t, SpikeCode(2, 2))[0], (0, 1))(99.0, 0.5)]
    [0.0, 6.0]
    """
    code = SpikeCode.of(code)
    current, theta, dtype = operands(current, threshold, code.max_level)
    levels = _expg(current, theta, code)
    return _value(current, theta, levels, code).astype(dtype), levels.astype(dtype)


def qcfs_twin(current, threshold, code: SpikeCode, dtype=None):
    """Levels of the QCFS activation, `n = clip(⌊I/θ + ½⌋, 0, L)`, trained straight through.

    Derivative, of the value `θn` with the outer `θ` held: `∂(θn)/∂I` is 1 inside `[0, θL]`, `∂(θn)/∂θ` is the rounding
    error `n - I/θ` inside and `L` above. In QCFS's own terms `λ = θL`.

    Args, Returns, Raises: as `expg_twin`; the code should be a rate code, `"4x1"`.

    Source: Bu et al., ICLR 2022 (QCFS).

    >>> qcfs_twin(jnp.array([0.6, 9.0]), 0.5, SpikeCode.parse("4x1"))
    Array([1., 4.], dtype=float32)
    """
    return _levels(_qcfs, current, threshold, code, dtype)


def sfa_twin(current, code: SpikeCode, dtype=None):
    """Levels of spike-firing approximation, `n = ⌊clip(I, 0, L) + ½⌋`: a threshold of 1 that nothing learns.

    Its value is `n/L`. Derivative: `∂n/∂I` is 1 inside `[0, L]`.

    Args:
        current: `I`, `[...]`, as in `expg_twin`.
        code: a rate code, `"4x1"`.
        dtype: as in `expg_twin`.

    Raises: as `expg_twin`.

    Source: Yao et al., 2025 (Spike-Driven Transformer V3).

    >>> sfa_twin(jnp.array([0.4, 2.6, 9.0]), SpikeCode.parse("4x1"))
    Array([0., 3., 4.], dtype=float32)
    """
    return _levels(_expg, current, 1, code, dtype)


def halves_to_even(current):
    """A current whose halves `sfa_twin` takes to the even level, as PyTorch rounds, and so E-SpikeFormer's code.

    A ladder of thresholds takes them up, and so does `sfa_twin` (and, adding a half, what lies an ulp below one): there
    the current is lowered by a quarter. The derivative is 1.

    Args:
        current: `I`, `[...]`, floating.

    >>> sfa_twin(halves_to_even(jnp.array([0.5, 1.5, 2.5, 2.6])), SpikeCode.parse("4x1"))
    Array([0., 2., 2., 3.], dtype=float32)
    """
    down = jnp.floor(current + 0.5) > jnp.round(current)
    return current - jax.lax.stop_gradient(jnp.where(down, 0.25, 0).astype(current.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _spike_count(current, theta, code):
    return code.count(_staircase(current, theta, code))


@_spike_count.defjvp
def _spike_count_tangent(code, primals, tangents):
    return _spike_count(*primals, code), _kept_small(_count_slope, code, primals, tangents, of_levels=True)


def expg_spike_count(current, threshold, code: SpikeCode):
    """Spikes that each ExpG-IF neuron fires, exact forward and smooth enough to steer backward.

    The count is piecewise constant in the current, so the derivative is that of the code's count table,
    interpolated linearly over the level `I/θ` in `[0, L]`; 0 outside.

    Args, Raises: as `expg_twin`.

    Returns:
        Counts `[...]`, `0..T` in the current's floating type.

    >>> expg_spike_count(jnp.array([0.2, 3.0, 5.0]), 1.0, SpikeCode.parse("2x2"))
    Array([0., 2., 3.], dtype=float32)
    >>> float(jax.grad(expg_spike_count)(2.25, 1.0, SpikeCode.parse("2x2")))
    1.0
    """
    code = SpikeCode.of(code)
    current, theta, dtype = operands(current, threshold, code.max_level)
    return _spike_count(current, theta, code).astype(dtype)


@functools.cache
def mean_slopes(code: SpikeCode) -> tuple[float, ...]:
    """Of the count table, interpolated linearly: its mean slope over the currents that fire each level, `0..L`.

    >>> mean_slopes(SpikeCode.parse("2x2"))
    (1.0, 0.5, 0.5, 1.0, 0.5, 0.5, 1.0)
    """
    # A level that greedy encoding does not reach stands with the one below it, whose currents those are.
    first = np.array(code.projection) - 0.5
    after = [*(level - 0.5 for level in code.levels[1:]), code.max_level]
    first, last = np.maximum(first, 0), np.array(after)[np.searchsorted(code.levels, code.projection)]
    climbed = np.interp([first, last], np.arange(code.max_level + 1), code.spike_counts)
    return tuple(((climbed[1] - climbed[0]) / (last - first)).tolist())


def ladder_levels(current, threshold, code: SpikeCode):
    """Levels of deployed ExpG-IF neurons, without a division: `n = project(Σ_{l=1..L} [I + θ/2 ≥ lθ])`.

    Exact, and then equal to `expg_fire`'s level, where both are integers. Codes of more levels than `FEW_LEVELS`, and
    those with gaps, climb the greedy ladder instead: a comparison a step, whatever `L`.

    Args, Returns, Raises: as `expg_twin`; asked for a gradient it raises, for it has none.

    >>> ladder_levels(jnp.array([-1.0, 0.5, 2.25, 99.0]), 1.0, SpikeCode.parse("2x2"))
    Array([0., 1., 2., 6.], dtype=float32)
    """
    code = SpikeCode.of(code)
    if code.max_level > FEW_LEVELS or code.has_gaps:
        return code.decode(expg_fire(current, threshold, code))
    current, theta, dtype = operands(current, threshold, code.max_level)
    current, theta = meant(current, theta, code.max_level)
    membrane = forward_only(charged(current, theta))
    levels = sum((membrane >= level * theta).astype(membrane.dtype) for level in range(1, code.max_level + 1))
    return levels.astype(dtype)
