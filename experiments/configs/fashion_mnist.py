"""Fashion-MNIST (60,000 training images of 28x28), ge2mst_nano.

    python experiments/train.py fashion_mnist --data idx:/usr/share/datasets/fashion-mnist

where the Debian package dataset-fashion-mnist puts its files; or `--data tfds:fashion_mnist --data-dir DIR` after
`python experiments/prepare_data.py fashion_mnist --data-dir DIR`.

Hardware: 2 CPU cores. Global batch 64; lr = 0.016 · batch/256, cosine to 1 %, 0.5 epochs of warm-up.
Expected: about 25 minutes; the number is in docs/results.md.
"""

from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.train import TrainConfig

CONFIG = TrainConfig(
    data="idx:/usr/share/datasets/fashion-mnist",
    batch_size=64,
    base_learning_rate=0.016,
    epochs=5.0,
    warmup_epochs=0.5,
    weight_decay=0.05,
    label_smoothing=0.05,
    ema_decay=0.998,
    augment=AugmentConfig(flip=True),
)
