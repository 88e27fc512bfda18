"""RandAugment by Pillow: the draws decide everything, operations and ranges are timm's."""

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from ge2mst_jax.data.decode import DRAWS, FLIP, DecodeConfig, decode
from ge2mst_jax.data.pillow_randaugment import (
    DRAWS_OF_LAYER,
    FILL,
    MAX_LAYERS,
    OPERATIONS,
    RESAMPLINGS,
    PillowRandAugment,
    operate,
)

BILINEAR, BICUBIC = RESAMPLINGS
RECIPE = "rand-m9-mstd0.5-inc1"


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(20, 220, (12, 16, 3), np.uint8)
    return Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)


def same(a, b):
    return a.mode == b.mode and ImageChops.difference(a, b).getbbox() is None


def draws(*layers):
    """Numbers of an example whose layers draw `(operation, whether, strength, sign, resampling)`."""
    made = [0.5] * (DRAWS_OF_LAYER * MAX_LAYERS)
    for i, (name, *numbers) in enumerate(layers):
        start = i * DRAWS_OF_LAYER
        made[start : start + 5] = ((OPERATIONS.index(name) + 0.5) / len(OPERATIONS), *numbers)
    return made


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (RECIPE, PillowRandAugment(9.0, 0.5, 2, 0.5)),
        ("rand-m9-inc1", PillowRandAugment(9.0)),
        ("rand-inc1-p0.7-n3-m6.5", PillowRandAugment(6.5, layers=3, probability=0.7)),
    ],
)
def test_written_as_timm_writes_it(text, made):
    assert PillowRandAugment.parse(text) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "write it as rand-m9-mstd0.5-inc1")
            for text in ("rand", "rand-m9", "rand-m9-inc0", "m9-inc1", "rand-m9-m8-inc1", "rand-m9-inc1-w0",
                         "rand-m-inc1", "rand-m9-inc1-", "rand-m९-inc1", "rand-m9-inc1\n",
                         "augmix-m3", None, 9, ["rand-m9-inc1"])
        ),
        ("rand-m11-inc1", "magnitude of RandAugment is 11"),
        ("rand-m9-mstd99-inc1", "deviation of RandAugment is 99"),
        ("rand-m9-p1.5-inc1", "probability of RandAugment is 1.5"),
        ("rand-m9-n0-inc1", "layers of RandAugment is 0"),
        ("rand-m9-n5-inc1", "layers of RandAugment is 5"),
        ("rand-m9-n1.5-inc1", "layers of RandAugment is 1.5"),
    ],
)  # fmt: skip
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message) as error:
        DecodeConfig(randaugment=text)
    assert "\n" not in str(error.value)


def test_none_is_what_those_have_who_say_nothing():
    assert DecodeConfig(randaugment="none") == DecodeConfig()


def test_operations_by_hand(image):
    """At strength 9: what timm's tables of levels give."""

    def at_nine(name, negative=False):
        return operate(image, name, 0.9, negative, BICUBIC)

    assert same(at_nine("autocontrast"), ImageOps.autocontrast(image))
    assert same(at_nine("equalize"), ImageOps.equalize(image))
    assert same(at_nine("invert"), ImageOps.invert(image))
    assert same(at_nine("posterize"), ImageOps.posterize(image, 1))  # 4 - int(0.9 · 4)
    assert same(operate(image, "posterize", 1.0, False, BICUBIC), ImageOps.posterize(image, 1))  # Pillow keeps one bit
    assert same(at_nine("solarize"), ImageOps.solarize(image, 26))  # 256 - int(0.9 · 256)
    assert same(at_nine("rotate"), image.rotate(27, BICUBIC, fillcolor=FILL["RGB"]))
    assert same(at_nine("rotate", True), image.rotate(-27, BICUBIC, fillcolor=FILL["RGB"]))
    for name, kind in (
        ("color", "Color"),
        ("contrast", "Contrast"),
        ("brightness", "Brightness"),
        ("sharpness", "Sharpness"),
    ):
        assert same(at_nine(name), getattr(ImageEnhance, kind)(image).enhance(1.81))
        assert same(at_nine(name, True), getattr(ImageEnhance, kind)(image).enhance(0.19))
        assert same(operate(image, name, 1.0, True, BICUBIC), getattr(ImageEnhance, kind)(image).enhance(0.1))
    pixels = np.asarray(image).astype(int)
    added = np.where(pixels < 128, np.minimum(pixels + 99, 255), pixels)  # int(0.9 · 110)
    assert (np.asarray(at_nine("solarize_add")) == added).all()


def test_pixels_that_move(image):
    pixels = np.asarray(image)
    moved = np.asarray(operate(image, "translate_x", 0.9 * 26 / 25.92, False, BILINEAR))  # 26 of 64 pixels
    assert (moved[:, :38] == pixels[:, 26:]).all()
    assert (moved[:, 39:] == FILL["RGB"]).all()
    moved = np.asarray(operate(image, "translate_y", 12 / (0.45 * 48), True, BILINEAR))
    assert np.abs(moved[12:].astype(int) - pixels[:36]).max() <= 1  # 0.45 of a side is no whole number
    assert (moved[:11] == FILL["RGB"]).all()
    for name, corner in (
        ("shear_x", (slice(-1, None), slice(-10, None))),
        ("shear_y", (slice(-10, None), slice(-1, None))),
    ):
        sheared = np.asarray(operate(image, name, 1.0, False, BILINEAR))
        assert (sheared[corner] == FILL["RGB"]).all()  # what lies there comes from outside
        assert np.abs(sheared[0, 0].astype(int) - pixels[0, 0]).max() < 20  # near the origin nothing moves
        assert not (np.asarray(operate(image, name, 1.0, True, BILINEAR)) == sheared).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_every_operation_keeps_size_and_mode_and_does_something(image, mode, name, level):
    given = image.convert(mode)
    results = [operate(given, name, level, negative, BICUBIC) for negative in (False, True)]
    assert all((found.size, found.mode) == (given.size, mode) for found in results)
    if level == 1 and (mode, name) != ("L", "color"):
        assert not any(same(found, given) for found in results)
    if level == 0 and name not in ("autocontrast", "equalize", "invert", "posterize"):
        assert all(same(found, given) for found in results)


def test_draws_decide_which_whether_how_strongly_and_which_way(image):
    once = PillowRandAugment(6.0, 1.0, layers=1, probability=0.4)
    assert same(once(image, draws(("rotate", 0.39, 0.5, 0.7, 0.3))), image.rotate(18, BICUBIC, fillcolor=FILL["RGB"]))
    assert same(once(image, draws(("rotate", 0.39, 0.5, 0.2, 0.7))), image.rotate(-18, BILINEAR, fillcolor=FILL["RGB"]))
    assert same(once(image, draws(("rotate", 0.41, 0.5, 0.2, 0.7))), image)
    stronger = once(image, draws(("brightness", 0.0, 0.8413447460685429, 0.7, 0.7)))  # one deviation more
    assert same(stronger, ImageEnhance.Brightness(image).enhance(1 + 0.9 * 0.7))
    for strength, level in ((0.0, 0), (2.0**-60, 0), (1 - 2.0**-53, 1)):  # cut off
        found = PillowRandAugment(6.0, 10.0, 1, 1.0)(image, draws(("brightness", 0, strength, 0.7, 0.7)))
        assert same(found, ImageEnhance.Brightness(image).enhance(1 + 0.9 * level))
    twice = PillowRandAugment(5.0, layers=2, probability=1.0)
    both = twice(image, draws(("invert", 0, 0, 0, 0), ("posterize", 0, 0, 0, 0), ("invert", 0, 0, 0, 0)))
    assert same(both, ImageOps.posterize(ImageOps.invert(image), 2))  # the third layer is not its


def test_shares_of_what_is_drawn():
    """Half of the layers do something, and every operation is as likely."""
    done = []
    recipe, numbers = PillowRandAugment.parse(RECIPE), np.random.default_rng(0).random((3000, DRAWS_OF_LAYER * 2))
    for row in numbers.tolist():
        for layer in range(2):
            which, whether = row[layer * DRAWS_OF_LAYER :][:2]
            if whether < recipe.probability:
                done.append(int(which * len(OPERATIONS)))
    assert abs(len(done) / 6000 - 0.5) < 0.02
    assert np.bincount(done, minlength=len(OPERATIONS)).min() > 0.75 * len(done) / len(OPERATIONS)


@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_augments_in_training_alone_after_crop_and_flip(image, channels, tmp_path):
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    plain, config = DecodeConfig(24), DecodeConfig(24, randaugment="rand-m9-p1-n1-inc1")
    rows = np.random.default_rng(0).random((40, DRAWS)).tolist()
    changed = 0
    for row in rows:
        first = decode(data, plain, where="a", draws=row, channels=channels)
        found = decode(data, config, where="a", draws=row, channels=channels)
        expected = PillowRandAugment(9.0, 0.0, 1, 1.0)(Image.fromarray(first.squeeze()), row[FLIP + 1 :])
        assert (found == np.asarray(expected).reshape(found.shape)).all()
        changed += not (found == first).all()
    assert changed > 35
    evaluated = [decode(data, c, where="a", channels=channels) for c in (plain, config)]
    assert (evaluated[0] == evaluated[1]).all()
