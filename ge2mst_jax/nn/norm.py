"""BatchNorm whose backward pass keeps its input and nothing else of that size."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.spiking.operands import not_before

MOMENTUM, EPSILON = 0.9, 1e-5


@jax.custom_vjp
def normalize(x, scale, bias):
    """`y = γ(x - μ)/√(σ² + ε) + β`, with `μ` and `σ²` of all axes but the last.

    The gradient is the closed form, `∂x = γ/√(σ² + ε)·(g - mean(g) - x̂·mean(g·x̂))`; it is computed from `x`, which is
    all that the backward pass keeps. What traced derivatives keep is `x` and `x - μ`.

    Args:
        x: `[..., C]` float32.
        scale, bias: `γ`, `β`, `[C]`.

    Returns:
        `(y, μ, σ²)`; no gradient passes through the last two.

    >>> normalize(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1))[0].ravel().round(3)
    Array([-1.,  1.], dtype=float32)
    """
    mean, variance = statistics(x)
    return affine(x, mean, variance, scale, bias), mean, variance


def statistics(x):
    """Mean and variance of all axes but the last, `σ² = mean(x²) - μ²`, not below 0: one pass over `x`."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


def affine(x, mean, variance, scale, bias):
    """`γ(x - μ)/√(σ² + ε) + β`."""
    mean, gain, bias = (a.reshape((1,) * (x.ndim - 1) + a.shape) for a in (mean, _gain(variance, scale), bias))
    return (x - mean) * gain + bias


def _gain(variance, scale):
    return scale * jax.lax.rsqrt(variance + EPSILON)


def _forward(x, scale, bias):
    y, mean, variance = normalize(x, scale, bias)
    return (y, mean, variance), (x, mean, variance, scale)


def _backward(kept, gradients):
    (x, mean, variance, scale), gradient = not_before(gradients[0], kept)
    axes = tuple(range(x.ndim - 1))
    hat = affine(x, mean, variance, jnp.ones_like(scale), jnp.zeros_like(scale))
    to_bias, to_scale = jnp.sum(gradient, axes), jnp.sum(gradient * hat, axes)
    count = x.size // x.shape[-1]
    rows = [a.reshape((1,) * len(axes) + a.shape) for a in (to_bias / count, to_scale / count, _gain(variance, scale))]
    return rows[2] * (gradient - rows[0] - hat * rows[1]), to_scale, to_bias


normalize.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """`normalize` in training, and with the averages of its statistics, `0.9·old + 0.1·new`, in evaluation.

    Parameters `scale`, `bias`; collection `batch_stats`: `mean`, `var`. Under `jit` the statistics are those of the
    whole batch, over all devices.

    Call: `(x [..., C] float32, train) -> [..., C]`.
    """

    @nn.compact
    def __call__(self, x, train: bool):
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            return affine(x, mean.value, variance.value, scale, bias)
        y, *found = normalize(x, scale, bias)
        if not self.is_initializing():
            for average, new in zip((mean, variance), found, strict=True):
                average.value = MOMENTUM * average.value + (1 - MOMENTUM) * jax.lax.stop_gradient(new)
        return y
