"""ImageNet-1k (1,281,167 training images), ge2mst_l (64.5 M parameters) at 224x224.

    python experiments/prepare_data.py imagenet2012 --data-dir DIR
    python experiments/train.py imagenet_l --data-dir DIR

On several hosts: experiments/launch/tpu_vm.sh or gke_xpk.sh, see docs/tpu.md. ImageNet's archives must lie in
DIR/downloads/manual before it is prepared.

Hardware: a v5e slice of 32 chips or more, or a node of 8 GPUs of 80 GB. Global batch 1024, whatever the number of
devices (they must divide it); lr = 3e-4 · batch/256, cosine to 1 %, 5 epochs of warm-up: the usual 6e-4 would make the
peak 2.4e-3, twice what a peer of this size used (QKFormer 10-768: 1.2e-3). Blocks are computed anew in the backward
pass. `workers` is for hosts of a hundred cores: less elsewhere.
Expected: time, memory and number not yet run. Peers of about this size report 74.8 % (Spikformer 8-768) to 84.2 %
(QKFormer 10-768) at 4 time steps.
"""

from ge2mst_jax.data import AugmentConfig, DecodeConfig
from ge2mst_jax.train import TrainConfig

CONFIG = TrainConfig(
    data="tfds:imagenet2012",
    decode=DecodeConfig(
        image_size=224,
        random_crop=True,
        min_area=0.08,
        flip=True,
        interpolation="bicubic",
        randaugment="rand-m9-mstd0.5-inc1",
    ),
    on_corrupt="skip",
    workers=32,
    prefetch=2,
    augment=AugmentConfig(erasing=0.25, mixup=0.8, cutmix=1.0),
    model="ge2mst_l",
    drop_path=0.2,
    remat="nothing_saveable",
    dtype="bfloat16",
    epochs=200.0,
    batch_size=1024,
    base_learning_rate=3e-4,
    warmup_epochs=5.0,
    weight_decay=0.05,
    label_smoothing=0.1,
    ema_decay=0.9999,  # about 8 epochs
    clip_norm=1.0,
    mesh_data=-1,
    mesh_model=1,
    checkpoint_every_epochs=1.0,
    keep=3,
)
