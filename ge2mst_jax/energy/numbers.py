"""Sets of numbers as a program tells them, and what its operations make of them: what the audit computes with."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np

#: What a number can be, from the least to the most. A level is an integer of at most 8 bits; a wider one is real.
KINDS = ("binary", "power_of_two", "level", "real")
LARGEST_LEVEL = 255
#: Sums of one operand with itself: how many numbers meet in one.
SUM_OVER = {
    "reduce_sum": lambda params, shape: math.prod(shape[axis] for axis in params["axes"]),
    "cumsum": lambda params, shape: shape[params["axis"]],
    "reduce_window_sum": lambda params, shape: math.prod(params["window_dimensions"]),
    "reduce": lambda params, shape: math.prod(shape[axis] for axis in params["dimensions"]),
    "reduce_window": lambda params, shape: math.prod(params["window_dimensions"]),
}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A set of numbers, as far as the program tells.

    Args:
        low, high: no number lies outside.
        integer: all are integers.
        power: all are 0 or powers of two, of either sign.
        fixed: they depend on no input.

    >>> Numbers(0, 1, integer=True).kind, Numbers(0, 300, integer=True).kind
    ('binary', 'real')
    """

    low: float = -math.inf
    high: float = math.inf
    integer: bool = False
    power: bool = False
    fixed: bool = False

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.integer and self.low >= 0 and self.high <= 1:
            return "binary"
        if self.power:
            return "power_of_two"
        small = max(abs(self.low), abs(self.high)) <= LARGEST_LEVEL
        return "level" if self.integer and small else "real"


OF_KIND = {
    "binary": Numbers(0, 1, integer=True, power=True),
    "power_of_two": Numbers(power=True),
    "level": Numbers(0, LARGEST_LEVEL, integer=True),
    "real": Numbers(),
    #: of a shift, as the network's formats fix them
    "places": Numbers(0, 31, integer=True, fixed=True),
}


def constant(value) -> Numbers:
    """The numbers of an array that the program holds."""
    value = np.asarray(value)
    if value.dtype == np.bool_:
        return dataclasses.replace(OF_KIND["binary"], fixed=True)
    if not value.size or not np.isrealobj(value) or not jnp.issubdtype(value.dtype, jnp.number):
        return Numbers(fixed=True)
    value = value.astype(np.float64)
    if not np.isfinite(value).all():
        return Numbers(fixed=True)
    mantissas = np.frexp(np.abs(value))[0]
    return Numbers(
        float(value.min()),
        float(value.max()),
        integer=bool((value == np.round(value)).all()),
        power=bool(np.isin(mantissas, (0, 0.5)).all()),
        fixed=True,
    )


def join(*sets: Numbers) -> Numbers:
    """Numbers of any of the sets."""
    return Numbers(
        min(s.low for s in sets),
        max(s.high for s in sets),
        all(s.integer for s in sets),
        all(s.power for s in sets),
        all(s.fixed for s in sets),
    )


def times(a: Numbers, b: Numbers) -> Numbers:
    """Products of a number of each."""
    corners = [0.0 if 0 in pair else pair[0] * pair[1] for pair in itertools.product((a.low, a.high), (b.low, b.high))]
    return Numbers(min(corners), max(corners), a.integer and b.integer, a.power and b.power, a.fixed and b.fixed)


def repeated(term: Numbers, count: int) -> Numbers:
    """The sum of `count` such numbers, in any number of which 0 may stand (padding)."""
    if count <= 1:
        return join(term, Numbers(0, 0, True, True, True))
    return Numbers(min(count * term.low, 0), max(count * term.high, 0), term.integer, False, term.fixed)


def summed(name: str, sets, eqn) -> Numbers:
    """Sums, by the operation's name: of two operands, of one with itself, negated."""
    first = sets[0]
    if name in ("neg", "abs", "sub"):
        flipped = dataclasses.replace(sets[-1], low=-sets[-1].high, high=-sets[-1].low)
        if name == "neg":
            return flipped
        if name == "abs":
            return dataclasses.replace(join(first, flipped), low=max(first.low, flipped.low, 0))
        sets = (first, flipped)
    if name in SUM_OVER:
        return repeated(first, SUM_OVER[name](eqn.params, eqn.invars[0].aval.shape))
    integer, fixed = (all(getattr(s, field) for s in sets) for field in ("integer", "fixed"))
    return Numbers(sum(s.low for s in sets), sum(s.high for s in sets), integer, False, fixed)


def truth(sets) -> Numbers:
    """0 or 1, whatever was compared."""
    return dataclasses.replace(OF_KIND["binary"], fixed=all(s.fixed for s in sets))


def unbounded(numbers: Numbers) -> Numbers:
    return dataclasses.replace(numbers, low=-math.inf, high=math.inf)


def within(numbers: Numbers, dtype) -> Numbers:
    """What an integer type makes of it: a number outside of its range comes out anywhere inside."""
    if dtype == jnp.bool_:
        return truth([numbers])
    if not jnp.issubdtype(dtype, jnp.integer):
        return numbers
    info = jnp.iinfo(dtype)
    if info.min <= numbers.low and numbers.high <= info.max:
        return dataclasses.replace(numbers, integer=True)
    return Numbers(float(info.min), float(info.max), integer=True, fixed=numbers.fixed)


def rounded(numbers: Numbers) -> Numbers:
    """Integers, but no levels unless something has bounded them."""
    if numbers.integer:
        return numbers
    low = math.floor(numbers.low) if math.isfinite(numbers.low) else numbers.low
    high = math.ceil(numbers.high) if math.isfinite(numbers.high) else numbers.high
    return Numbers(low, high, integer=True, fixed=numbers.fixed)


def shifted(name, sets) -> Numbers:
    """Integers times or divided by a power of two and rounded down: a shift is no product of numbers."""
    value, places = sets
    fixed = value.fixed and places.fixed
    if not (places.low >= 0 and places.high <= 31) or (name == "shift_right_logical" and value.low < 0):
        return Numbers(integer=True, fixed=fixed)
    if name == "shift_left":
        corners = [v * 2.0**p for v in (value.low, value.high) for p in (places.low, places.high)]
        return Numbers(min(corners), max(corners), True, value.power, fixed)
    corners = [v if math.isinf(v) else math.floor(v / 2.0**p) for v in (value.low, value.high)
               for p in (places.low, places.high)]  # fmt: skip
    return Numbers(min(corners), max(corners), True, False, fixed)


def joined(name, sets) -> Numbers:
    """One of several operands, by the operation's name: selected, put together, the largest, between limits."""
    if name == "clamp":
        low, x, high = sets
        joined = join(*sets)
        return dataclasses.replace(
            joined, low=min(max(low.low, x.low), high.high), high=max(min(high.high, x.high), low.low)
        )
    joined = join(*(sets[1:] if name == "select_n" else sets))
    if name == "max":
        return dataclasses.replace(joined, low=max(s.low for s in sets))
    if name == "min":
        return dataclasses.replace(joined, high=min(s.high for s in sets))
    return dataclasses.replace(joined, fixed=joined.fixed and all(s.fixed for s in sets))


def bitwise(name, sets, eqn) -> Numbers:
    """Of truth values binary; of the bits of integers anything up to the next power of two."""
    if eqn.invars[0].aval.dtype == jnp.bool_:
        return truth(sets)
    masks, fixed = [s.high for s in sets if s.low >= 0], all(s.fixed for s in sets)
    if name == "and" and masks:
        return Numbers(0, min(masks), integer=True, fixed=fixed)
    largest = max(max(abs(s.low), abs(s.high)) for s in sets)
    power = 2.0 ** math.ceil(math.log2(largest + 1)) if math.isfinite(largest) else math.inf
    return Numbers(-power, power, integer=True, fixed=fixed)
