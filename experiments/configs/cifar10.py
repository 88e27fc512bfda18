"""CIFAR-10 (50,000 training images of 32x32), ge2mst_cifar.

    python experiments/prepare_data.py cifar10 --data-dir DIR
    python experiments/train.py cifar10 --data-dir DIR

A short run, to see that all is well:

    python experiments/train.py cifar10 --data tfds:cifar10 --data-dir DIR --batch-size 64 --steps 100
        --warmup-epochs 0.01 --run-dir runs/cifar10_short

Hardware: one GPU or one TPU host. Global batch 512; lr = 6e-4 · batch/256, cosine to 1 %, 5 epochs of warm-up. Mixup of
0.5, as the peers have it (QKFormer, SDT-V1, SpikingResformer).
Expected: time and number not yet run. Peers without pre-training report 95.5 % to 97.2 % at 4 time steps.
"""

from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.train import TrainConfig

CONFIG = TrainConfig(
    data="tfds:cifar10",
    prefetch=4,
    augment=AugmentConfig(
        crop_padding=4, flip=True, randaugment_magnitude=9.0, randaugment_layers=1, erasing=0.25, mixup=0.5
    ),
    model="ge2mst_cifar",
    drop_path=0.05,
    epochs=200.0,
    batch_size=512,
    base_learning_rate=6e-4,
    warmup_epochs=5.0,
    weight_decay=0.05,
    label_smoothing=0.1,
    ema_decay=0.999,  # about 10 epochs
    clip_norm=1.0,
)
