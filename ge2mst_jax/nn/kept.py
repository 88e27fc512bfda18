"""What the backward pass keeps of levels: a byte of each, not a float."""

import functools

import jax
import jax.numpy as jnp

from ge2mst_jax.spiking import kept_levels
from ge2mst_jax.spiking.operands import not_before


def of_levels(function, signals, *operands):
    """`function(levels, *operands)`, of which the backward pass keeps the levels in a byte each.

    Args:
        function: of a tuple of arrays and the operands; differentiated, where that needs its value computed anew.
        signals: what sends the levels, integers `0..255`; real numbers (the ANN reference) are kept as they are.
        operands: kept as they are.

    >>> from ge2mst_jax.nn.wire import Signal
    >>> def loss(n, w):
    ...     return of_levels(lambda levels, w: jnp.dot(*levels, w), (Signal(n, None, "2x2", "levels", "n"),), w)
    >>> jax.grad(loss, (0, 1))(jnp.array([1.0, 3.0]), jnp.array([0.5, 2.0]))
    (Array([0.5, 2. ], dtype=float32), Array([1., 3.], dtype=float32))
    """
    levels = tuple(signal.data for signal in signals)
    if any(signal.real for signal in signals):
        return function(levels, *operands)
    marked = tuple(s.kept is not None for s in signals)
    kept = tuple(s.kept if m else s.data.astype(jnp.uint8) for s, m in zip(signals, marked, strict=True))
    return _of_levels(function, marked, levels, kept, *operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _of_levels(function, marked, levels, kept, *operands):
    return function(levels, *operands)


def _forward(function, marked, levels, kept, *operands):
    types = [jnp.zeros((0,), x.dtype) for x in levels]  # of no size: types are nothing that a backward pass is given
    return function(levels, *operands), (kept, types, operands)


def _backward(function, marked, saved, gradient):
    (kept, types, operands), gradient = not_before(gradient, saved)
    kept = (kept_levels(k) if m else k for k, m in zip(kept, marked, strict=True))  # a pixel has no mark
    levels = tuple(k.astype(t.dtype) for k, t in zip(kept, types, strict=True))
    to_levels, *others = jax.vjp(function, levels, *operands)[1](gradient)
    return to_levels, None, *others


_of_levels.defvjp(_forward, _backward)
