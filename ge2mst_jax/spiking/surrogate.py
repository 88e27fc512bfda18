"""Surrogate gradients for the step function of a firing neuron."""

import functools
import math

import jax
import jax.numpy as jnp

_GRADIENTS = {
    "triangle": lambda x, width: jnp.maximum(0.0, 1.0 - jnp.abs(x) / width) / width,
    "arctan": lambda x, width: 1.0 / (width * (1.0 + jnp.square(math.pi * x / width))),
    "sigmoid": lambda x, width: jax.nn.sigmoid(4 * x / width) * jax.nn.sigmoid(-4 * x / width) * 4 / width,
}
SURROGATES = tuple(_GRADIENTS)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def heaviside(x, surrogate: str = "triangle", width: float = 1.0):
    """`[x >= 0]` forward, a smooth bump of area 1 backward.

    | surrogate | gradient, `w` the width |
    |---|---|
    | `triangle` | `max(0, 1 - |x|/w)/w` |
    | `arctan` | `1/(w(1 + (πx/w)²))` |
    | `sigmoid` | `σ'(4x/w)·4/w` |

    Args:
        x: membrane minus threshold, any shape, floating.
        surrogate: one of `SURROGATES`.
        width: `> 0`; `1/width` is the gradient at 0.

    Returns:
        0 or 1, in the dtype of `x`.

    Raises:
        ValueError: an unknown surrogate.

    >>> float(jax.grad(heaviside)(0.25))
    0.75
    """
    if surrogate not in _GRADIENTS:
        raise ValueError(f"unknown surrogate {surrogate!r}: known are {', '.join(SURROGATES)}")
    return jnp.asarray(x >= 0, jnp.result_type(x))


@heaviside.defjvp
def _heaviside_jvp(surrogate, width, primals, tangents):
    (x,), (dx,) = primals, tangents
    return heaviside(x, surrogate, width), _GRADIENTS[surrogate](x, width) * dx
