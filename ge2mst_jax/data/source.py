"""What a data set's split is: labelled images by index. Its readers stand above, `open_source` above them."""

import dataclasses
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ge2mst_jax.checks import shown
from ge2mst_jax.data.decode import CorruptImageError, DataError

SPLITS = ("train", "test")
ON_CORRUPT = ("raise", "skip")


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


@dataclasses.dataclass(frozen=True, eq=False)
class MemorySource:
    """A split in memory: images `[N, H, W, 1 or 3]` uint8, labels `[N]` whole numbers in the range of `classes`.

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
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
            raise DataError(
                f"{self.name}: images are {images.dtype} {images.shape}: they must be uint8 [N, H, W, 1 or 3]"
            )
        if len(images) == 0:
            raise DataError(f"{self.name}: the {self.split} split has no images")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(f"{self.name}: labels are {labels.dtype} {labels.shape}: they must be whole numbers [N]")
        if len(images) != len(labels):
            raise DataError(f"{self.name}: {len(images)} images but {len(labels)} labels")
        for index in np.flatnonzero((labels < 0) | (labels >= len(self.classes)))[:1]:
            check_label(int(labels[index]), len(self.classes), f"{self.name}, {self.split} image {index}")
        check_on_corrupt(self.on_corrupt)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int32))

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


def check_on_corrupt(value: str) -> None:
    """Raises a `ValueError` unless it is raise or skip."""
    if not isinstance(value, str) or value not in ON_CORRUPT:
        raise ValueError(f"on_corrupt is {shown(value)}: it must be one of {', '.join(ON_CORRUPT)}")


def expanded(path: str | Path) -> Path:
    """A path whose `~` or `~user` is that user's home.

    Raises:
        DataError: there is no such user.

    >>> expanded("~no body/x")
    Traceback (most recent call last):
    ge2mst_jax.data.decode.DataError: ~no body/x: no home folder is known for this user
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: no home folder is known for this user") from error
