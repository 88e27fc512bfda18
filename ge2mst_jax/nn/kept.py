"""What the backward pass keeps of levels: a byte of each, not a float."""

import functools

import jax
import jax.numpy as jnp

from ge2mst_jax.spiking import kept_levels
from ge2mst_jax.spiking.operands import not_before


def of_levels(function, signal, *operands):
    """`function(levels, *operands)`, of which the backward pass keeps the levels in a byte each.

    Args:
        function: of an array and the operands; differentiated, where that needs its value computed anew.
        signal: what sends the levels, integers `0..255`; real numbers (the ANN reference) are kept as they are.
        operands: kept as they are.

    >>> from ge2mst_jax.nn.wire import Signal
    >>> def loss(n, w):
    ...     return of_levels(jnp.dot, Signal(n, None, "2x2", "levels", "n"), w)
    >>> jax.grad(loss, (0, 1))(jnp.array([1.0, 3.0]), jnp.array([0.5, 2.0]))
    (Array([0.5, 2. ], dtype=float32), Array([1., 3.], dtype=float32))
    """
    if signal.real:
        return function(signal.data, *operands)
    marked = signal.kept is not None
    kept = signal.kept if marked else signal.data.astype(jnp.uint8)
    return _of_levels(function, marked, signal.data, kept, *operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _of_levels(function, marked, levels, kept, *operands):
    return function(levels, *operands)


def _forward(function, marked, levels, kept, *operands):
    typed = jnp.zeros((0,), levels.dtype)  # of no size: a type is nothing that a backward pass is given
    return function(levels, *operands), (kept, typed, operands)


def _backward(function, marked, saved, gradient):
    (kept, typed, operands), gradient = not_before(gradient, saved)
    levels = kept_levels(kept) if marked else kept  # a pixel has no mark
    to_levels, *others = jax.vjp(function, levels.astype(typed.dtype), *operands)[1](gradient)
    return to_levels, None, *others


_of_levels.defvjp(_forward, _backward)
