"""Sources of images, batches and augmentation."""

from ge2mst_jax.data.batches import epoch_batches, random_shift
from ge2mst_jax.data.digits import Dataset, load_digits

__all__ = ["Dataset", "epoch_batches", "load_digits", "random_shift"]
