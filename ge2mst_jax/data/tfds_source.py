"""Data sets that TFDS prepared as array_record, read without TensorFlow."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from ge2mst_jax.checks import cut, one_line, shown
from ge2mst_jax.data.decode import CorruptImageError, DataError, decode_whole
from ge2mst_jax.data.source import Example, MemorySource, check_label, expanded
from ge2mst_jax.files import read_json

#: A set whose images have one size and take no more than this is decoded once, into memory.
MEMORY_BYTES = 256 * 2**20
TEST_SPLITS = ("test", "validation")
CHUNK = 1000  # records read at a time: one by one costs four times more
AS_FOLDERS = "write its images into FOLDER/train/CLASS and FOLDER/val/CLASS and give folder:FOLDER"
NAME = re.compile(r"[A-Za-z]\w*(/[\w+-][\w.+-]*)?", re.ASCII)
VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


class MissingDataError(DataError):
    """The set has not been prepared; the message gives the command that does."""


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Records of a prepared split, each an encoded image and a label."""

    name: str
    split: str
    folder: Path
    records: Any  # serialized `tf.train.Example`s, by index
    classes: tuple[str, ...]
    on_corrupt: str = "raise"
    channels: int = 3
    image_shape: None = None
    labels: None = None

    def __len__(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        return f"{self.folder}, {self.split} record {index}"

    def read(self, index: int) -> Example:
        return self.parse(self.fetch([index])[0], index)

    def fetch(self, indices: list[int]) -> list[bytes]:
        """Serialized records."""
        try:
            return self.records.__getitems__(indices)
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            if len(indices) > 1:  # which one it was
                return [self.fetch([index])[0] for index in indices]
            raise DataError(f"{self.where(indices[0])}: can't be read ({one_line(error)})") from error

    def parse(self, record: bytes, index: int) -> Example:
        """A serialized record as an encoded image and its label."""
        where = self.where(index)
        image, label = image_and_label(record, where)
        return Example(image, check_label(label, len(self.classes), where), where)


def image_and_label(record: bytes, where: str) -> tuple[bytes, int]:
    """What a serialized record holds; the label is -1 where TFDS had none."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
        return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]
    except (DecodeError, IndexError) as error:
        raise DataError(f"{where}: holds no image and label") from error


def open_tfds(name: str, split: str, data_dir: str | Path | None, on_corrupt: str = "raise"):
    """A split of a prepared set; what `open_source("tfds:NAME[/CONFIG][:VERSION]", …)` returns.

    Raises:
        DataError: the set is not there (the message gives the command that prepares it), is in another format than
            array_record, or has no images with labels.
    """
    folder = prepared_folder(name, data_dir)
    builder = open_builder(folder)
    source = labelled_split(builder, folder, split, on_corrupt)
    shape = builder.info.features["image"].shape
    if None in shape or len(source) * int(np.prod(shape)) > MEMORY_BYTES:
        return source
    return into_memory(source, (*shape[:2], source.channels))


def labelled_split(builder, folder: Path, split: str, on_corrupt: str) -> TfdsSource:
    """The first of the split's names that exists and has labels (ImageNet's `test` has none)."""
    for name in ("train",) if split == "train" else TEST_SPLITS:
        if name in builder.info.splits and builder.info.splits[name].num_examples:
            source = open_split(builder, folder, name, on_corrupt)
            if split == "train" or image_and_label(source.fetch([0])[0], source.where(0))[1] >= 0:
                return source
    raise DataError(
        f"{folder}: has no labelled {split} split (splits: {', '.join(builder.info.splits) or 'none'}); to train on a "
        f"part of one and test on the rest, {AS_FOLDERS}"
    )


def open_split(builder, folder: Path, name: str, on_corrupt: str = "raise") -> TfdsSource:
    """The records of a split, by TFDS's name of it."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    try:
        classes, channels = labels_and_channels(builder.info.features)
        records = builder.as_data_source(name, deserialize_method=DeserializeMethod.RAW_BYTES)
    except Exception as error:  # TFDS and array_record raise whatever they meet in damaged files
        raise DataError(f"{folder}: split {name} can't be opened ({one_line(error)})") from error
    return TfdsSource(f"tfds:{builder.info.full_name}", name, folder, records, classes, on_corrupt, channels)


def labels_and_channels(features) -> tuple[tuple[str, ...], int]:
    """Names of the classes (numbers where the set has none), and the channels that its images are read with.

    Raises:
        ValueError: the set has other features than an image of bytes and a class label.
    """
    found = dict(features.items()) if hasattr(features, "items") else {}
    image, label = found.get("image"), found.get("label")
    if not hasattr(image, "encoding_format") or not hasattr(label, "num_classes"):
        raise ValueError(
            f"its features are {', '.join(sorted(map(str, found))) or 'unknown'}, not an image and a class label"
        )
    if image.np_dtype not in (np.uint8, np.uint16):
        raise ValueError(f"its images are {np.dtype(image.np_dtype)}: they must be uint8 or uint16")
    names = tuple(label.names or map(str, range(label.num_classes)))
    if len(names) != label.num_classes:
        raise ValueError(f"it has {label.num_classes} classes but {len(names)} names of them")
    return names, 1 if image.shape[-1] == 1 else 3


def into_memory(source: TfdsSource, shape: tuple[int, int, int]) -> MemorySource:
    """Decodes the whole split."""
    images = np.zeros((len(source), *shape), np.uint8)
    labels, corrupt = np.zeros(len(source), np.int32), {}
    for start in range(0, len(source), CHUNK):
        indices = list(range(start, min(start + CHUNK, len(source))))
        for index, record in zip(indices, source.fetch(indices), strict=True):
            data, labels[index], where = source.parse(record, index)
            try:
                image = decode_whole(data, where=where, channels=shape[-1])
                if image.shape != shape:
                    raise CorruptImageError(f"{where}: the image is {image.shape}, not {shape}")
                images[index] = image
            except CorruptImageError as error:
                if source.on_corrupt == "raise":
                    raise
                corrupt[index] = str(error)
    return MemorySource(source.name, source.split, images, labels, source.classes, source.on_corrupt, corrupt)


def open_builder(folder: Path):
    """TFDS's reader of a prepared folder; it touches no network."""
    import tensorflow_datasets as tfds

    if not (folder / "features.json").is_file():  # without it TFDS would look for the set's code, and for a network
        raise DataError(f"{folder}: no features.json there; the set was not prepared to its end: remove it and do so")
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # damaged metadata make TFDS raise whatever its parsers meet
        raise DataError(f"{folder}: TFDS can't open it ({cut(one_line(error), 200)})") from error


def parse_name(text: str) -> tuple[str, str]:
    """`NAME[/CONFIG]` and the version, `""` if none is named.

    Raises:
        DataError: not a name of that form.

    >>> parse_name("imagenet_v2/top-images:3.0.0")
    ('imagenet_v2/top-images', '3.0.0')
    >>> parse_name("mnist:latest")
    Traceback (most recent call last):
    ge2mst_jax.data.decode.DataError: tfds:mnist:latest: version 'latest' must be three numbers, such as 3.0.1
    """
    name, colon, version = text.partition(":")
    if "[" in text:
        raise DataError(f"tfds:{text}: slices of a split are not read: {AS_FOLDERS}")
    if not NAME.fullmatch(name):
        raise DataError(f"tfds:{text}: {shown(name)} must be TFDS's name of a set, NAME or NAME/CONFIG")
    if colon and not VERSION.fullmatch(version):
        raise DataError(f"tfds:{text}: version {shown(version)} must be three numbers, such as 3.0.1")
    return name, version


def prepared_folder(text: str, data_dir: str | Path | None) -> Path:
    """`DATA_DIR/NAME[/CONFIG]/VERSION` (the newest version if none is named), which holds array_record files.

    Looks before TFDS does: TFDS would ask the network, for minutes where there is none.

    Raises:
        MissingDataError: not there.
        DataError: there in another format, or under configs of which none is named; or no such name can be.
    """
    name, version = parse_name(text)
    if data_dir is None:
        from tensorflow_datasets.core.constants import DATA_DIR as data_dir
    data_dir = expanded(data_dir)
    root = data_dir / name
    found = versions(root)
    configs = [] if found or "/" in name else [path.name for path in subfolders(root) if versions(path)]
    if configs:
        raise DataError(f"{root}: has the configs {', '.join(configs)}; name one, such as tfds:{name}/{configs[0]}")
    if not found or (version and version not in found):
        missing = root / version if version else root
        others = f" (there: {', '.join(found)})" if found else ""
        raise MissingDataError(
            f"{missing}: no prepared data set there{others}; prepare it with: {prepare_command(text, data_dir)}"
        )
    folder = root / (version or max(found, key=lambda version: tuple(map(int, version.split(".")))))
    file_format = read_info(folder).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise DataError(
            f"{folder}: is prepared as {cut(str(file_format), 40)}, not array_record; prepare it in another folder: "
            f"{prepare_command(text, data_dir / 'array_record')} (and read it there)"
        )
    return folder


def prepare_command(text: str, data_dir: Path) -> str:
    """What prepares a set, as one types it."""
    return shlex.join(["python", "experiments/prepare_data.py", text, "--data-dir", str(data_dir)])


def versions(folder: Path) -> list[str]:
    """Of a set that are prepared in a folder."""
    named = [path for path in subfolders(folder) if VERSION.fullmatch(path.name)]
    return [path.name for path in named if (path / "dataset_info.json").exists()]


def subfolders(folder: Path) -> list[Path]:
    """Sorted; none where there is no such folder."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def read_info(folder: Path) -> dict:
    """TFDS's metadata of a prepared set."""
    try:
        return read_json(folder / "dataset_info.json")
    except ValueError as error:
        raise DataError(str(error)) from error
