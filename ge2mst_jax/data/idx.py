"""The IDX files in which MNIST and Fashion-MNIST are published, gzipped or plain."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ge2mst_jax.data.decode import DataError
from ge2mst_jax.data.source import MemorySource, check_label

PREFIXES = {"train": "train", "test": "t10k"}
#: Of a file's content; the largest of the published sets (EMNIST) takes half of it.
MAX_BYTES = 2**30
#: Images and labels: the file's name after the prefix, and its number of dimensions.
KINDS = {"images": ("images-idx3-ubyte", 3), "labels": ("labels-idx1-ubyte", 1)}


def open_idx(folder: Path, split: str, on_corrupt: str = "raise") -> MemorySource:
    """A split of MNIST or Fashion-MNIST: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, …, with or without `.gz`.

    Raises:
        DataError: a file is missing, truncated or not what its name says, or a label is above 9.
    """
    files = {kind: find(folder, f"{PREFIXES[split]}-{name}") for kind, (name, _) in KINDS.items()}
    images, labels = (read_idx(files[kind], KINDS[kind][1]) for kind in ("images", "labels"))
    if len(images) != len(labels):
        raise DataError(f"{files['labels']}: {len(labels)} labels for {len(images)} images")
    for item in np.flatnonzero(labels > 9)[:1]:
        check_label(int(labels[item]), 10, f"{files['labels']}, item {item}")
    return MemorySource(f"idx:{folder}", split, images[..., None], labels, tuple("0123456789"), on_corrupt)


def find(folder: Path, name: str) -> Path:
    """The file, gzipped or plain; both `-idx3-ubyte` and the `.idx3-ubyte` of some mirrors."""
    for spelling in (f"{name}.gz", name, f"{name.replace('-idx', '.idx')}.gz", name.replace("-idx", ".idx")):
        if (folder / spelling).is_file():
            return folder / spelling
    raise DataError(f"{folder}: no {name}.gz and no {name} there")


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file: a magic number `00 00 08 dimensions`, big-endian sizes, then the bytes.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", 1998.

    Raises:
        DataError: the gzip stream is damaged, the magic number is another, or there are fewer or more bytes than the
            sizes say, or more than `MAX_BYTES`.
    """
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}: damaged or truncated gzip ({error})") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{file}: holds more than {MAX_BYTES} bytes")
    header, magic = 4 + 4 * dimensions, bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{file}: starts with {content[:4].hex()}, not {magic.hex()}: no IDX file of {dimensions} dimensions"
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4"))
    if len(content) != header + math.prod(shape):
        raise DataError(f"{file}: {len(content) - header} bytes, but its sizes {shape} need {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
