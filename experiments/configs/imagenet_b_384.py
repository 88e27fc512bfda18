"""ImageNet-1k, ge2mst_b fine-tuned at 384x384 from imagenet_b.

    python experiments/prepare_data.py imagenet2012 --data-dir DIR
    python experiments/train.py imagenet_b_384 --data-dir DIR --init-from runs/imagenet_b

after imagenet_b. On several hosts: experiments/launch/tpu_vm.sh or gke_xpk.sh, see docs/tpu.md.

At 384 the attention stages have 24x24 and 12x12 tokens, which rows and columns of 7 do not divide: those of 6 do, and
are the nearest in size to those that the network learnt with. Groups have no parameters.

Hardware: a v5e slice of 32 chips or more, or a node of 8 GPUs of 80 GB. Global batch 512, whatever the number of
devices (they must divide it); lr = 2e-5 · batch/256 (what SDT-V2 fine-tuned with), cosine to 1 %, 1 epoch of warm-up.
Blocks are computed anew in the backward pass. `workers` is for hosts of a hundred cores: less elsewhere.
Expected: time, memory and number not yet run. A peer reports 84.2 % at 224 and 85.7 % at 384 after such a fine-tuning
of about 10 epochs (QKFormer 10-768, 65 M parameters).
"""

from ge2mst_jax.data import AugmentConfig, DecodeConfig
from ge2mst_jax.train import TrainConfig

CONFIG = TrainConfig(
    data="tfds:imagenet2012",
    decode=DecodeConfig(
        image_size=384,
        random_crop=True,
        min_area=0.08,
        flip=True,
        interpolation="bicubic",
        randaugment="rand-m9-mstd0.5-inc1",
    ),
    on_corrupt="skip",
    workers=32,
    prefetch=2,
    augment=AugmentConfig(erasing=0.25),
    model="ge2mst_b",
    scales=("block1x6", "grid6x1"),
    drop_path=0.1,
    remat="nothing_saveable",
    dtype="bfloat16",
    epochs=10.0,
    batch_size=512,
    base_learning_rate=2e-5,
    warmup_epochs=1.0,
    weight_decay=0.05,
    label_smoothing=0.1,
    ema_decay=0.999,
    clip_norm=1.0,
    mesh_data=-1,
    mesh_model=1,
    checkpoint_every_epochs=1.0,
    keep=3,
)
