"""A tiny network, and a folder of image files as people have them, for the tests of the scripts that read images."""

import dataclasses
import functools
import io
import sys

import numpy as np
from PIL import Image
from tiny_networks import random_variables, tiny_model

from ge2mst_jax.convert import deploy
from ge2mst_jax.train.command import run_command

SHAPE = (8, 8, 3)
CLASSES = ["1", "10", "2", "[/x]", "$a\n\x1b[31m_b"]
DECODE = dict(image_size=8, random_crop=True, min_area=0.08, flip=True, interpolation="bicubic")


@functools.cache
def deployed():
    model = tiny_model("2x2")
    return deploy(model, random_variables(model, SHAPE), SHAPE)


def tiny_net(**about):
    """A deployed network of five classes for images of 8×8."""
    return dataclasses.replace(deployed(), about=about)


def run(module, options, *arguments):
    """Runs a script's command line in this process; returns its exit status."""
    before, sys.argv = sys.argv, [f"{module.__name__}.py", *map(str, arguments)]
    try:
        run_command(module.main, options)
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


def noise(index, *shape):
    return np.random.default_rng(index).integers(0, 256, shape, np.uint8)


def bytes_of(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def odd_files() -> dict[str, bytes]:
    """Files that every reader must read alike: a turned photo, 16 bits, CMYK, a palette, transparency, large, wide."""
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth = np.stack(np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 255, 200)) * 2, -1)[..., :3].astype(np.uint8)
    sixteen = np.random.default_rng(0).integers(0, 2**16, (12, 9), np.uint16)
    return {
        "turned.jpg": bytes_of(Image.fromarray(smooth), "JPEG", exif=turned),
        "turned.png": bytes_of(Image.fromarray(noise(1, 11, 14, 3)), "PNG", exif=turned),
        "turned.tiff": bytes_of(Image.fromarray(noise(2, 11, 14, 3)), "TIFF", exif=turned),
        "sixteen.png": bytes_of(Image.fromarray(sixteen), "PNG"),
        "cmyk.jpg": bytes_of(Image.fromarray(noise(3, 16, 16, 4), "CMYK"), "JPEG"),
        "palette.gif": bytes_of(Image.fromarray(noise(4, 10, 10, 3)).quantize(8), "GIF"),
        "alpha.png": bytes_of(Image.fromarray(noise(5, 10, 10, 4)), "PNG"),
        "grey.png": bytes_of(Image.fromarray(noise(6, 8, 8)), "PNG"),
        "exact.png": bytes_of(Image.fromarray(noise(7, 8, 8, 3)), "PNG"),
        "wide.png": bytes_of(Image.fromarray(noise(8, 5, 60, 3)), "PNG"),
    }


def write_odd_folder(root):
    """`odd_files` in each class folder of both splits; returns the folder."""
    for split in ("train", "val"):
        for number in range(5):
            folder = root / split / f"class {number}"
            folder.mkdir(parents=True)
            for name, data in odd_files().items():
                (folder / name).write_bytes(data)
    return root
