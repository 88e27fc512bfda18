"""Imagenette (ten classes of ImageNet, some 9,500 training images), ge2mst_s at 224x224.

    python experiments/prepare_data.py imagenette/320px-v2 --data-dir DIR
    python experiments/train.py imagenette --data-dir DIR

or from DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, which may also hold only a part of the images for a short run:

    python experiments/train.py imagenette --data folder:DIR
    python experiments/train.py imagenette --data folder:DIR --batch-size 32 --steps 50 --warmup-epochs 0
        --run-dir runs/imagenette_short

Hardware: one GPU or one TPU host (on a CPU add `--dtype float32`). Global batch 128; lr = 6e-4 · batch/256, cosine to
1 %, 5 epochs of warm-up.
Expected: time and number not yet run.
"""

from ge2mst_jax.data import AugmentConfig, DecodeConfig
from ge2mst_jax.train import TrainConfig

CONFIG = TrainConfig(
    data="tfds:imagenette/320px-v2",
    decode=DecodeConfig(
        image_size=224,
        random_crop=True,
        min_area=0.25,
        flip=True,
        interpolation="bicubic",
        randaugment="rand-m9-mstd0.5-inc1",
    ),
    workers=8,
    prefetch=2,
    augment=AugmentConfig(erasing=0.25),
    model="ge2mst_s",
    drop_path=0.05,
    dtype="bfloat16",
    epochs=200.0,
    batch_size=128,
    base_learning_rate=6e-4,
    warmup_epochs=5.0,
    weight_decay=0.05,
    label_smoothing=0.1,
    ema_decay=0.999,  # about 14 epochs
    clip_norm=1.0,
    checkpoint_every_epochs=10.0,
)
