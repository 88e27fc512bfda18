"""Data sets that TFDS prepared as array_record, read without TensorFlow."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ge2mst_jax.data.decode import CorruptImageError, DataError, decode_whole
from ge2mst_jax.data.sources import Example, MemorySource, check_label

#: A set whose images have one size and take no more than this is decoded once, into memory.
MEMORY_BYTES = 256 * 2**20
TEST_SPLITS = ("test", "validation")
CHUNK = 1000  # records read at a time: one by one costs four times more


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
            raise DataError(f"{self.where(indices[0])}: can't be read ({' '.join(str(error).split())})") from error

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
    raise DataError(f"{folder}: has no labelled {split} split (splits: {', '.join(builder.info.splits) or 'none'})")


def open_split(builder, folder: Path, name: str, on_corrupt: str = "raise") -> TfdsSource:
    """The records of a split, by TFDS's name of it."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise DataError(f"{folder}: has features {', '.join(sorted(features))}, not an image and a class label")
    try:
        records = builder.as_data_source(name, deserialize_method=DeserializeMethod.RAW_BYTES)
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"{folder}: split {name} can't be opened ({' '.join(str(error).split())})") from error
    classes, channels = class_names(features["label"]), 1 if features["image"].shape[-1] == 1 else 3
    return TfdsSource(f"tfds:{builder.info.full_name}", name, folder, records, classes, on_corrupt, channels)


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


def class_names(label) -> tuple[str, ...]:
    """Of a TFDS label; numbers where the set has no names."""
    return tuple(label.names or map(str, range(label.num_classes)))


def open_builder(folder: Path):
    """TFDS's reader of a prepared folder; it touches no network."""
    import tensorflow_datasets as tfds

    if not (folder / "features.json").is_file():  # without it TFDS would look for the set's code, and for a network
        raise DataError(f"{folder}: no features.json there; the set was not prepared to its end")
    try:
        return tfds.builder_from_directory(folder)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: TFDS can't open it ({' '.join(str(error).split())[:200]})") from error


def prepared_folder(name: str, data_dir: str | Path | None) -> Path:
    """`DATA_DIR/NAME[/CONFIG]/VERSION` (the newest version if none is named), which holds array_record files.

    Looks before TFDS does: TFDS would ask the network, for minutes where there is none.

    Raises:
        MissingDataError: not there.
        DataError: there in another format.
    """
    if data_dir is None:
        from tensorflow_datasets.core.constants import DATA_DIR as data_dir
    name, _, version = name.partition(":")
    root = Path(data_dir).expanduser() / name
    command = f"python experiments/prepare_data.py {name} --data-dir {data_dir}"
    found = [
        info.parent for info in root.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
    ]
    if version:
        found = [folder for folder in found if folder.name == version]
    if not found:
        missing = root / version if version else root
        raise MissingDataError(f"{missing}: no prepared data set there; prepare it with: {command}")
    folder = max(found, key=lambda folder: tuple(map(int, folder.name.split("."))))
    file_format = read_info(folder).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise DataError(
            f"{folder}: is prepared as {file_format}, not array_record; prepare it in another folder: {command}"
        )
    return folder


def read_info(folder: Path) -> dict:
    """TFDS's metadata of a prepared set."""
    file = folder / "dataset_info.json"
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"{file}: damaged ({error})") from error
