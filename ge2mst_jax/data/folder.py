"""A folder of images by class, read when they are needed."""

import collections
import dataclasses
import logging
import os
from pathlib import Path

import numpy as np

from ge2mst_jax.checks import cut, one_line
from ge2mst_jax.data.decode import DataError, read_file
from ge2mst_jax.data.source import Example

log = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
#: Folders that hold each split, the first that exists.
FOLDERS = {"train": ("train",), "test": ("val", "test", "validation")}


@dataclasses.dataclass(frozen=True, eq=False)
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
        return Example(read_file(path), int(self.labels[index]), path)


def open_folder(folder: Path, split: str, on_corrupt: str = "raise") -> FolderSource:
    """A split of `FOLDER/train/CLASS/*` and `FOLDER/val/CLASS/*` (or `test`).

    Classes are the subfolders of `train` (or links to folders) in alphabetical order, in which "10" comes before "2";
    files keep that order too. Names that start with a dot are passed over; what else is no image by its suffix, and
    classes of which the test split has no images, are counted and said in one line of the log.

    Raises:
        DataError: a folder is missing or can't be listed, a class has no images, the test split has a class that
            training lacks, or an entry is not what its name says: a link to nothing, a pipe or a folder called `.png`.
    """
    classes, loose = class_folders(split_folder(folder, "train"))
    root = split_folder(folder, split)
    here = classes
    if split != "train":
        here, loose = class_folders(root)
    for name in here:
        if name not in classes:
            raise DataError(f"{root / name}: {folder / 'train'} has no class {name!r}")
    passed, files = collections.Counter(loose), []
    for name in classes:
        names, others = image_names(root / name) if name in here else ([], [])
        passed.update(others)
        files.append(names)
    if passed:
        kinds = cut(one_line(", ".join(f"{count} {kind}" for kind, count in sorted(passed.items()))), 200)
        log.warning("data: %s: passed over what is no image by its suffix (%s)", one_line(root), kinds)
    if missing := [name for name in classes if name not in here]:
        some = cut(one_line(", ".join(missing)), 200)
        log.warning(
            "data: %s: no images of %d of the %d classes (%s)", one_line(root), len(missing), len(classes), some
        )
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


def class_folders(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the class folders, sorted, and what kinds of files lie beside them."""
    names, others = [], []
    for entry in entries(folder):
        if entry.is_dir():
            names.append(entry.name)
        elif os.path.exists(entry.path):
            others.append(kind_of(entry.name))
        else:  # passed over, it would shift the labels of all classes after it
            raise DataError(f"{entry.path}: a link to nothing; mend or remove this class")
    if not names:
        raise DataError(f"{folder}: no class folders there")
    return sorted(names), others


def image_names(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the images in a class folder, sorted, and of what kinds the other entries are."""
    names, others = [], []
    for entry in entries(folder):
        if not entry.name.lower().endswith(SUFFIXES):
            others.append("folder" if entry.is_dir() else kind_of(entry.name))
        elif entry.is_file():
            names.append(entry.name)
        else:
            kind = "a folder" if entry.is_dir() else "a link to nothing, a pipe or a device"
            raise DataError(f"{entry.path}: not an image file but {kind}; remove it")
    if not names:
        raise DataError(f"{folder}: no images in this class folder (looked for {', '.join(SUFFIXES)})")
    return sorted(names), others


def images_under(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images in a folder and its subfolders, in alphabetical order, and the other files, by their suffix.

    Names that start with a dot are passed over, and links to folders, which may lead back.

    Raises:
        DataError: there are no images, or a folder can't be read.
    """

    def refuse(error):
        raise DataError(f"{error.filename}: can't be read ({error.strerror})") from error

    images, others = [], []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                (images if name.lower().endswith(SUFFIXES) else others).append(Path(root, name))
    if not images:
        raise DataError(f"{folder}: no images in this folder (looked for {', '.join(SUFFIXES)})")
    return sorted(images), sorted(others)


def entries(folder: Path) -> list[os.DirEntry]:
    """Of a folder; names that start with a dot are left out."""
    with os.scandir(folder) as found:
        return [entry for entry in found if not entry.name.startswith(".")]


def kind_of(name: str) -> str:
    """A file's suffix, for counting.

    >>> kind_of("a.HEIC"), kind_of("LICENSE")
    ('.heic', 'without suffix')
    """
    return os.path.splitext(name)[1].lower() or "without suffix"
