"""Handwritten digits of scikit-learn (1,437 training images of 8x8), ge2mst_nano.

    python experiments/train.py digits

Hardware: 2 CPU cores. Global batch 64; lr = 0.016 · batch/256, cosine to 1 %, 1 epoch of warm-up.
Expected: about 1 minute; numbers in docs/results.md.
"""

from ge2mst_jax.train import TrainConfig

CONFIG = TrainConfig(data="digits", eval_every_epochs=6.0)
