"""Augmentation of a batch on the device: written for one image, `vmap`ped over the batch, from one key."""

import dataclasses

import chex
import dm_pix as pix
import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_flag, check_number, check_whole
from ge2mst_jax.data.randaugment import rand_augment


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to training images on the device; nothing by default.

    RandAugment is here for small images in memory; those that are decoded get it on the host (`DecodeConfig`).

    >>> AugmentConfig(crop_padding=4, flip=True).mixes
    False
    """

    crop_padding: int = 0
    """Random shift by up to this many pixels in each direction, zeros moving in."""
    flip: bool = False
    """Mirror left and right every other time."""
    randaugment_magnitude: float = 0.0
    """Strength of RandAugment's operations, 0 (off) to 10."""
    randaugment_deviation: float = 0.5
    """Standard deviation of that strength."""
    randaugment_layers: int = 2
    """RandAugment's operations in a row."""
    randaugment_probability: float = 0.5
    """With which each of them is applied."""
    erasing: float = 0.0
    """Probability that a random rectangle (2 % to a third of the image) is filled with noise."""
    mixup: float = 0.0
    """Mixup's alpha, of Beta(alpha, alpha); 0 is off. With cutmix too, each image gets one of them."""
    cutmix: float = 0.0
    """CutMix's alpha; 0 is off."""

    def __post_init__(self):
        for name, high in (
            ("randaugment_magnitude", 10), ("randaugment_deviation", 10), ("randaugment_probability", 1),
            ("erasing", 1), ("mixup", 1000), ("cutmix", 1000),
        ):  # fmt: skip
            check_number(name, getattr(self, name), 0, high)
        check_whole("crop_padding", self.crop_padding, 0, 8192)
        check_whole("randaugment_layers", self.randaugment_layers, 1, 16)
        check_flag("flip", self.flip)

    @property
    def mixes(self) -> bool:
        """Whether images, and their targets, are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def keeps_bytes(self) -> bool:
        """Whether images stay uint8: whole pixels move, none changes."""
        return not (self.mixes or self.randaugment_magnitude or self.erasing)


def augment(key, images, labels, num_classes: int, config: AugmentConfig):
    """Augments a batch.

    In this order: shift, flip, RandAugment, erasing, mixup or CutMix. What happens to an image depends on the key and
    its place in the batch (and, where images are mixed, on its neighbour).

    Args:
        key: of this step, such as `fold_in(key, step)`.
        images: `[B, H, W, C]` uint8.
        labels: `[B]` int32, below `num_classes`.
        num_classes: of the targets, `>= 1`.
        config: static under `jit`.

    Returns:
        Images `[B, H, W, C]`, uint8 where `config.keeps_bytes`, else float32 in [0, 1] (`round(255·x)` is what the
        network reads); targets `[B, num_classes]` float32, which sum to 1.

    >>> images, targets = augment(jax.random.key(0), jnp.ones((2, 4, 4, 3), jnp.uint8), jnp.array([0, 1]), 2,
    ...                           AugmentConfig())
    >>> images.dtype.name, targets.tolist()
    ('uint8', [[1.0, 0.0], [0.0, 1.0]])
    """
    chex.assert_rank([images, labels], [4, 1])
    chex.assert_type([images, labels], [jnp.uint8, int])
    chex.assert_equal_shape_prefix([images, labels], 1)
    check_whole("num_classes", num_classes, 1, 2**20)
    targets = jax.nn.one_hot(labels, num_classes)
    image_keys, mix_keys = jax.random.split(key, (2, len(images)))
    if config != AugmentConfig():
        images = jax.vmap(lambda key, image: augment_image(key, image, config))(image_keys, images)
    if config.mixes:
        others = [jnp.roll(x, 1, axis=0) for x in (images, targets)]  # a neighbour: little travels between devices
        mix = jax.vmap(lambda key, *pair: mix_images(key, *pair, config))
        images, targets = mix(mix_keys, images, targets, *others)
    return images, targets


def augment_image(key, image, config: AugmentConfig):
    """What happens to one image alone, `[H, W, C]` uint8."""
    crop_key, flip_key, rand_key, erase_key = jax.random.split(key, 4)
    if config.crop_padding:
        pad = (config.crop_padding, config.crop_padding)
        image = pix.random_crop(crop_key, jnp.pad(image, (pad, pad, (0, 0))), image.shape)
    if config.flip:
        image = pix.random_flip_left_right(flip_key, image)
    if config.keeps_bytes:
        return image
    image = image.astype(jnp.float32) / 255
    if config.randaugment_magnitude:
        image = rand_augment(
            rand_key, image, config.randaugment_layers, config.randaugment_magnitude, config.randaugment_deviation,
            config.randaugment_probability,
        )  # fmt: skip
    if config.erasing:
        image = erase(erase_key, image, config.erasing)
    return image


def box_mask(height: int, width: int, centre, box_height, box_width):
    """`[H, W, 1]` bool: the pixels of a box around `centre` (row, column), cut off at the border.

    >>> box_mask(3, 4, (1.5, 2.0), 1, 2).astype(int)[..., 0]
    Array([[0, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]], dtype=int32)
    """
    rows = jnp.abs(jnp.arange(height) + 0.5 - centre[0]) < box_height / 2
    columns = jnp.abs(jnp.arange(width) + 0.5 - centre[1]) < box_width / 2
    return (rows[:, None] & columns[None, :])[..., None]


def erase(key, image, probability: float):
    """With a probability, uniform noise in a box of 2 % to a third of the image, its sides 0.3 to 3.3.

    Source: Z. Zhong et al., "Random erasing data augmentation", 2020.
    """
    height, width, _ = image.shape
    draw_key, noise_key = jax.random.split(key)
    draws = jax.random.uniform(draw_key, (5,))
    area = (0.02 + (1 / 3 - 0.02) * draws[0]) * height * width
    ratio = 0.3 * (3.3 / 0.3) ** draws[1]
    box = jnp.minimum(jnp.sqrt(area * ratio), height), jnp.minimum(jnp.sqrt(area / ratio), width)
    centre = [
        side / 2 + draw * (whole - side) for side, draw, whole in zip(box, draws[2:4], (height, width), strict=True)
    ]  # anywhere in the image, as a whole
    mask = box_mask(height, width, centre, *box) & (draws[4] < probability)
    return jnp.where(mask, jax.random.uniform(noise_key, image.shape), image)


def mix_images(key, image, target, other_image, other_target, config: AugmentConfig):
    """One image mixed with another: mixup blends them, CutMix pastes a box; the targets mix in the same proportion.

    Source: H. Zhang et al., "mixup", 2018; S. Yun et al., "CutMix", 2019.
    """
    height, width, _ = image.shape
    draw_key, share_key = jax.random.split(key)
    draws = jax.random.uniform(draw_key, (3,))
    cut = draws[0] < 0.5 if config.mixup and config.cutmix else jnp.asarray(config.cutmix > 0)
    alpha = jnp.where(cut, config.cutmix or 1.0, config.mixup or 1.0)
    share = jax.random.beta(share_key, alpha, alpha)
    side = jnp.sqrt(1 - share)
    mask = box_mask(height, width, (draws[1] * height, draws[2] * width), side * height, side * width)
    share = jnp.where(cut, 1 - jnp.mean(mask), share)
    mixed = jnp.where(cut, jnp.where(mask, other_image, image), share * image + (1 - share) * other_image)
    return mixed, share * target + (1 - share) * other_target
