"""Linear maps of images as pure functions: what a synaptic layer does to levels or to one step's spikes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.checks import check_whole
from ge2mst_jax.spiking import align
from ge2mst_jax.spiking.operands import as_numbers


def check_kernel(kernel: int, stride: int = 1) -> None:
    """Refuses a kernel without a centre, and a stride that goes nowhere.

    Raises:
        ValueError: names which.

    >>> check_kernel(4)
    Traceback (most recent call last):
    ValueError: kernel is 4: its side must be odd
    """
    if check_whole("kernel", kernel, 1, 255) % 2 == 0:
        raise ValueError(f"kernel is {kernel}: its side must be odd")
    check_whole("stride", stride, 1, 255)


def output_size(size: int, kernel: int, stride: int) -> int:
    """Positions along one side: padding is `k//2` on both sides, so `⌊(n + 2⌊k/2⌋ - k)/stride⌋ + 1`.

    >>> output_size(28, 3, 2), output_size(7, 3, 2)
    (14, 4)
    """
    check_kernel(kernel, stride)
    return (check_whole("size", size, 1, 2**20) + 2 * (kernel // 2) - kernel) // stride + 1


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


def conv2d(x, kernel, stride: int = 1):
    """2-D convolution with `k//2` zeros of padding; the number of groups follows from the shapes.

    A grouped map is a dense one for each group, and a depth-wise map is shifted multiply-adds that the backward pass
    computes anew: on the CPU XLA's own grouped convolution is tens of times slower.

    Args:
        x: `[B, H, W, C_in]`.
        kernel: `[k, k, C_in/groups, C_out]`.
        stride: of both axes.

    Returns:
        `[B, H', W', C_out]` float32.

    Raises:
        ValueError: ranks, an even kernel, or groups that do not divide the channels.

    >>> conv2d(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0]
    Array([[4., 4.],
           [4., 4.]], dtype=float32)
    """
    x, kernel = as_numbers("images", x), as_numbers("kernel", kernel)
    groups = check_shapes(x, kernel, stride)
    features = kernel.shape[-1]
    if groups == x.shape[-1] == features:
        return _depthwise(x, kernel) if stride == 1 else by_taps(x, kernel, stride)
    of_group = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    convolved = [_dense(*operands, stride) for operands in of_group]
    return jnp.concatenate(convolved, -1) if groups > 1 else convolved[0]


def check_shapes(x, kernel, stride) -> int:
    """The number of groups, or a `ValueError`."""
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"images of shape {tuple(x.shape)} and a kernel of shape {tuple(kernel.shape)}: they must be "
            "[B, H, W, C_in] and [k, k, C_in/groups, C_out]"
        )
    check_kernel(kernel.shape[0], stride)
    channels, (fan_in, features) = x.shape[-1], kernel.shape[2:]
    if not fan_in or channels % fan_in or features % (channels // fan_in):
        raise ValueError(f"groups of {fan_in} channels do not divide {channels} input and {features} output channels")
    return channels // fan_in


def convolve(x, kernel, stride, out_type, precision=None):
    """The backend's own convolution, one group."""
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
        preferred_element_type=out_type,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x, kernel, stride):
    return convolve(x, kernel, stride, jnp.float32)


def _dense_backward(stride, kept, gradient):
    # JAX cannot transpose a convolution whose result is wider than its operands: the backward pass has theirs.
    _, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, None), *kept)
    return pull(gradient.astype(kept[0].dtype))


_dense.defvjp(lambda x, kernel, stride: (_dense(x, kernel, stride), (x, kernel)), _dense_backward)


@jax.custom_vjp
def _depthwise(x, kernel):
    return by_taps(x, kernel, 1)


def _depthwise_backward(kept, gradient):
    # Both from views of the gradient, at hand only now: views of `x` would be kept from the forward pass on.
    x, kernel = kept
    gradient = gradient.astype(x.dtype)
    views = [view.astype(jnp.float32) for view in views(gradient, kernel.shape[0], 1)]
    to_kernel = jnp.stack([jnp.sum(x.astype(jnp.float32) * view, (0, 1, 2)) for view in reversed(views)])
    to_x = by_taps(gradient, kernel[::-1, ::-1], 1)
    return to_x.astype(x.dtype), to_kernel.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(lambda x, kernel: (_depthwise(x, kernel), (x, kernel)), _depthwise_backward)


def by_taps(x, kernel, stride, precision=None):
    """The sum over kernel taps, each a shifted view of the padded image times the tap's weights.

    Depth-wise integers stay integers; everything else is added up in float32.
    """
    groups, total = x.shape[-1] // kernel.shape[2], None
    taps = kernel.reshape(-1, *kernel.shape[2:])  # [k·k, C_in/groups, C_out]
    for view, weights in zip(views(x, kernel.shape[0], stride), taps, strict=True):
        tap = _tap(view, weights, groups, precision)
        total = tap if total is None else total + tap
    return total


def views(x, size, stride):
    """What each kernel tap sees of a padded image, row by row: `size²` arrays `[B, H', W', C]`."""
    pad = size // 2
    height, width = (output_size(side, size, stride) for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else x
    for row in range(size):
        for column in range(size):
            yield padded[
                :,
                row : row + (height - 1) * stride + 1 : stride,
                column : column + (width - 1) * stride + 1 : stride,
            ]


def _tap(x, weights, groups, precision):
    """One kernel tap: `x [B, H, W, C_in]`, `weights [C_in/groups, C_out]`."""
    fan_in, features = weights.shape
    if groups == x.shape[-1] == features:
        kind = jnp.promote_types(x.dtype, weights.dtype)
        kind = jnp.int32 if jnp.issubdtype(kind, jnp.integer) else jnp.float32
        return x.astype(kind) * align(weights[0], x).astype(kind)
    if groups == 1:
        return jnp.einsum("bhwi,io->bhwo", x, weights, precision=precision, preferred_element_type=jnp.float32)
    x = x.reshape(*x.shape[:-1], groups, fan_in)  # [B, H, W, g, i]
    weights = weights.reshape(fan_in, groups, -1)  # [i, g, o]
    out = jnp.einsum("bhwgi,igo->bhwgo", x, weights, precision=precision, preferred_element_type=jnp.float32)
    return out.reshape(*out.shape[:3], features)  # [B, H, W, C_out]
