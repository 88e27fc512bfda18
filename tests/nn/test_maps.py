"""Linear maps against slow loops: convolution of every kind, fan-out and output sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax.nn import conv2d, fan_out, output_size

compiled = jax.jit(conv2d, static_argnames=("stride",))


def slow_conv(x, kernel, stride):
    """Sum over every connection really present, one at a time, in float64; padding is `k//2`."""
    batch, height, width, channels = x.shape
    size, _, fan_in, features = kernel.shape
    pad, per_group = size // 2, features // (channels // fan_in)
    rows, columns = ((side + 2 * pad - size) // stride + 1 for side in (height, width))
    out = np.zeros((batch, rows, columns, features))
    for y, x_, o in np.ndindex(rows, columns, features):
        first = (o // per_group) * fan_in
        for dy, dx in np.ndindex(size, size):
            row, column = y * stride + dy - pad, x_ * stride + dx - pad
            if 0 <= row < height and 0 <= column < width:
                arriving = x[:, row, column, first : first + fan_in].astype(np.float64)
                out[:, y, x_, o] += arriving @ kernel[dy, dx, :, o].astype(np.float64)
    return out


def fixed_point(*shape, bits=4, seed=0):
    """Multiples of `2^-bits` of both signs, so that sums of products are exact in any order."""
    return (np.random.default_rng(seed).integers(-64, 65, shape) / 2**bits).astype(np.float32)


KINDS = {  # (C_in, kernel side, C_in a group, C_out, stride, (H, W))
    "dense": (3, 3, 3, 4, 1, (4, 5)),
    "dense_strided": (3, 3, 3, 4, 2, (5, 4)),
    "stem_7x7_stride_4": (2, 7, 2, 3, 4, (9, 8)),
    "grouped": (4, 3, 2, 6, 1, (3, 4)),
    "grouped_strided": (6, 3, 2, 3, 2, (4, 5)),
    "depth_wise": (4, 3, 1, 4, 1, (4, 3)),
    "depth_wise_strided": (4, 3, 1, 4, 2, (5, 4)),
    "depth_wise_two_each": (3, 3, 1, 6, 1, (3, 3)),
    "1x1": (3, 1, 3, 5, 1, (2, 3)),
    "1x1_strided": (3, 1, 3, 5, 2, (3, 4)),
    "1x1_grouped": (4, 1, 2, 4, 1, (2, 2)),
    "one_channel": (1, 3, 1, 1, 1, (3, 3)),
    "one_position": (2, 3, 2, 2, 1, (1, 1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_convolution_is_the_loop_over_connections(kind):
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    x = np.random.default_rng(1).integers(0, 7, (2, *grid, channels)).astype(np.float32)
    kernel = fixed_point(size, size, fan_in, features)
    out = compiled(x, kernel, stride)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, slow_conv(x, kernel, stride))


@pytest.mark.parametrize("kind", ["dense", "grouped", "depth_wise"])
def test_sums_at_the_edge_of_float32_are_exact(kind):
    """Weights of 15 bits times levels up to 255, all sums below 2^24: not a bit may be lost."""
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    random = np.random.default_rng(2)
    x = random.integers(0, 256, (1, *grid, channels)).astype(np.float32)
    most = 2**24 // (255 * size * size * fan_in)
    kernel = random.integers(-most, most, (size, size, fan_in, features)).astype(np.float32)
    np.testing.assert_array_equal(compiled(x, kernel, stride), slow_conv(x, kernel, stride))


@pytest.mark.parametrize("convolve", [conv2d, compiled], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", ["dense", "grouped", "depth_wise", "1x1"])
def test_bfloat16_operands_give_float32_sums_of_their_exact_products(kind, convolve):
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    x = jnp.asarray(np.random.default_rng(1).integers(0, 7, (2, *grid, channels)), jnp.bfloat16)
    kernel = jnp.asarray(np.random.default_rng(0).integers(-128, 129, (size, size, fan_in, features)), jnp.bfloat16)
    out = convolve(x, kernel, stride)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, slow_conv(np.asarray(x, np.float32), np.asarray(kernel, np.float32), stride))


@pytest.mark.parametrize("kind", ["dense", "grouped_strided", "depth_wise"])
def test_gradients_are_those_of_the_loop(kind):
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    x, kernel = fixed_point(1, *grid, channels, seed=3), fixed_point(size, size, fan_in, features)
    rows, columns = (output_size(side, size, stride) for side in grid)
    towards = fixed_point(1, rows, columns, features, seed=4)

    def loss(x, kernel):
        return jnp.sum(towards * compiled(x, kernel, stride))

    def slow(x, kernel):
        return np.sum(towards * slow_conv(x, kernel, stride))

    to_x, to_kernel = jax.block_until_ready(jax.grad(loss, (0, 1))(x, kernel))  # which read what is changed below
    # The map is linear in each operand: the difference that 1 makes is the derivative.
    for gradient, operand in ((to_x, x), (to_kernel, kernel)):
        index = tuple(side // 2 for side in operand.shape)
        before = slow(x, kernel)
        operand[index] += 1
        assert gradient[index] == slow(x, kernel) - before != 0
        operand[index] -= 1


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (28, 3, 1, 28),
        (28, 3, 2, 14),
        (7, 3, 2, 4),
        (224, 7, 4, 56),
        (5, 1, 1, 5),
        (5, 1, 2, 3),
        (1, 3, 1, 1),
        (1, 7, 4, 1),
        (9, 7, 4, 3),
    ],
)
def test_output_size_is_the_number_of_positions(size, kernel, stride, expected):
    assert output_size(size, kernel, stride) == expected
    image, weights = jnp.zeros((1, size, 1, 1)), jnp.zeros((kernel, kernel, 1, 1))
    assert jax.eval_shape(functools.partial(conv2d, stride=stride), image, weights).shape[1] == expected


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (5, 4), (8, 7)])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_fan_out_counts_the_connections_of_each_position(grid, kernel, stride):
    height, width = grid
    reached = np.zeros(grid, int)
    for y in range(output_size(height, kernel, stride)):
        for x in range(output_size(width, kernel, stride)):
            for dy in range(kernel):
                for dx in range(kernel):
                    row, column = y * stride + dy - kernel // 2, x * stride + dx - kernel // 2
                    if 0 <= row < height and 0 <= column < width:
                        reached[row, column] += 1
    found = fan_out(height, width, kernel, stride)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, reached)


def test_fan_out_of_a_strided_map_is_uneven():
    # 4 positions, outputs at 0 and 2: position 1 is seen by both, 3 by the second alone.
    along = np.array([1, 2, 1, 1])
    np.testing.assert_array_equal(fan_out(4, 4, 3, 2), np.outer(along, along))
    np.testing.assert_array_equal(fan_out(3, 3, 1, 2), [[1, 0, 1], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize("kind", ["dense_strided", "grouped", "depth_wise_strided"])
def test_fan_out_is_what_one_spike_reaches(kind):
    channels, size, fan_in, features, stride, grid = KINDS[kind]
    one_spike_each = np.eye(np.prod(grid), dtype=np.float32).reshape(-1, *grid, 1).repeat(channels, 3)
    arrived = np.asarray(compiled(one_spike_each, np.ones((size, size, fan_in, features), np.float32), stride))
    reached = np.count_nonzero(arrived[..., 0], (1, 2)).reshape(grid)
    np.testing.assert_array_equal(fan_out(*grid, size, stride), reached)
