"""RandAugment on the host, image by image, by Pillow: the operations and ranges of timm's `rand-m9-mstd0.5-inc1`.

The device has a version of its own (`randaugment.py`), for small images in memory. At 224×224 its look-ups are what an
accelerator does worst, and the host that decodes an image has it in Pillow's hands anyway.
"""

import dataclasses
import re
import statistics

from PIL import Image, ImageEnhance, ImageOps

from ge2mst_jax.checks import check_number, check_whole, shown

MAX_LAYERS = 4
#: Uniform numbers a layer takes: operation, whether, strength, sign, resampling; and one to spare.
DRAWS_OF_LAYER = 6
#: What moves in from outside: the mean colour of ImageNet, and its mean.
FILL = {"RGB": (124, 116, 104), "L": 117}
RESAMPLINGS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
_NORMAL = statistics.NormalDist()
_FIELDS = {"m": "magnitude", "mstd": "deviation", "n": "layers", "p": "probability", "inc": "increasing"}


@dataclasses.dataclass(frozen=True)
class PillowRandAugment:
    """`layers` random operations in a row, each applied with a probability.

    Its strength is normally distributed, cut off at 0 and 10. Make one with `parse`.

    Args:
        magnitude: mean strength, 0 to 10.
        deviation: of the strength.
        layers: 1 to 4.
        probability: of each operation.

    Source: E. Cubuk et al., "RandAugment", 2020; operations, ranges and draws as in timm (R. Wightman, Apache 2.0),
    `rand-...-inc1`: every operation is the stronger, the greater its strength.
    """

    magnitude: float
    deviation: float = 0.0
    layers: int = 2
    probability: float = 0.5

    def __post_init__(self):
        for name, high in (("magnitude", 10), ("deviation", 10), ("probability", 1)):
            object.__setattr__(self, name, check_number(f"{name} of RandAugment", getattr(self, name), 0, high))
        check_whole("layers of RandAugment", self.layers, 1, MAX_LAYERS)

    @classmethod
    def parse(cls, text: str) -> "PillowRandAugment":
        """From timm's way to write it.

        Raises:
            ValueError: says what is wrong with the text.

        >>> PillowRandAugment.parse("rand-m9-mstd0.5-inc1")
        PillowRandAugment(magnitude=9.0, deviation=0.5, layers=2, probability=0.5)
        """
        given = _read(text) if isinstance(text, str) else None
        if given is None or "magnitude" not in given or given.pop("increasing", None) != "1":
            raise ValueError(
                f"randaugment is {shown(text)}: write it as rand-m9-mstd0.5-inc1 (m: strength 0 to 10, mstd: its "
                f"deviation, n: operations, 1 to {MAX_LAYERS}, p: probability of each; inc1 is all we know), or none"
            )
        return cls(**{field: int(n) if n.isdecimal() else float(n) for field, n in given.items()})

    def __call__(self, image: Image.Image, draws) -> Image.Image:
        """The image after its operations.

        Args:
            image: of mode RGB or L.
            draws: `DRAWS_OF_LAYER` numbers a layer, uniform in [0, 1), which decide everything.
        """
        for layer in range(self.layers):
            which, whether, strength, sign, resampling, _ = draws[layer * DRAWS_OF_LAYER :][:DRAWS_OF_LAYER]
            if whether < self.probability:
                # 0 alone has no quantile.
                deviates = _NORMAL.inv_cdf(max(strength, 2.0**-53)) if self.deviation else 0.0
                level = min(max(self.magnitude + self.deviation * deviates, 0), 10) / 10
                name = OPERATIONS[int(which * len(OPERATIONS))]
                image = operate(image, name, level, sign < 0.5, RESAMPLINGS[resampling < 0.5])
        return image


def _read(text: str) -> dict[str, str] | None:
    """Fields and their numbers; none if the text is written otherwise."""
    if re.fullmatch(r"rand(-[a-z]+\d+(\.\d+)?)+", text, re.ASCII) is None:
        return None
    parts = re.findall(r"-([a-z]+)([\d.]+)", text)
    known = {_FIELDS.get(key): number for key, number in parts}
    return None if None in known or len(known) < len(parts) else known


def operate(image: Image.Image, name: str, level: float, negative: bool, resampling) -> Image.Image:
    """One operation of `OPERATIONS`.

    Args:
        image: of mode RGB or L.
        name: of the operation.
        level: its strength, 0 to 1.
        negative: the other way, of those that have two.
        resampling: of those that move pixels.

    >>> operate(Image.new("L", (2, 2), 255), "posterize", 0.75, False, RESAMPLINGS[0]).getpixel((0, 0))
    128
    """
    signed = -level if negative else level
    if name in _MOVED:
        matrix = _MOVED[name](signed, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=FILL[image.mode])
    if name in _ENHANCED:
        return _ENHANCED[name](image).enhance(max(0.1, 1 + 0.9 * signed))
    if name == "rotate":
        return image.rotate(30 * signed, resampling, fillcolor=FILL[image.mode])
    if name == "posterize":
        return ImageOps.posterize(image, max(1, 4 - int(4 * level)))  # Pillow keeps one bit
    if name == "solarize":
        return ImageOps.solarize(image, 256 - min(256, int(256 * level)))
    if name == "solarize_add":
        added = min(128, int(110 * level))
        table = [min(255, value + added) if value < 128 else value for value in range(256)]
        return image.point(table * len(image.getbands()))
    return _PLAIN[name](image)


_PLAIN = {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}
_ENHANCED = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
_MOVED = {
    "shear_x": lambda s, width, height: (1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda s, width, height: (1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda s, width, height: (1, 0, 0.45 * s * width, 0, 1, 0),
    "translate_y": lambda s, width, height: (1, 0, 0, 0, 1, 0.45 * s * height),
}
#: All of timm's increasing kind.
OPERATIONS = (*_PLAIN, "rotate", "posterize", "solarize", "solarize_add", *_ENHANCED, *_MOVED)
