"""Linear maps of images as pure functions: what a synaptic layer does to levels or to one step's spikes."""

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.spiking import align


def output_size(size: int, kernel: int, stride: int) -> int:
    """Positions along one side: padding is `k//2` on both sides, so `⌊(n + 2⌊k/2⌋ - k)/stride⌋ + 1`.

    >>> output_size(28, 3, 2), output_size(7, 3, 2)
    (14, 4)
    """
    return (size + 2 * (kernel // 2) - kernel) // stride + 1


def fan_out(height: int, width: int, kernel: int, stride: int) -> np.ndarray:
    """`[H, W]` int64: how many output positions each input position reaches, borders and strides included.

    >>> fan_out(3, 3, 3, 1).tolist()
    [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    """

    def along(size):
        outputs = np.arange(output_size(size, kernel, stride)) * stride - kernel // 2
        reached = outputs[:, None] + np.arange(kernel)  # [outputs, taps] input index of each tap
        return np.bincount(reached[(reached >= 0) & (reached < size)], minlength=size)

    return np.outer(along(height), along(width))


def conv2d(x, kernel, stride: int = 1, *, exact: bool = False):
    """2-D convolution with `k//2` zeros of padding; the number of groups follows from the shapes.

    `exact` (deployed networks) computes nothing but plain sums of products in float32: one matrix product
    a kernel tap, at the highest precision, so that no backend can put a Winograd or FFT convolution in their
    place. Grouped maps always go tap by tap and depth-wise ones as shifted multiply-adds: on the CPU
    XLA's own are tens of times slower.

    Args:
        x: `[B, H, W, C_in]`.
        kernel: `[k, k, C_in/groups, C_out]`.
        stride: of both axes.
        exact: see above.

    Returns:
        `[B, H', W', C_out]` float32.

    >>> conv2d(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0]
    Array([[4., 4.],
           [4., 4.]], dtype=float32)
    """
    size, fan_in = kernel.shape[0], kernel.shape[2]
    groups = x.shape[-1] // fan_in
    pad = size // 2
    if groups == 1 and not exact:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )
    height, width = (output_size(side, size, stride) for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x
    total = None
    for row in range(size):
        for column in range(size):
            window = padded[
                :,
                row : row + (height - 1) * stride + 1 : stride,
                column : column + (width - 1) * stride + 1 : stride,
            ]
            tap = _tap(window, kernel[row, column], groups, "highest" if exact else None)
            total = tap if total is None else total + tap
    return total


def _tap(x, weights, groups, precision):
    """One kernel tap: `x [B, H, W, C_in]`, `weights [C_in/groups, C_out]`."""
    fan_in, features = weights.shape
    if groups == x.shape[-1] == features:
        return (x * align(weights[0], x)).astype(jnp.float32)
    if groups == 1:
        return jnp.einsum("bhwi,io->bhwo", x, weights, precision=precision, preferred_element_type=jnp.float32)
    x = x.reshape(*x.shape[:-1], groups, fan_in)  # [B, H, W, g, i]
    weights = weights.reshape(fan_in, groups, -1)  # [i, g, o]
    out = jnp.einsum("bhwgi,igo->bhwgo", x, weights, precision=precision, preferred_element_type=jnp.float32)
    return out.reshape(*out.shape[:3], features)  # [B, H, W, C_out]
