"""Linear maps of integers: the weights cut into planes, of which each is one ordinary and exact float product.

`W = Σ_p 2^{s_p} W_p`. A plane's worst-case sum `Σ|W_p|·L` stays within `2^24`, so that every partial sum, in any order,
is a number that float32 holds; the planes are added up in int32, by shifts. What a backend multiplies:

- CPU: float32 operands, one convolution a plane. Levels, weights and sums are integers up to `2^24`.
- TPU, GPU: bfloat16 operands, added up in float32. Levels up to 255 and weights of 8 bits and a sign are bfloat16
  numbers, so that a pass of the matrix unit multiplies them exactly.

The lowest plane has room for more bits than int32 has left, and they are used: weights have `g` guard bits below the
`2^-f` of their current, the lowest plane's sums are a word of their own, and the whole sum, complete over kernel taps,
channels and time, is rounded to `2^-f` once: `⌊Σ W n / 2^g + ½⌋`. What is rounded is exact, so it is the same in any
order. Without them a weight's rounding error is multiplied by the levels that meet it, up to 255 in the stem.

The backend's convolution may be another algorithm than a sum of products (Winograd, FFT), and then it rounds. Whether
it is one is found out by trying it (`selftest.py`); if it is not, or cannot be tried (the backend is not here, or the
program is exported), the map is computed by kernel taps, one matrix product each.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import struct

from ge2mst_jax.checks import check_choice
from ge2mst_jax.nn.maps import by_taps, check_shapes, convolve
from ge2mst_jax.nn.selftest import EXACT, is_plain
from ge2mst_jax.spiking.codes import MAX_LEVEL

#: Bits of the sums of currents: int32's, or those of one float32 plane.
CURRENT_BITS = (31, 24)
BACKENDS = ("cpu", "gpu", "tpu")
OPERAND_TYPES = ("float32", "bfloat16")
#: Of the stem's weights: with one more, the sums of a step of pixels' spikes would just leave one plane.
MAX_GUARD_BITS = 7


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """What a deployed network computes with.

    Args:
        current_bits: no sum of a current reaches `2^current_bits`: 31 (int32), or 24 (one float32 plane on a CPU).
        backend: where it runs; that of JAX if none. Another is named to export for it.

    >>> Arithmetic().operand_type("cpu")
    'float32'
    """

    current_bits: int = 31
    backend: str | None = None

    def __post_init__(self):
        if self.current_bits not in CURRENT_BITS or isinstance(self.current_bits, bool):
            raise ValueError(f"current_bits is {self.current_bits!r}: it must be 31 or 24")
        if self.backend is not None:
            check_choice("backend", self.backend, BACKENDS)

    def operand_type(self, backend: str) -> str:
        """Of a plane's product."""
        return "float32" if backend == "cpu" else "bfloat16"


@functools.cache
def plane_widths(
    fan_in: int, max_level: int, sum_bits: int, operand_type: str, arriving: int | None = None
) -> tuple[int, int]:
    """`(planes, bits)`: how many planes, each but the uppermost with balanced digits of so many bits.

    A low plane's digits reach `2^(bits-1)`, the uppermost plane holds what is left. As few planes as keep every
    worst-case sum within `2^24`, and bfloat16 digits within `2^8`.

    Args:
        fan_in: weights of one output.
        max_level: `L` of what arrives.
        sum_bits: `Σ|W|·L` stays below `2^sum_bits`.
        operand_type: `"float32"` or `"bfloat16"`.
        arriving: the largest number that arrives at once: 1 of a step's spikes, which takes fewer planes; else `L`.

    Raises:
        ValueError: so many weights that not even digits of 2 bits add up within `2^24`.

    >>> plane_widths(9 * 128, 6, 31, "float32"), plane_widths(9 * 128, 6, 24, "float32")
    ((2, 12), (1, 12))
    >>> plane_widths(9 * 128, 6, 31, "bfloat16")
    (4, 9)
    >>> plane_widths(27, 255, 38, "float32"), plane_widths(27, 255, 38, "float32", 1)
    ((3, 12), (2, 18))
    """
    arriving = arriving or max_level
    bits = 1
    # All steps of a low word are added up in int32.
    while fan_in * max(arriving * 2**6, max_level) * 2**bits <= 2**30 and (bits < 9 or operand_type == "float32"):
        bits += 1
    if bits < 2:
        raise ValueError(
            f"{fan_in} weights of one output and levels up to {max_level}: their sums leave float32's {EXACT}; "
            "use fewer channels or levels"
        )
    planes = 1
    while not _uppermost_fits(planes - 1, bits, fan_in, 2**sum_bits / max_level, arriving, operand_type):
        planes += 1
    return planes, bits


def sum_bits(max_level: int, current_bits: int) -> int:
    """Bits of the sums that a layer's planes hold: its current's, and all guard bits where pixels arrive.

    A weight's rounding error is multiplied by what arrives. Up to 255 and once a network, that is worth another plane;
    everywhere else the planes that there are have room.

    >>> sum_bits(255, 31), sum_bits(6, 31)
    (38, 31)
    """
    return current_bits + (MAX_GUARD_BITS if max_level == MAX_LEVEL else 0)


def _uppermost_fits(low_planes, bits, fan_in, sizes, arriving, operand_type) -> bool:
    """Whether what low planes leave of weights with `Σ|W| <= sizes` fits one plane."""
    left = sizes / 2 ** (low_planes * bits)
    rounding = 1 if low_planes else 0  # of each weight, less than one
    fits = (left + rounding * fan_in) * arriving <= EXACT
    return fits and (operand_type == "float32" or left + rounding <= 256)


def cut(weights, planes: int, bits: int):
    """Integer planes, lowest first: `W = Σ_p 2^(p·bits) W_p`; all but the last hold `-2^(bits-1)..2^(bits-1)-1`.

    >>> [plane.tolist() for plane in cut(jnp.array([1000, -1000, 7]), 2, 4)]
    [[-8, -8, 7], [63, -62, 0]]
    """
    made, half = [], 2 ** (bits - 1)
    for _ in range(planes - 1):
        digit = weights & (2**bits - 1)
        upper = (digit >= half).astype(weights.dtype)
        made.append(digit - (upper << bits))
        weights = (weights >> bits) + upper
    return [*made, weights]


@struct.dataclass
class Planes:
    """Weights as a backend multiplies them: `W = Σ_p 2^(p·bits) parts[p]`, in the type of its operands."""

    parts: tuple[jax.Array, ...]
    bits: int = struct.field(pytree_node=False)
    arriving: int = struct.field(pytree_node=False)  # the largest number that they may meet


def planes_of(kernel, max_level: int, arithmetic: Arithmetic, arriving: int | None = None) -> Planes:
    """Cuts weights once for every call to come; NumPy's give NumPy's.

    Args:
        kernel: `[k, k, C_in/groups, C_out]` int32.
        max_level, arithmetic, arriving: as of `integer_sums`.

    >>> found = planes_of(jnp.full((1, 1, 1, 1), 1000), 255, Arithmetic(24, "cpu"))
    >>> [part.item() for part in found.parts], found.bits
    ([1000.0, 0.0], 17)
    """
    operand_type = arithmetic.operand_type(arithmetic.backend or jax.default_backend())
    bound = sum_bits(max_level, arithmetic.current_bits)
    planes, bits = plane_widths(math.prod(kernel.shape[:3]), max_level, bound, operand_type, arriving)
    parts = tuple(plane.astype(operand_type) for plane in cut(kernel, planes, bits))
    return Planes(parts, bits, arriving or max_level)


def sums_fit(total: int, largest: int, fan_in: int | None, max_level: int, current_bits: int, guard: int) -> bool:
    """Whether the words of every backend hold the sums of a layer whose weights have `guard` guard bits.

    Args:
        total: `Σ|W|·L`, of the output where it is largest.
        largest: of the weights' magnitudes.
        fan_in: weights of one output; none of a depth-wise map, which is added up in one word of int32.
        max_level, current_bits: as of `plane_widths`.
        guard: `g`.

    >>> sums_fit(2**31, 2**24, 9 * 128, 6, 31, 5), sums_fit(2**37, 2**24, 9 * 128, 6, 31, 5)
    (True, False)
    """
    if not 0 <= guard <= MAX_GUARD_BITS or largest >= 2**31:
        return False
    if fan_in is None:
        return total + 2**guard < 2**31
    return all(
        _words_hold(total, largest, fan_in, max_level, current_bits, guard, operand_type, arriving)
        for operand_type in OPERAND_TYPES
        for arriving in (1, max_level)
    )


def _words_hold(total, largest, fan_in, max_level, current_bits, guard, operand_type, arriving) -> bool:
    planes, bits = plane_widths(fan_in, max_level, sum_bits(max_level, current_bits), operand_type, arriving)
    rounding = 1 if planes > 1 else 0  # of each weight, less than one
    unit = 2 ** ((planes - 1) * bits)  # of the uppermost plane
    fits = (total + rounding * fan_in * max_level * unit) * arriving <= EXACT * unit * max_level
    if operand_type == "bfloat16":
        fits = fits and largest <= (256 - rounding) * unit
    # The upper word is added up modulo 2^32, as int32 is: what it is part of fits.
    return fits and (total + 2**guard < 2**31 if planes == 1 else guard <= bits)


@struct.dataclass
class Sums:
    """Exact sums `low + 2^bits·high`, in two words of int32 (one where `high` is none). Linear: such sums add up.

    >>> Sums(jnp.array([6]), jnp.array([5]), 3).rounded(2)
    Array([12], dtype=int32)
    """

    low: jax.Array
    high: jax.Array | None
    bits: int = struct.field(pytree_node=False)

    def rounded(self, guard=None):
        """`⌊sum/2^g + ½⌋` int32, halves upwards; the sum itself where no guard is given."""
        if guard is None:
            return self.low if self.high is None else self.low + jnp.left_shift(self.high, self.bits)
        half = jnp.right_shift(jnp.left_shift(1, guard), 1)
        low = jnp.right_shift(self.low + half, guard & 31)
        return low if self.high is None else low + jnp.left_shift(self.high, (self.bits - guard) & 31)


def integer_conv(x, kernel, stride: int, max_level: int, arithmetic: Arithmetic):
    """2-D convolution of levels or spikes with integer weights, exact, as `conv2d` with `k//2` zeros of padding.

    Args:
        x: `[B, H, W, C_in]`, integers `0..max_level` in any numeric type.
        kernel: `[k, k, C_in/groups, C_out]` int32; `Σ|W|·L` of each output stays below `2^current_bits`.
        stride: of both axes.
        max_level: `L`, of the sender's code.
        arithmetic: see `Arithmetic`.

    Returns:
        `[B, H', W', C_out]` int32.

    Raises:
        ValueError: shapes as in `conv2d`, weights that are no int32, sums that no plane holds.

    >>> x, kernel = jnp.array([3, 5]).reshape(1, 1, 2, 1), jnp.full((1, 1, 1, 1), 123_456_789)
    >>> integer_conv(x, kernel, 1, 6, Arithmetic()).ravel().tolist()
    [370370367, 617283945]
    """
    return integer_sums(x, kernel, stride, max_level, arithmetic).rounded()


def integer_sums(
    x, kernel, stride: int, max_level: int, arithmetic: Arithmetic, arriving: int | None = None, planes=None
) -> Sums:
    """`integer_conv` before its words are put together; weights may have guard bits, as `sums_fit` allows.

    Args:
        x, kernel, stride, max_level, arithmetic: as of `integer_conv`.
        arriving: the largest number in `x` where it is not `L`: 1 of one step's spikes.
        planes: of the kernel, from `planes_of` with the same arguments, to cut it once for many calls.

    Raises:
        ValueError: as `integer_conv`, and planes that were cut for other numbers.

    Returns:
        `Sums` of `[B, H', W', C_out]`.
    """
    groups = check_shapes(x, kernel, stride)
    if kernel.dtype != jnp.int32:
        raise ValueError(f"weights of type {kernel.dtype}: those of a deployed network are int32; deploy makes them")
    if groups == x.shape[-1] == kernel.shape[-1]:
        return Sums(by_taps(x.astype(jnp.int32), kernel, stride), None, 0)
    backend, level = arithmetic.backend or jax.default_backend(), arriving or max_level
    planes = planes or planes_of(kernel, max_level, arithmetic, level)
    if planes.arriving != level:
        raise ValueError(f"planes for numbers up to {planes.arriving}, but up to {level} arrive: cut them for those")
    if planes.parts[0].dtype != arithmetic.operand_type(backend):
        raise ValueError(f"planes of {planes.parts[0].dtype}, but {backend} multiplies others: cut them for it")
    of_group = (jnp.split(a, groups, -1) for a in (x.astype(planes.parts[0].dtype), *planes.parts))
    words = []
    for arrived, *parts in zip(*of_group, strict=True):
        low, *upper = (_sum_of_products(arrived, part, stride, level, backend).astype(jnp.int32) for part in parts)
        shifted = [jnp.left_shift(part, p * planes.bits) if p else part for p, part in enumerate(upper)]
        words.append((low, sum(shifted[1:], shifted[0])) if upper else (low,))
    low, *high = (jnp.concatenate(parts, -1) if groups > 1 else parts[0] for parts in zip(*words, strict=True))
    return Sums(low, high[0] if high else None, planes.bits)


def _sum_of_products(x, weights, stride, max_level, backend):
    """Of one group, float32: the backend's convolution where it is proven to be one, else kernel taps."""
    if is_plain(backend, x.shape, weights.shape, stride, max_level, x.dtype.name):
        return convolve(x, weights, stride, jnp.float32, "highest")
    return by_taps(x, weights, stride, "highest")
