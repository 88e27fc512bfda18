"""Images as networks take them: uint8, or float in [0, 1]; whole pixels 0..255 inside."""

import jax
import jax.numpy as jnp


NO_SUM = -(2**31)


def check_images(images, image_shape=None) -> None:
    """Refuses what is no batch of images, as far as it can be told: shape and dtype always, values outside of `jit`.

    Args:
        images: `[B, H, W, C]`, uint8, or float in [0, 1] (beyond it by less than half a pixel level is rounding).
        image_shape: `(H, W, C)` that they must have, if given.

    Raises:
        ValueError: names the shape, dtype or range found.

    >>> check_images(jnp.zeros((1, 8, 8, 3), jnp.int32))
    Traceback (most recent call last):
    ValueError: images of dtype int32: they must be uint8, or float in [0, 1]
    """
    if not hasattr(images, "dtype") or not hasattr(images, "shape"):
        raise ValueError(f"images are a {type(images).__name__}: they must be an array [B, H, W, C]")
    expected = "B, H, W, C" if image_shape is None else f"B, {', '.join(map(str, image_shape))}"
    if len(images.shape) != 4 or image_shape not in (None, tuple(images.shape[1:])):
        raise ValueError(f"images of shape {tuple(images.shape)}: this network takes [{expected}]")
    check_pixels(images)


def check_pixels(images) -> None:
    """Refuses numbers that are no pixels: another dtype, or, where values are known, out of range.

    >>> check_pixels(jnp.array([0.5, 1.5]))
    Traceback (most recent call last):
    ValueError: float images must be finite and in [0, 1]; these reach from 0.5 to 1.5
    """
    if images.dtype == jnp.uint8:
        return
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images of dtype {images.dtype}: they must be uint8, or float in [0, 1]")
    if not isinstance(images, jax.core.Tracer) and not bool(jnp.all(_in_range(jnp.asarray(images)))):
        low, high = float(jnp.min(images)), float(jnp.max(images))
        raise ValueError(f"float images must be finite and in [0, 1]; these reach from {low:g} to {high:g}")


def in_range(images):
    """Which images of a batch hold nothing but pixels, `[B]` bool: `round(255·x)` of floats is 0..255.

    >>> in_range(jnp.array([[0.0, 1.0], [0.0, 1.1], [jnp.nan, 0.0]])).tolist()
    [True, False, False]
    """
    if images.dtype == jnp.uint8:
        return jnp.ones(len(images), bool)
    return jnp.all(_in_range(images), tuple(range(1, images.ndim)))


def _in_range(images):
    scaled = jnp.round(images.astype(jnp.float32) * 255.0)
    return (scaled >= 0) & (scaled <= 255)


def pixels(images):
    """`p = round(255·x)` of float images in [0, 1]; uint8 images as they are. Returns float32 integers 0..255.

    Raises:
        ValueError: as `check_pixels`; where `jit` hides the values, those out of range become the nearest pixel, and
            the network's answer nan.

    >>> pixels(jnp.array([0.0, 0.5, 1.0]))
    Array([  0., 128., 255.], dtype=float32)
    """
    check_pixels(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32)
    return jnp.clip(jnp.round(images.astype(jnp.float32) * 255.0), 0.0, 255.0)


def refuse_others(logits, images):
    """Logits, nan for images out of range: under `jit` no error can be raised, and no wrong number may come out.

    Integer sums are `NO_SUM` there, which no sum of a deployed network reaches.

    >>> refuse_others(jnp.ones((2, 1)), jnp.array([[0.0], [7.0]])).tolist()
    [[1.0], [nan]]
    """
    if images.dtype == jnp.uint8:
        return logits
    none = NO_SUM if jnp.issubdtype(logits.dtype, jnp.integer) else jnp.nan
    return jnp.where(in_range(images)[:, None], logits, none)
