"""Whether a backend's convolution is a plain sum of products, found out by trying it on integers near the bound.

Sums of products of integers within `2^24` are exact in float32, in any order. Winograd's and Fourier's algorithms
transform the operands first: their intermediate numbers leave that range, or are no integers, and what is put together
again is rounded. On the weights below that shows.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.nn.maps import convolve, output_size

#: Up to here float32 holds every integer.
EXACT = 2**24
#: Images that are tried on a CPU, whose algorithm does not depend on their number; others try as many as will come.
FEW = 2


def adversarial(images_shape, kernel_shape, max_level: int, operand_type: str, seed: int = 0):
    """Levels `[B, H, W, C]` and weights `[k, k, C, D]`, float64 integers whose sums come near `2^24`, not beyond it.

    Every fourth output channel has weights of one kind: all positive and odd, up to the bound; half of them negative,
    so that large sums cancel; one weight that takes nearly the whole bound among ones; random signs and sizes. Levels:
    the largest in every other image, else random.
    """
    random = np.random.default_rng(seed)
    fan_in, features = int(np.prod(kernel_shape[:3])), kernel_shape[-1]
    largest = EXACT // max_level  # Σ|W|
    most = 256 if operand_type == "bfloat16" else largest
    each = min(max(largest // fan_in, 1), most)
    odd = each - 1 + each % 2
    kinds = [
        np.full(fan_in, odd),
        np.where(np.arange(fan_in) < fan_in // 2, odd, -odd),
        np.where(np.arange(fan_in) == fan_in // 2, min(largest - fan_in, most), 1),
        random.integers(-each, each + 1, fan_in),
    ]
    weights = np.stack([random.permutation(kinds[i % 4]) if i >= 4 else kinds[i] for i in range(features)], -1)
    levels = random.integers(0, max_level + 1, images_shape)
    levels[::2] = max_level
    return levels.astype(np.float64), weights.reshape(kernel_shape).astype(np.float64)


def exact_sums(x, weights, stride: int):
    """The convolution in float64, a matrix product a tap: exact below `2^53`."""
    size = weights.shape[0]
    pad, (height, width) = size // 2, (output_size(side, size, stride) for side in x.shape[1:3])
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = 0.0
    for row, column in itertools.product(range(size), repeat=2):
        rows, columns = (slice(i, i + (n - 1) * stride + 1, stride) for i, n in ((row, height), (column, width)))
        total = total + padded[:, rows, columns] @ weights[row, column]
    return total


def proves(convolution, images_shape, kernel_shape, stride: int, max_level: int, operand_type: str) -> bool:
    """Whether a convolution gives the exact sums.

    Args:
        convolution: `(x, weights) -> float32`, operands of the operand type.
        images_shape, kernel_shape, stride: of one group.
        max_level: `L` of what arrives.
        operand_type: `"float32"` or `"bfloat16"`.

    >>> from ge2mst_jax.nn.maps import by_taps
    >>> proves(lambda x, w: by_taps(x, w, 1, "highest"), (2, 4, 4, 8), (3, 3, 8, 4), 1, 6, "float32")
    True
    >>> proves(lambda x, w: by_taps(x + 2.0**-12, w, 1, "highest"), (2, 4, 4, 8), (3, 3, 8, 4), 1, 6, "float32")
    False
    """
    x, weights = adversarial((min(FEW, images_shape[0]), *images_shape[1:]), kernel_shape, max_level, operand_type)
    repeats = -(-images_shape[0] // len(x))
    batch = np.tile(x, (repeats, 1, 1, 1))[: images_shape[0]]
    found = np.asarray(convolution(*(jnp.asarray(a, operand_type) for a in (batch, weights))), np.float64)
    expected = exact_sums(x, weights, stride)
    return bool((found == np.tile(expected, (repeats, 1, 1, 1))[: images_shape[0]]).all())


def is_plain(backend: str, images_shape, kernel_shape, stride: int, max_level: int, operand_type: str) -> bool:
    """Whether this backend's convolution of these shapes may stand for a sum of products; tried once a process.

    False for a backend that is not here, and for images of unknown number: their program is exported, to run where
    nothing was tried.
    """
    if backend != jax.default_backend() or not isinstance(images_shape[0], int):
        return False
    images = FEW if backend == "cpu" else images_shape[0]
    return _tried((images, *images_shape[1:]), tuple(kernel_shape), stride, max_level, operand_type)


@functools.cache
def _tried(images_shape, kernel_shape, stride, max_level, operand_type) -> bool:
    shapes = [jax.ShapeDtypeStruct(shape, operand_type) for shape in (images_shape, kernel_shape)]
    # Compiled ahead: the caller may be in the middle of tracing a network.
    compiled = jax.jit(lambda x, weights: convolve(x, weights, stride, jnp.float32, "highest")).lower(*shapes).compile()
    with jax.ensure_compile_time_eval():
        return proves(compiled, images_shape, kernel_shape, stride, max_level, operand_type)
