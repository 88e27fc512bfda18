"""Seeded batches from images in memory, and their augmentation on the device."""

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np


def epoch_batches(images, labels, batch_size: int, seed: int, epoch: int):
    """Whole batches of one epoch, in an order that depends on `(seed, epoch)` alone; the remainder is left out.

    Yields:
        `(images [B, H, W, C], labels [B])`.

    Raises:
        ValueError: fewer images than one batch.

    >>> len(list(epoch_batches(np.zeros((10, 2, 2, 1)), np.zeros(10), 4, seed=0, epoch=0)))
    2
    """
    if not 1 <= batch_size <= len(images):
        raise ValueError(f"batch_size is {batch_size}: it must be 1 to {len(images)}, the number of images")
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    for start in range(0, len(images) - batch_size + 1, batch_size):
        index = order[start : start + batch_size]
        yield images[index], labels[index]


def random_shift(key, images, pixels: int):
    """Moves every image by up to `pixels` in each direction, zeros moving in.

    Args:
        key: one PRNG key for the batch.
        images: `[B, H, W, C]`, any dtype.
        pixels: `>= 0`.

    >>> random_shift(jax.random.key(0), jnp.ones((2, 4, 4, 1)), 1).shape
    (2, 4, 4, 1)
    """
    if pixels == 0:
        return images
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
    keys = jax.random.split(key, len(images))
    return jax.vmap(lambda k, image: pix.random_crop(k, image, images.shape[1:]))(keys, padded)
