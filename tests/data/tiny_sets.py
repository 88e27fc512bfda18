"""Tiny data sets that tests write: folders of images, IDX files, TFDS sets prepared without TensorFlow."""

import gzip
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def encoded(pixels, format="PNG", **options) -> bytes:
    """An array (or a Pillow image) as the bytes of a file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(index: int, side: int = 8) -> np.ndarray:
    """`[side, side, 3]` uint8, another for each index."""
    return np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8)


def write_folder(root, train: int = 5, test: int = 3, classes=("ant", "bee"), side: int = 8):
    """`train` and `test` PNGs a class; returns the folder."""
    for split, number in (("train", train), ("val", test)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = picture(1000 * (split == "val") + 100 * label + i, side)
                (folder / f"{i:03}.png").write_bytes(encoded(pixels))
    return root


def idx_bytes(array) -> bytes:
    """The IDX file of an array of bytes."""
    array = np.asarray(array, np.uint8)
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx(root, train: int = 6, test: int = 4, compress: bool = True):
    """MNIST's four files, with images of 5×4; returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    for prefix, number in (("train", train), ("t10k", test)):
        rng = np.random.default_rng(number)
        arrays = {"images-idx3": rng.integers(0, 256, (number, 5, 4)), "labels-idx1": np.arange(number) % 10}
        for name, array in arrays.items():
            content = idx_bytes(array)
            file = root / f"{prefix}-{name}-ubyte{'.gz' if compress else ''}"
            file.write_bytes(gzip.compress(content) if compress else content)
    return root


class TinyBuilder(tfds.core.GeneratorBasedBuilder):
    """Eight training and four test images, given as encoded bytes: from arrays TFDS would need TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (8, 8, 3)
    SPLITS = {"train": 8, "test": 4}
    UNLABELLED = ()
    BROKEN = ()

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE),
            "label": tfds.features.ClassLabel(names=["ant", "bee"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {split: self._generate_examples(split, number) for split, number in self.SPLITS.items()}

    def _generate_examples(self, split, number):
        for i in range(number):
            data = encoded(picture(i))
            data = data[: len(data) // 2] if i in self.BROKEN else data
            yield i, {"image": io.BytesIO(data), "label": -1 if split in self.UNLABELLED else i % 2}


class TinySquares(TinyBuilder):
    """All of one size: read into memory."""


class TinyPhotos(TinyBuilder):
    """Of any size: decoded when they are read. Like ImageNet, its test split has no labels."""

    SHAPE = (None, None, 3)
    SPLITS = {"train": 8, "test": 4, "validation": 3}
    UNLABELLED = ("test",)


class TinyBroken(TinyBuilder):
    """The third image of each split is cut in half."""

    BROKEN = (2,)


def prepare(builder_class, data_dir):
    """Prepares a set; returns the folder of its files."""
    tfds.disable_progress_bar()
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path
