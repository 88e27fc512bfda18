"""Augmentation on the device: nothing where nothing is asked for, what is asked for where it is."""

import functools

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ge2mst_jax.data.augment import AugmentConfig, augment, box_mask, erase, mix_images
from ge2mst_jax.data.randaugment import COLOUR, GEOMETRIC, affine, apply_operation, geometry, operations

B, SIDE, CLASSES = 16, 12, 5
EVERYTHING = AugmentConfig(2, True, randaugment_magnitude=9.0, randaugment_layers=1, erasing=0.5, mixup=0.8, cutmix=1.0)

run = jax.jit(augment, static_argnames=("num_classes", "config"))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (B, SIDE, SIDE, 3), np.uint8), np.arange(B, dtype=np.int32) % CLASSES


def augmented(batch, config, seed=0):
    images, targets = run(jax.random.key(seed), *batch, CLASSES, config)
    return np.asarray(images), np.asarray(targets)


def test_off_means_off(batch):
    images, targets = augmented(batch, AugmentConfig())
    assert images.dtype == np.uint8 and np.array_equal(images, batch[0])
    assert np.array_equal(targets, np.eye(CLASSES, dtype=np.float32)[batch[1]])


def test_a_shift_moves_whole_pixels_in_every_direction(batch):
    config = AugmentConfig(crop_padding=2)
    assert config.keeps_bytes
    seen = set()
    for seed in range(4):
        images, _ = augmented(batch, config, seed)
        padded = np.pad(batch[0], ((0, 0), (2, 2), (2, 2), (0, 0)))
        for before, after in zip(padded, images, strict=True):
            places = [(y, x) for y in range(5) for x in range(5)]
            cuts = [np.array_equal(before[y : y + SIDE, x : x + SIDE], after) for y, x in places]
            assert sum(cuts) == 1
            seen.add(places[cuts.index(True)])
    assert len(seen) > 15


def test_a_flip_mirrors_about_half_of_the_images(batch):
    images, _ = augmented(batch, AugmentConfig(flip=True))
    kept = [np.array_equal(after, before) for before, after in zip(batch[0], images, strict=True)]
    turned = [np.array_equal(after, before[:, ::-1]) for before, after in zip(batch[0], images, strict=True)]
    assert all(a != b for a, b in zip(kept, turned, strict=True))
    assert 3 <= sum(turned) <= 13


def test_everything_at_once(batch):
    images, targets = augmented(batch, EVERYTHING)
    assert images.dtype == np.float32 and images.shape == batch[0].shape
    assert images.min() >= 0 and images.max() <= 1
    assert np.allclose(targets.sum(-1), 1, atol=1e-6) and targets.min() >= 0
    assert not np.array_equal(images, augmented(batch, EVERYTHING, seed=1)[0])
    assert np.array_equal(images, augmented(batch, EVERYTHING)[0])


def test_one_device_equals_eight(batch):
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    images, targets = run(jax.random.key(0), *jax.device_put(batch, sharding), CLASSES, EVERYTHING)
    assert images.sharding.spec == targets.sharding.spec == PartitionSpec("data")
    expected = augmented(batch, EVERYTHING)
    # Compiled for other shapes, a sum may be rounded otherwise: far less than the 1/255 of a pixel's level.
    assert np.abs(np.asarray(images) - expected[0]).max() < 1e-5
    assert np.abs(np.asarray(targets) - expected[1]).max() < 1e-6


def test_an_image_depends_on_no_batch_mate_but_its_neighbour(batch):
    images, labels = batch
    others = 255 - images
    others[7:9] = images[7:9]
    (one, one_targets), (two, two_targets) = augmented(batch, EVERYTHING), augmented((others, labels), EVERYTHING)
    assert np.array_equal(one[8], two[8]) and np.array_equal(one_targets, two_targets)
    assert not np.array_equal(one[9], two[9])


# RandAugment

apply = jax.jit(jax.vmap(apply_operation, in_axes=(None, 0, 0)))


def test_an_operation_of_no_strength_changes_nothing(batch):
    image = jnp.asarray(batch[0][0], jnp.float32) / 255
    names = operations(3)
    results = apply(image, jnp.arange(len(names)), jnp.zeros(len(names)))
    for name, result in zip(names, results, strict=True):
        if name != "autocontrast":
            assert np.abs(np.asarray(result - image)).max() < 2e-6, name


def test_every_operation_changes_the_image_within_its_range(batch):
    image = jnp.asarray(batch[0][0] // 2 + 60, jnp.float32) / 255
    names = operations(3)
    for sign in (0.9, -0.9):
        results = apply(image, jnp.arange(len(names)), jnp.full(len(names), sign))
        assert np.asarray(results).min() >= 0 and np.asarray(results).max() <= 1
        for name, result in zip(names, results, strict=True):
            assert np.abs(np.asarray(result - image)).max() > 0.05, name


def test_grey_images_have_no_saturation(batch):
    assert set(operations(3)) - set(operations(1)) == {"saturation"}
    grey = batch[0][..., :1]
    images, _ = augmented((grey, batch[1]), AugmentConfig(randaugment_magnitude=9.0))
    assert images.shape == grey.shape and not np.array_equal(images, grey / np.float32(255))


def test_colour_operations_by_hand():
    image = jnp.asarray([[[0.2], [0.6]], [[0.4], [0.8]]])
    stretched = [[[0.0], [2 / 3]], [[1 / 3], [1.0]]]
    assert np.allclose(COLOUR["autocontrast"](image, 1.0), stretched, atol=1e-6)
    assert np.array_equal(COLOUR["autocontrast"](jnp.full((2, 2, 1), 0.3), 1.0), np.full((2, 2, 1), 0.3, np.float32))
    # Half strength: six bits are left, multiples of 4; the threshold lies at 0.502.
    levels = jnp.asarray([0, 3, 4, 127, 128, 255]).reshape(1, 6, 1) / 255
    assert np.allclose(COLOUR["posterize"](levels, -0.5).ravel() * 255, [0, 0, 4, 124, 128, 252], atol=1e-4)
    assert np.allclose(COLOUR["solarize"](levels, 0.5).ravel() * 255, [0, 3, 4, 127, 127, 0], atol=1e-4)
    point = jnp.zeros((5, 5, 1)).at[2, 2].set(1.0)
    blurred = np.asarray(COLOUR["sharpness"](point, -1 / 0.9))[..., 0]  # wholly blurred: the kernel itself
    assert np.allclose(blurred[1:4, 1:4] * 13, [[1, 1, 1], [1, 5, 1], [1, 1, 1]], atol=1e-5)
    assert np.allclose(blurred[0], 0)


def test_the_affine_map_is_that_of_dm_pix(batch):
    image, centre = jnp.asarray(batch[0][0], jnp.float32) / 255, (SIDE - 1) / 2

    @jax.jit
    @jax.vmap
    def both(index):
        matrix, shift = geometry(index, 0.35, SIDE, SIDE)
        full = jnp.eye(4).at[:2, :2].set(matrix).at[:2, 3].set(shift + centre - jnp.sum(matrix, 1) * centre)
        theirs = [pix.affine_transform(x, full, mode="constant") for x in (image, jnp.ones_like(image))]
        return affine(image, matrix, shift), *theirs

    for name, ours, theirs, inside in zip(GEOMETRIC, *both(jnp.arange(len(GEOMETRIC))), strict=True):
        inside = np.asarray(inside) > 0.999  # beyond the border dm-pix cuts hard, ours fades
        assert inside.mean() > 0.4, name
        assert np.allclose(ours[inside], theirs[inside], atol=1e-5), name


def test_a_translation_by_whole_pixels_moves_them_and_fills_with_zeros(batch):
    image = jnp.asarray(batch[0][0], jnp.float32)
    moved = np.asarray(jax.jit(affine)(image, jnp.eye(2), jnp.array([3.0, -2.0])))
    expected = np.zeros_like(moved)
    expected[:-3, 2:] = batch[0][0][3:, :-2]
    assert np.array_equal(moved, expected)


def test_a_rotation_by_a_right_angle_is_exact():
    image = jnp.arange(25.0).reshape(5, 5, 1)
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    turned = jax.jit(affine)(image, turn, jnp.zeros(2))[..., 0]
    assert np.allclose(turned, np.rot90(np.arange(25.0).reshape(5, 5)), atol=1e-5)


# Erasing and mixing


def test_erasing_fills_a_box_of_the_right_size():
    image, keys = jnp.full((20, 20, 1), 2.0), jax.random.split(jax.random.key(0), 400)
    images = np.asarray(jax.jit(jax.vmap(functools.partial(erase, image=image, probability=0.75)))(keys))[..., 0]
    erased = images != 2
    share = erased.mean((1, 2))
    assert 0.68 < np.mean(share > 0) < 0.82
    assert share[share > 0].min() > 0.005 and share.max() < 0.36
    for mask in erased[share > 0]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert images[erased].min() >= 0 and images[erased].max() < 1
    assert 0.45 < images[erased].mean() < 0.55


def test_mixup_blends_and_cutmix_pastes_and_targets_mix_alike():
    config, number, shape = AugmentConfig(mixup=0.8, cutmix=1.0), 600, (16, 16, 1)
    mix = jax.jit(jax.vmap(lambda key, *pair: mix_images(key, *pair, config), in_axes=(0, None, None, None, None)))
    black, white = (jnp.zeros(shape), jnp.array([1.0, 0.0])), (jnp.ones(shape), jnp.array([0.0, 1.0]))
    images, targets = mix(jax.random.split(jax.random.key(1), number), *black, *white)
    images, targets = np.asarray(images)[..., 0], np.asarray(targets)
    assert np.allclose(images.mean((1, 2)), targets[:, 1], atol=1e-6) and np.allclose(targets.sum(-1), 1)
    cut = np.isin(images, (0, 1)).all((1, 2))
    assert 0.45 < cut.mean() < 0.55
    for image in images[cut] == 1:  # a box
        assert image.sum() == image.any(0).sum() * image.any(1).sum()
    assert np.ptp(images[~cut], axis=(1, 2)).max() < 1e-6  # an even blend
    # Beta(0.8, 0.8): mean 1/2, variance 1/(4·2.6).
    share = targets[~cut, 0]
    assert abs(share.mean() - 0.5) < 0.06 and abs(share.var() - 1 / 10.4) < 0.02


def test_images_are_mixed_with_their_neighbours(batch):
    images, labels = batch[0], np.arange(B, dtype=np.int32) % 4  # neighbours differ
    mixed, targets = augmented((images, labels), AugmentConfig(cutmix=1.0))
    for i in range(B):
        kept, pasted = (np.isclose(mixed[i], image / 255, atol=1e-6).all(-1) for image in (images[i], images[i - 1]))
        assert np.all(kept != pasted)
        assert np.isclose(kept.mean(), targets[i, labels[i]], atol=1e-6)
        assert np.isclose(pasted.mean(), targets[i, labels[i - 1]], atol=1e-6)


def test_a_box_at_the_border_is_cut_off():
    assert np.asarray(box_mask(4, 4, (0.0, 4.0), 4, 2)).sum() == 2 * 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_padding", -1), ("randaugment_magnitude", 11.0), ("randaugment_magnitude", -1.0), ("erasing", 1.5),
        ("randaugment_deviation", -0.5), ("randaugment_layers", 0), ("randaugment_probability", 2.0), ("mixup", -0.1),
        ("cutmix", float("nan")), ("mixup", float("inf")), ("mixup", 1e20), ("mixup", True), ("mixup", "0.2"),
        ("crop_padding", 4.0), ("crop_padding", True), ("crop_padding", 10**20), ("randaugment_layers", 1e20),
        ("randaugment_layers", 2.0), ("randaugment_deviation", float("inf")), ("randaugment_magnitude", None),
        ("erasing", float("nan")), ("erasing", 1j), ("flip", "True"), ("flip", 1), ("flip", None),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is "):
        AugmentConfig(**{field: value})


def test_wrong_arrays_are_refused(batch):
    with pytest.raises(AssertionError):
        augment(jax.random.key(0), batch[0] / 255.0, batch[1], CLASSES, AugmentConfig())
    with pytest.raises(AssertionError):
        augment(jax.random.key(0), batch[0], np.eye(CLASSES)[batch[1]], CLASSES, AugmentConfig())
    with pytest.raises(AssertionError):
        augment(jax.random.key(0), batch[0], batch[1].astype(np.float32), CLASSES, AugmentConfig())
    with pytest.raises(AssertionError):
        augment(jax.random.key(0), batch[0], batch[1][:1], CLASSES, AugmentConfig())
    for number in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match="num_classes is "):
            augment(jax.random.key(0), *batch, number, AugmentConfig())
