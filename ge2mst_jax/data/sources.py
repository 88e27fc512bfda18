"""Where labelled images come from, each named by one line of text: `digits`, `idx:`, `folder:` and `tfds:`."""

import dataclasses
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ge2mst_jax.data.decode import CorruptImageError, DataError
from ge2mst_jax.data.digits import load_digits

SPLITS = ("train", "test")
ON_CORRUPT = ("raise", "skip")
SPECS = "digits, idx:FOLDER, folder:FOLDER, tfds:NAME[/CONFIG][:VERSION]"


class Example(NamedTuple):
    """One labelled image, as it is stored."""

    data: bytes | np.ndarray
    """An encoded image, or its pixels `[H, W, C]` uint8."""
    label: int
    """0 to the number of classes less 1."""
    where: str
    """The file or record, for errors."""


class Source(Protocol):
    """A data set's split: random access to labelled images. It pickles, for worker processes."""

    name: str
    split: str
    classes: tuple[str, ...]
    on_corrupt: str
    channels: int
    image_shape: tuple[int, int, int] | None
    """Of every image; none where sizes differ and the pipeline decodes to its own."""
    labels: np.ndarray | None
    """`[N]` int32 where known without reading the images."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example:
        """Raises `CorruptImageError` for an image known to be unreadable, `DataError` for whatever else is wrong."""
        ...


@dataclasses.dataclass(frozen=True)
class MemorySource:
    """A split in memory: images `[N, H, W, C]` uint8, labels `[N]` int32 in the range of `classes`.

    >>> source = MemorySource("two", "train", np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]), ("no", "yes"))
    >>> len(source), source.image_shape, source.read(1).label
    (2, (4, 4, 1), 1)
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    on_corrupt: str = "raise"
    corrupt: dict[int, str] = dataclasses.field(default_factory=dict)
    """Of the images that could not be decoded, what was wrong."""

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise DataError(f"{self.name}: {len(self.images)} images but {len(self.labels)} labels")
        if len(self.images) == 0:
            raise DataError(f"{self.name}: the {self.split} split has no images")
        for index in np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))[:1]:
            check_label(int(self.labels[index]), len(self.classes), f"{self.name}, {self.split} image {index}")
        object.__setattr__(self, "labels", self.labels.astype(np.int32))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    @property
    def channels(self) -> int:
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Example:
        if index in self.corrupt:
            raise CorruptImageError(self.corrupt[index])
        return Example(self.images[index], int(self.labels[index]), f"{self.name}, {self.split} image {index}")


def check_label(label: int, num_classes: int, where: str) -> int:
    """The label, or a `DataError` that names the file.

    >>> check_label(3, 3, "a.png")
    Traceback (most recent call last):
    ge2mst_jax.data.decode.DataError: a.png: label 3 is out of range: there are 3 classes, 0 to 2
    """
    if not 0 <= label < num_classes:
        raise DataError(
            f"{where}: label {label} is out of range: there are {num_classes} classes, 0 to {num_classes - 1}"
        )
    return label


def open_source(spec: str, split: str, data_dir: str | Path | None = None, on_corrupt: str = "raise") -> Source:
    """Opens a split of a data set by name.

    Args:
        spec: one of

            - `digits`: scikit-learn's handwritten digits, carried by the package;
            - `idx:FOLDER`: the IDX files of MNIST or Fashion-MNIST, gzipped or not;
            - `folder:FOLDER`: images in `FOLDER/train/CLASS/` and `FOLDER/val/CLASS/` (or `test`);
            - `tfds:NAME[/CONFIG][:VERSION]`: a TFDS set prepared as array_record (`experiments/prepare_data.py`); where
              it has no labelled `test`, the test split is `validation`.
        split: train or test.
        data_dir: of TFDS sets; TFDS's own folder if none.
        on_corrupt: raise an error at an image that can't be decoded, or skip (training takes the next one of the
            order in its place, evaluation masks it; both count it).

    Returns:
        Small sets in memory, the others as files that are decoded when they are read.

    Raises:
        DataError: the set is missing or something is wrong with it; the message names the file.
        ValueError: an unknown kind, split or `on_corrupt`.

    >>> len(open_source("digits", "test"))
    360
    """
    kind, _, rest = spec.partition(":")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: it must be one of {', '.join(SPLITS)}")
    if on_corrupt not in ON_CORRUPT:
        raise ValueError(f"on_corrupt is {on_corrupt!r}: it must be one of {', '.join(ON_CORRUPT)}")
    if spec == "digits":
        return _digits(split, on_corrupt)
    if kind == "idx" and rest:
        from ge2mst_jax.data.idx import open_idx

        return open_idx(Path(rest), split, on_corrupt)
    if kind == "folder" and rest:
        from ge2mst_jax.data.folder import open_folder

        return open_folder(Path(rest), split, on_corrupt)
    if kind == "tfds" and rest:
        from ge2mst_jax.data.tfds_source import open_tfds  # a second to import: only where it is used

        return open_tfds(rest, split, data_dir, on_corrupt)
    raise ValueError(f"unknown data set {spec!r}: known are {SPECS}")


def _digits(split: str, on_corrupt: str) -> MemorySource:
    digits = load_digits()
    images, labels = getattr(digits, f"{split}_images"), getattr(digits, f"{split}_labels")
    return MemorySource("digits", split, images, labels, tuple("0123456789"), on_corrupt)
