"""RandAugment for one image: a few random operations of a common strength; the batch comes from `vmap`.

Under `vmap` every image goes through all colour operations and one look-up (the geometric ones differ only in their
matrix), and a selection takes the one drawn: no image waits for another, which suits accelerators.
"""

import dm_pix as pix
import jax
import jax.numpy as jnp

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def affine(image, matrix, shift):
    """The image moved: the pixel at `y` comes from `matrix·(y - c) + c + shift`, `c` the centre; 0 from outside.

    Bilinear. `pix.affine_transform` does the same forty times slower on the CPU: it interpolates along the channels
    too, and finds the coordinates by a matrix product, which a TPU would round to bfloat16.

    Args:
        image: `[H, W, C]` float32.
        matrix: `[2, 2]`, in (row, column).
        shift: `[2]`, pixels.
    """
    sides = image.shape[:2]
    y, x = (jnp.arange(side, dtype=jnp.float32) - (side - 1) / 2 for side in sides)
    places = [
        matrix[i, 0] * y[:, None] + matrix[i, 1] * x[None, :] + (sides[i] - 1) / 2 + shift[i] for i in range(2)
    ]  # where each pixel comes from
    corner = [jnp.floor(place).astype(jnp.int32) for place in places]

    def share(i, step):
        """How much the row (column) `corner + step` counts; 0 outside of the image."""
        weight = places[i] - corner[i] if step else 1 + corner[i] - places[i]
        inside = (corner[i] + step >= 0) & (corner[i] + step < sides[i])
        return jnp.where(inside, weight, 0)

    moved = jnp.zeros_like(image)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows, columns = jnp.clip(corner[0] + down, 0, sides[0] - 1), jnp.clip(corner[1] + right, 0, sides[1] - 1)
        moved += (share(0, down) * share(1, right))[..., None] * image[rows, columns]
    return moved


def geometry(operation, strength, height: int, width: int):
    """Matrix and shift of a geometric operation at a signed strength in [-1, 1].

    Rotation by up to 30°, shear by up to 0.3, translation by up to 0.45 of the side.
    """
    angle, shear, zero, one = strength * jnp.pi / 6, strength * 0.3, jnp.zeros(()), jnp.ones(())
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    down, right = strength * 0.45 * height, strength * 0.45 * width
    table = jnp.stack(
        [
            jnp.stack([cosine, sine, -sine, cosine, zero, zero]),
            jnp.stack([one, zero, shear, one, zero, zero]),
            jnp.stack([one, shear, zero, one, zero, zero]),
            jnp.stack([one, zero, zero, one, zero, right]),
            jnp.stack([one, zero, zero, one, down, zero]),
        ]
    )  # in the order of GEOMETRIC
    row = table[operation]
    return row[:4].reshape(2, 2), row[4:]


def autocontrast(image, strength):
    """Each channel stretched to 0…1; a constant one stays."""
    low, high = jnp.min(image, (0, 1), keepdims=True), jnp.max(image, (0, 1), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


def sharpness(image, strength):
    """Away from a 3×3 mean (sharper) or towards it (blurrier); the border stays."""
    height, width, _ = image.shape
    window = sum(image[i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3))
    detail = image[1:-1, 1:-1] * (9 / 13) - window / 13  # inner less its blurred self
    return image + 0.9 * strength * jnp.pad(detail, ((1, 1), (1, 1), (0, 0)))


def posterize(image, strength):
    """Only the highest bits of a pixel: 8 at strength 0, 4 at 1."""
    step = 2 ** jnp.round(4 * jnp.abs(strength)).astype(jnp.int32)
    return (jnp.round(image * 255).astype(jnp.int32) // step * step).astype(jnp.float32) / 255


def solarize(image, strength):
    """Pixels above a threshold inverted: none at strength 0, all at 1."""
    return pix.solarize(image, (1 - jnp.abs(strength)) * (256 / 255))


COLOUR = {
    "autocontrast": autocontrast,
    "brightness": lambda image, strength: pix.adjust_brightness(image, 0.4 * strength),
    "contrast": lambda image, strength: pix.adjust_contrast(image, 1 + 0.9 * strength),
    "saturation": lambda image, strength: pix.adjust_saturation(image, 1 + 0.9 * strength),
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
}


def operations(channels: int) -> tuple[str, ...]:
    """Names of the operations: saturation needs colours.

    >>> len(operations(3)), len(operations(1))
    (12, 11)
    """
    return GEOMETRIC + tuple(name for name in COLOUR if channels == 3 or name != "saturation")


def apply_operation(image, operation, strength):
    """One operation on one image.

    Args:
        image: `[H, W, C]` float32 in [0, 1].
        operation: int32 scalar, an index into `operations(C)`; may be traced.
        strength: float32 scalar in [-1, 1]; the sign says which way, where an operation has two.

    Returns:
        `[H, W, C]` float32 in [0, 1].
    """
    height, width, channels = image.shape
    colours = [COLOUR[name] for name in operations(channels)[len(GEOMETRIC) :]]
    moved = affine(image, *geometry(jnp.minimum(operation, len(GEOMETRIC) - 1), strength, height, width))
    coloured = jax.lax.switch(jnp.maximum(operation - len(GEOMETRIC), 0), colours, image, strength)
    return jnp.clip(jnp.where(operation < len(GEOMETRIC), moved, coloured), 0, 1)


def rand_augment(key, image, layers: int, magnitude: float, deviation: float, probability: float):
    """`layers` operations, each drawn at random and applied with a probability.

    The strength is `clip(N(magnitude, deviation), 0, 10)/10`, its sign random.

    Args:
        key: of this image.
        image: `[H, W, C]` float32 in [0, 1].

    Source: E. D. Cubuk et al., "RandAugment", 2020; equalize and invert are left out.
    """

    names = operations(image.shape[-1])
    strength_key, draw_key = jax.random.split(key)
    strengths = jnp.clip(magnitude + deviation * jax.random.normal(strength_key, (layers,)), 0, 10) / 10
    draws = jax.random.uniform(draw_key, (layers, 3))  # few calls: each takes XLA long to compile
    for i in range(layers):
        operation = (draws[i, 0] * len(names)).astype(jnp.int32)
        strength = jnp.where(draws[i, 1] < 0.5, strengths[i], -strengths[i])
        augmented = apply_operation(image, operation, strength)
        image = jnp.where(draws[i, 2] < probability, augmented, image)
    return image
