"""What the functions of this room take: numbers of which type and range, in shapes that fit each other."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.checks import shown

FLOATS = ("bfloat16", "float16", "float32", "float64")

#: The range of a threshold, so that neither `θ/2` nor `255·θ` leaves the floating numbers.
LEAST, MOST = 1e-30, 1e30


def as_numbers(name: str, x):
    """`x` as an array of floating numbers or integers; bools are the integers 0 and 1.

    Raises:
        ValueError: no numbers, complex ones, 8-bit floating ones (they do not hold the levels), integers that int32
            does not hold.

    >>> as_numbers("current", [True, False])
    Array([1, 0], dtype=int32)
    """
    try:
        # A constant stays a known value inside `jit`, too.
        constant = isinstance(x, bool | int | float | np.ndarray | np.generic)
        with jax.ensure_compile_time_eval() if constant else contextlib.nullcontext():
            array = jnp.asarray(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is {shown(x)}: it must be floating numbers or integers of 32 bits") from error
    if array.dtype == jnp.bool_:
        return array.astype(jnp.int32)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        if array.dtype.name not in FLOATS:
            raise ValueError(f"{name} is of type {array.dtype}: it must be one of {', '.join(FLOATS)}, integer or bool")
    elif isinstance(x, np.ndarray | np.generic) and x.dtype != array.dtype and (x != x.astype(array.dtype)).any():
        raise ValueError(f"{name} holds {x.dtype} numbers beyond {array.dtype}: give floating numbers instead")
    return array


def as_floats(name: str, x):
    """`x` as an array of floating numbers, integers as float32.

    >>> as_floats("current", 2)
    Array(2., dtype=float32)
    """
    array = as_numbers(name, x)
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.integer) else array


def align(x, like, name: str = "an array"):
    """Views `x` over the last axes of `like`, rank for rank: broadcasting that says what it means.

    Raises:
        ValueError: `x`, by its name, is broader than `like`, or does not fit its last axes.

    >>> align(jnp.ones(3), jnp.ones((2, 4, 3))).shape
    (1, 1, 3)
    """
    fits = x.ndim <= like.ndim and all(a in (1, b) for a, b in zip(x.shape[::-1], like.shape[::-1], strict=False))
    if not fits:
        raise ValueError(
            f"{name} of shape {x.shape} does not fit shape {like.shape}: it must be a scalar or as its last axes"
        )
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def check_known(name: str, x, good, must: str) -> None:
    """Refuses values that are known and not good; what is traced cannot be looked at.

    Args:
        name, must: what it is and what it must be.
        x: an array.
        good: from an array to a bool for each of its numbers.

    >>> check_known("tau", jnp.array([2.0, 0.5]), lambda tau: tau >= 1, "at least 1")
    Traceback (most recent call last):
    ValueError: tau is [2.0, 0.5]: it must be at least 1
    """
    try:
        with jax.ensure_compile_time_eval():
            fine = bool(jnp.all(good(x)))
    except jax.errors.ConcretizationTypeError:
        return
    if not fine:
        with jax.ensure_compile_time_eval():
            values = jnp.ravel(x).tolist() if x.ndim else float(x)
        raise ValueError(f"{name} is {shown(values)}: it must be {must}")


def largest_threshold(kind, max_level: int) -> float:
    """Of a neuron that computes in this type: an integer one's levels, `θ·L`, must not leave it."""
    return jnp.iinfo(kind).max // max_level if jnp.issubdtype(kind, jnp.integer) else MOST


def is_threshold(theta, max_level: int):
    """Whether each number is above 0, finite and in the range of its type."""
    return (theta >= LEAST) & (theta <= largest_threshold(theta.dtype, max_level))


def check_threshold(threshold, kind, max_level: int) -> None:
    """Refuses a known threshold that is not one, of a neuron of so many levels that computes in this type.

    >>> check_threshold(jnp.array(-1.5), jnp.float32, 6)
    Traceback (most recent call last):
    ValueError: threshold is -1.5: it must be above 0 and at most 1e+30; learn it as softplus(raw)
    """
    within = f"above 0 and at most {largest_threshold(kind, max_level):g}; learn it as softplus(raw)"
    check_known("threshold", threshold, lambda theta: is_threshold(theta.astype(kind), max_level), within)


def operands(current, threshold, max_level: int):
    """Current and threshold as every neuron and twin computes with them.

    The rule of types: integers among themselves stay integers and are exact; else both are promoted to float32, or to
    float64 where one of them is.

    Returns:
        `(current, theta, dtype)`: of one type, the threshold aligned with the current's last axes; `dtype` is that of
        results, the current's own where it is floating.

    Raises:
        ValueError: what are no numbers, a threshold that is broader than the current or, where its value is known, not
            above 0 and finite.

    >>> current, theta, dtype = operands(jnp.ones((4, 3), jnp.bfloat16), 0.5, 6)
    >>> str(current.dtype), theta.shape, str(dtype)
    ('float32', (1, 1), 'bfloat16')
    """
    current, threshold = as_numbers("current", current), as_numbers("threshold", threshold)
    given = jnp.promote_types(current.dtype, threshold.dtype)
    integers = jnp.issubdtype(given, jnp.integer)
    kind = jnp.promote_types(given, jnp.int32 if integers else jnp.float32)
    dtype = kind if jnp.issubdtype(current.dtype, jnp.integer) else current.dtype
    check_threshold(threshold, kind, max_level)
    theta = align(threshold.astype(kind), current, "threshold")
    return current.astype(kind), theta, dtype


def meant(current, theta, max_level: int):
    """What neuron and twin make of inputs that mean nothing: a current that is nan, or one whose threshold is not above
    0 and finite, counts as -1 under a threshold of 1, so that it fires nothing and passes no gradient.
    """
    good = is_threshold(theta, max_level)
    return jnp.where(good & (current == current), current, -1), jnp.where(good, theta, 1)


def charged(current, theta):
    """The membrane before it fires, `I + θ/2`; integer currents that would run over stay at the top."""
    if not jnp.issubdtype(current.dtype, jnp.integer):
        return current + theta / 2
    # Half of an odd integer threshold is rounded down: whole currents meet whole multiples of θ all the same.
    half = jnp.right_shift(theta, 1)
    return jnp.minimum(current, jnp.iinfo(current.dtype).max - half) + half


def not_before(gradient, kept):
    """`(kept, gradient)`, such that on a CPU nothing is computed from `kept` before the gradient is there.

    Else XLA makes there what a backward pass computes anew as soon as it can, and keeps that. On other platforms it
    schedules well by itself, and a barrier would part what it fuses (35 % more cycles by the TPU's compiler).

    >>> not_before(jnp.ones(1), (jnp.zeros(1),))
    ((Array([0.], dtype=float32),), Array([1.], dtype=float32))
    """
    return jax.lax.platform_dependent(
        (kept, gradient), cpu=jax.lax.optimization_barrier, default=lambda operands: operands
    )


@jax.custom_jvp
def forward_only(x):
    """`x`, and an error where a gradient is asked for."""
    return x


@forward_only.defjvp
def _no_gradient(_primals, _tangents):
    raise ValueError(
        "a firing neuron passes no gradient: train with its twin (expg_twin or expg_activation), or fire from "
        "jax.lax.stop_gradient of the current and the threshold"
    )
