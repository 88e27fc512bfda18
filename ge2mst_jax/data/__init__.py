"""Sources of labelled images, batches read through Grain, decoding, augmentation, prefetching to devices."""

from ge2mst_jax.data.augment import AugmentConfig, augment
from ge2mst_jax.data.decode import CorruptImageError, DataError, DecodeConfig
from ge2mst_jax.data.digits import Dataset, load_digits
from ge2mst_jax.data.pipeline import eval_batches, train_batches
from ge2mst_jax.data.plan import BatchPlan
from ge2mst_jax.data.prefetch import local_part, prefetch_to_device
from ge2mst_jax.data.source import MemorySource, Source
from ge2mst_jax.data.sources import open_source

__all__ = [
    "AugmentConfig",
    "BatchPlan",
    "CorruptImageError",
    "DataError",
    "Dataset",
    "DecodeConfig",
    "MemorySource",
    "Source",
    "augment",
    "eval_batches",
    "load_digits",
    "local_part",
    "open_source",
    "prefetch_to_device",
    "train_batches",
]
