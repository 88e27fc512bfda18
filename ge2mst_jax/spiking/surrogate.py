"""Surrogate gradients for the step function of a firing neuron."""

import functools
import math

import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_choice, check_number
from ge2mst_jax.spiking.operands import as_floats

_GRADIENTS = {
    "triangle": lambda x, width: jnp.maximum(0.0, 1.0 - jnp.abs(x) / width) / width,
    "arctan": lambda x, width: 1.0 / (width * (1.0 + jnp.square(math.pi * x / width))),
    "sigmoid": lambda x, width: jax.nn.sigmoid(4 * x / width) * jax.nn.sigmoid(-4 * x / width) * 4 / width,
}
SURROGATES = tuple(_GRADIENTS)


def heaviside(x, surrogate: str = "triangle", width: float = 1.0):
    """`[x >= 0]` forward, a smooth bump of area 1 backward.

    | surrogate | gradient, `w` the width |
    |---|---|
    | `triangle` | `max(0, 1 - |x|/w)/w` |
    | `arctan` | `1/(w(1 + (πx/w)²))` |
    | `sigmoid` | `σ'(4x/w)·4/w` |

    SpikingJelly's ATan of `α` is `arctan` of width `2/α` (its own α = 2: 1), its Sigmoid `sigmoid` of `4/α`.

    Args:
        x: membrane minus threshold, any shape, floating; integers become float32.
        surrogate: one of `SURROGATES`.
        width: a number above 0, at most 1e6; `1/width` is the gradient at 0.

    Returns:
        0 or 1, in the dtype of `x`.

    Raises:
        ValueError: no numbers, an unknown surrogate, a width out of range.

    >>> float(jax.grad(heaviside)(0.25))
    0.75
    """
    check_choice("surrogate", surrogate, SURROGATES)
    return _heaviside(as_floats("x", x), surrogate, check_number("width", width, 0, 1e6, above=True))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _heaviside(x, surrogate, width):
    return (x >= 0).astype(x.dtype)


@_heaviside.defjvp
def _heaviside_jvp(surrogate, width, primals, tangents):
    (x,), (dx,) = primals, tangents
    return _heaviside(x, surrogate, width), _GRADIENTS[surrogate](x, width) * dx
