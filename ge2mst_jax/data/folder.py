"""A folder of images by class, read when they are needed."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from ge2mst_jax.data.decode import DataError
from ge2mst_jax.data.sources import Example

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
#: Folders that hold each split, the first that exists.
FOLDERS = {"train": ("train",), "test": ("val", "test", "validation")}


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files `root/classes[label]/name`, decoded to RGB when they are read."""

    name: str
    split: str
    root: str
    classes: tuple[str, ...]
    names: np.ndarray  # [N] bytes: a million str would travel to each worker process one by one
    labels: np.ndarray  # [N] int32
    on_corrupt: str = "raise"
    channels: int = 3
    image_shape: None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """The file of an example."""
        return os.path.join(self.root, self.classes[self.labels[index]], os.fsdecode(self.names[index]))

    def read(self, index: int) -> Example:
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                return Example(file.read(), int(self.labels[index]), path)
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror})") from error


def open_folder(folder: Path, split: str, on_corrupt: str = "raise") -> FolderSource:
    """A split of `FOLDER/train/CLASS/*` and `FOLDER/val/CLASS/*` (or `test`).

    Classes are the subfolders of `train` in alphabetical order; files keep that order too. Names that start with a dot
    and files that are no images (by suffix) are passed over.

    Raises:
        DataError: a folder is missing, a class has no images, or the test split has a class that training lacks.
    """
    classes = subfolders(split_folder(folder, "train"))
    root = split_folder(folder, split)
    for name in subfolders(root):
        if name not in classes:
            raise DataError(f"{root / name}: {folder / 'train'} has no class {name!r}")
    files = [image_names(root / name) if (root / name).is_dir() else [] for name in classes]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(names) for names in files])
    names = np.array([os.fsencode(name) for names in files for name in names])
    return FolderSource(f"folder:{folder}", split, str(root), tuple(classes), names, labels, on_corrupt)


def split_folder(folder: Path, split: str) -> Path:
    """The folder that holds a split."""
    for name in FOLDERS[split]:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(
        f"{folder}: no folder {' or '.join(FOLDERS[split])} there (looked for FOLDER/{FOLDERS[split][0]}/CLASS/IMAGE)"
    )


def subfolders(folder: Path) -> list[str]:
    """Names of the class folders, sorted."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: no class folders there")
    return names


def image_names(folder: Path) -> list[str]:
    """Names of the images in a class folder, sorted."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES) and not e.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: no images in this class folder (looked for {', '.join(SUFFIXES)})")
    return names
