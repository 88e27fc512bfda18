"""CIFAR-100 (50,000 training images of 32x32), ge2mst_cifar.

    python experiments/prepare_data.py cifar100 --data-dir DIR
    python experiments/train.py cifar100 --data-dir DIR

Hardware: one GPU or one TPU host. Global batch 512; lr = 6e-4 · batch/256, cosine to 1 %, 5 epochs of warm-up. The
recipe of cifar10, with more mixing: 500 images a class are few.
Expected: time and number not yet run. Peers without pre-training report 78.2 % to 83.1 % at 4 time steps.
"""

from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.train import TrainConfig

CONFIG = TrainConfig(
    data="tfds:cifar100",
    prefetch=4,
    augment=AugmentConfig(
        crop_padding=4, flip=True, randaugment_magnitude=9.0, randaugment_layers=1, erasing=0.25, mixup=0.5, cutmix=1.0
    ),
    model="ge2mst_cifar",
    drop_path=0.1,
    epochs=200.0,
    batch_size=512,
    base_learning_rate=6e-4,
    warmup_epochs=5.0,
    weight_decay=0.05,
    label_smoothing=0.1,
    ema_decay=0.999,  # about 10 epochs
    clip_norm=1.0,
)
