"""One encoded image to pixels on the host: random-resized or centre crop, scaled JPEG decoding, conversion to RGB.

Training, evaluation and prediction all decode here, so that a network sees the same pixels of a file in each.
"""

import contextlib
import dataclasses
import io
import math
import os
import stat

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ge2mst_jax.checks import check_flag, check_number, check_whole, one_line, shown
from ge2mst_jax.data.pillow_randaugment import DRAWS_OF_LAYER, MAX_LAYERS, PillowRandAugment

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
#: What undoes each orientation that EXIF knows, and which of these swap width and height.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = {TURNS[code] for code in (5, 6, 7, 8)}
#: Of an encoded image; a larger file is none.
MAX_FILE_BYTES = 2**30

#: How often a random crop is drawn before the centre is taken.
TRIES = 10
#: Random numbers an example may use: four a try, one for the flip, then RandAugment's; a multiple of four.
FLIP = 4 * TRIES + 3
DRAWS = FLIP + 1 + MAX_LAYERS * DRAWS_OF_LAYER


class DataError(ValueError):
    """Something is wrong with a data set; the message names the file or record, in one line whatever it is called."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class CorruptImageError(DataError):
    """An image that can't be decoded; `on_corrupt="skip"` passes over it."""


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How encoded images become arrays of one size.

    >>> DecodeConfig(image_size=64).min_area
    0.08
    """

    image_size: int = 224
    """Side of the square that every image becomes."""
    random_crop: bool = True
    """Training: crop a random box (else the centre, as in evaluation)."""
    min_area: float = 0.08
    """Smallest share of the image that a random crop covers."""
    flip: bool = True
    """Training: mirror left and right every other time."""
    interpolation: str = "bilinear"
    """bilinear or bicubic."""
    randaugment: str = ""
    """Training: RandAugment by Pillow, after crop and flip, such as rand-m9-mstd0.5-inc1; or none."""

    def __post_init__(self):
        check_whole("image_size", self.image_size, 1, 8192)
        check_number("min_area", self.min_area, 0, 1, above=True)
        for name in ("random_crop", "flip"):
            check_flag(name, getattr(self, name))
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {shown(self.interpolation)}: it must be bilinear or bicubic")
        if self.randaugment == "none":
            object.__setattr__(self, "randaugment", "")  # as those who say nothing have it
        if self.randaugment != "":
            PillowRandAugment.parse(self.randaugment)


def random_box(draws, width: int, height: int, min_area: float = 0.08):
    """A random box that covers `min_area` to 1 of the image, its aspect ratio 3/4 to 4/3.

    Ten tries (area uniform, ratio log-uniform), then the largest centred box whose ratio is allowed.

    Args:
        draws: at least 40 numbers, uniform in [0, 1).
        width, height: of the image, pixels.
        min_area: in `(0, 1]`.

    Returns:
        `(left, top, right, bottom)`, whole pixels inside the image.

    Source: C. Szegedy et al., "Going deeper with convolutions", 2015.

    >>> random_box([0.5] * 40, 64, 48)
    (12, 4, 53, 45)
    """
    for i in range(0, 4 * TRIES, 4):
        area = width * height * (min_area + (1 - min_area) * draws[i])
        ratio = (4 / 3) ** (2 * draws[i + 1] - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[i + 2] * (width - w + 1)), int(draws[i + 3] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_box(width: int, height: int, size: int):
    """The box of evaluation: the central square of 224/256 of the shorter side; an image of the right size stays whole.

    >>> centre_box(512, 256, 224)
    (144.0, 16.0, 368.0, 240.0)
    >>> centre_box(32, 32, 32)
    (0, 0, 32, 32)
    """
    if width == height == size:
        return 0, 0, width, height
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def decode(data: bytes, config: DecodeConfig, *, where: str, draws=None, channels: int = 3):
    """One encoded image as pixels.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the box to be kept is that much larger than the result.
    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB; transparency is dropped. A photo whose EXIF data say
    that the camera was turned is turned upright, as viewers show it (most ImageNet recipes leave such photos lying;
    Pillow itself turns TIFFs, whatever one asks).

    Args:
        data: a JPEG, PNG or whatever else Pillow reads (no EPS).
        config: size, crop, flip, RandAugment.
        where: the file or record, for the error.
        draws: `DRAWS` numbers, uniform in [0, 1), that decide all that is random; none decodes for evaluation.
        channels: 3, or 1 for grey.

    Returns:
        `[image_size, image_size, channels]` uint8.

    Raises:
        CorruptImageError: the bytes are no image, or a truncated or damaged one.

    >>> file = io.BytesIO()
    >>> Image.new("L", (40, 30), 200).save(file, "PNG")
    >>> decode(file.getvalue(), DecodeConfig(image_size=8), where="grey.png")[0, 0]
    array([200, 200, 200], dtype=uint8)
    """
    size = config.image_size
    with opened(data, where) as image:
        turn = turn_of(image)
        width, height = image.size[::-1] if turn in SIDEWAYS else image.size
        if draws is not None and config.random_crop:
            box = random_box(draws, width, height, config.min_area)
        else:
            box = centre_box(width, height, size)
        scale = draft(image, box, size)
        box = tuple(side / scale for side in box)
        resampling = INTERPOLATIONS[config.interpolation]
        resized = upright(convert(image, channels), turn).resize((size, size), resampling, box, reducing_gap=2.0)
        if draws is not None and config.flip and draws[FLIP] < 0.5:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # ten times faster than numpy
        if draws is not None and config.randaugment:
            resized = PillowRandAugment.parse(config.randaugment)(resized, draws[FLIP + 1 :])
        return np.asarray(resized).reshape(size, size, channels)


def decode_whole(data: bytes, *, where: str, channels: int = 3):
    """The image at its own size, upright, `[H, W, channels]` uint8; errors as in `decode`."""
    with opened(data, where) as image:
        turn = turn_of(image)
        pixels = np.asarray(upright(convert(image, channels), turn))
        return pixels.reshape(*pixels.shape[:2], channels)


def read_file(path) -> bytes:
    """The bytes of an image file; what is no regular file (a pipe, which would wait for ever, a device) is refused.

    Raises:
        DataError: names the file.

    >>> read_file("/dev/null")
    Traceback (most recent call last):
    ge2mst_jax.data.decode.DataError: /dev/null: can't be read (not a regular file)
    """
    try:
        # To open a pipe, too, must not wait.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise DataError(f"{path}: can't be read (not a regular file)")
            if about.st_size > MAX_FILE_BYTES:
                raise DataError(f"{path}: can't be read ({about.st_size} bytes, more than {MAX_FILE_BYTES})")
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright whose EXIF data say how the camera was held; to be asked before it is decoded.

    Nothing where they say nothing, or nonsense: damaged EXIF data don't make a damaged image.
    """
    if "exif" not in image.info:  # asking Pillow would decode some formats in full; TIFFs it turns itself
        return None
    with contextlib.suppress(Exception):
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return None


def draft(image: Image.Image, box, size: int) -> float:
    """Lets a JPEG be decoded at the smallest scale at which `box` is still no smaller than `size`; returns 1/scale."""
    shorter = min(box[2] - box[0], box[3] - box[1])
    factor = max((f for f in (2, 4, 8) if f * size <= shorter), default=1)
    width, height = image.size
    drafted = image.draft(None, (width // factor, height // factor)) if factor > 1 else None
    return 1.0 if drafted is None else width / drafted[1][2]


def convert(image: Image.Image, channels: int) -> Image.Image:
    """The image as 8-bit RGB (3 channels) or grey (1), whatever it was.

    >>> convert(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), 3).getpixel((0, 0))
    (255, 0, 0)
    """
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no 8-bit meaning")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def upright(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """The image turned as `turn_of` said."""
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def opened(data: bytes, where: str):
    """The image, not yet decoded; whatever Pillow says about bad bytes becomes one line that names the file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":  # Pillow would have Ghostscript run it
                raise ValueError("EPS files are programs")
            yield image
    except Exception as error:  # Pillow's readers raise whatever they meet, down to AttributeError
        unknown = "unknown format" if data else "an empty file"
        reason = unknown if isinstance(error, UnidentifiedImageError) else one_line(error) or type(error).__name__
        raise CorruptImageError(f"{where}: not a readable image ({reason})") from error
