"""Sources by name, and one clear error for each thing that can be wrong with a data set."""

import gzip
import json
import pickle
import re
import shutil
import time

import numpy as np
import pytest
from tiny_sets import TinyBroken, TinyPhotos, TinySquares, idx_bytes, picture, prepare, write_folder, write_idx

from ge2mst_jax.data.decode import CorruptImageError, DataError, decode_whole
from ge2mst_jax.data.digits import load_digits
from ge2mst_jax.data.source import MemorySource
from ge2mst_jax.data.sources import open_source
from ge2mst_jax.data.tfds_source import prepared_folder


def refused(match, spec, split="train", **options):
    """Opening (or reading all of) a source fails with one line."""
    with pytest.raises(DataError, match=match) as caught:
        source = open_source(spec, split, **options)
        for index in range(len(source)):
            source.read(index)
    assert "\n" not in str(caught.value)


def test_digits():
    source, digits = open_source("digits", "train"), load_digits()
    assert (len(source), source.image_shape, len(source.classes)) == (1437, (8, 8, 1), 10)
    assert np.array_equal(source.images, digits.train_images)
    assert np.array_equal(source.labels, digits.train_labels)
    assert len(open_source("digits", "test")) == 360


def test_unknown_names():
    with pytest.raises(
        ValueError, match=r"unknown data set 'cifar10': known are digits, idx:FOLDER, folder:FOLDER, tfds"
    ):
        open_source("cifar10", "train")
    with pytest.raises(ValueError, match="unknown data set 'tfds:'"):
        open_source("tfds:", "train")
    with pytest.raises(ValueError, match="split is 'val': it must be one of train, test"):
        open_source("digits", "val")
    with pytest.raises(ValueError, match="on_corrupt is 'ignore': it must be one of raise, skip"):
        open_source("digits", "train", on_corrupt="ignore")


def test_memory_checks_its_labels():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(DataError, match="two, train image 1: label 2 is out of range: there are 2 classes, 0 to 1"):
        MemorySource("two", "train", images, np.array([0, 2]), ("no", "yes"))
    with pytest.raises(DataError, match="2 images but 1 labels"):
        MemorySource("two", "train", images, np.array([0]), ("no", "yes"))
    with pytest.raises(DataError, match="the test split has no images"):
        MemorySource("two", "test", images[:0], np.array([]), ("no", "yes"))


# IDX files


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files(tmp_path, compress):
    write_idx(tmp_path, compress=compress)
    train, test = (open_source(f"idx:{tmp_path}", split) for split in ("train", "test"))
    assert train.images.shape == (6, 5, 4, 1) and test.images.shape == (4, 5, 4, 1)
    assert np.array_equal(train.images[..., 0], np.random.default_rng(6).integers(0, 256, (6, 5, 4)))
    assert np.array_equal(train.labels, np.arange(6))
    assert len(train.classes) == 10


def test_idx_files_that_are_missing(tmp_path):
    refused(rf"{tmp_path}: no train-images-idx3-ubyte.gz and no train-images-idx3-ubyte there", f"idx:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            gzip.compress(b"\0\0\x08\x01" + bytes(100)),
            "starts with 00000801, not 00000803: no IDX file of 3 dimensions",
        ),
        (gzip.compress(b""), "starts with , not 00000803"),
        (gzip.compress(idx_bytes(np.zeros((6, 5, 4)))[:-1]), r"119 bytes, but its sizes \(6, 5, 4\) need 120"),
        (gzip.compress(idx_bytes(np.zeros((6, 5, 4))) + b"\0"), r"121 bytes, but its sizes \(6, 5, 4\) need 120"),
        (gzip.compress(idx_bytes(np.zeros((6, 5, 4)))[:10]), "bytes, but its sizes"),
        (gzip.compress(idx_bytes(picture(0)))[:-20], "damaged or truncated gzip"),
        (b"no gzip", "damaged or truncated gzip"),
        (gzip.compress(bytes(100))[:12] + b"\xff" * 30, "damaged or truncated gzip"),
        (gzip.compress(idx_bytes(np.zeros((5, 5, 4)))), "6 labels for 5 images"),
    ],
    ids=["magic", "empty", "short", "long", "header", "cut", "no-gzip", "damaged", "count"],
)
def test_idx_files_that_are_damaged(tmp_path, content, match):
    (write_idx(tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(content)
    refused(rf"{tmp_path}/train-(images|labels)-idx.-ubyte.gz: .*{match}", f"idx:{tmp_path}")


def test_an_idx_label_out_of_range(tmp_path):
    labels = idx_bytes([0, 1, 2, 3, 10, 5])
    (write_idx(tmp_path) / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    refused(r"train-labels-idx1-ubyte.gz, item 4: label 10 is out of range: there are 10 classes", f"idx:{tmp_path}")


# Folders


def test_a_folder_of_images(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "bee" / ".hidden.png").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "ant" / "004.png").rename(tmp_path / "train" / "ant" / "a long name é.JPEG")
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee")
    assert train.labels.tolist() == [0] * 5 + [1] * 5 and test.labels.tolist() == [0] * 3 + [1] * 3
    assert train.path(4) == str(tmp_path / "train" / "ant" / "a long name é.JPEG")
    example = pickle.loads(pickle.dumps(test)).read(4)
    assert example.label == 1 and example.where == str(tmp_path / "val" / "bee" / "001.png")
    assert np.array_equal(decode_whole(example.data, where=example.where), picture(1101))


def test_a_folder_may_call_its_second_split_test(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    assert len(open_source(f"folder:{tmp_path}", "test")) == 6


def test_folders_that_are_wrong(tmp_path):
    refused(f"{tmp_path}/none: no folder train there", f"folder:{tmp_path}/none")
    write_folder(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    refused(f"{tmp_path}/train/cat: no images in this class folder", f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").rmdir()
    (tmp_path / "val" / "dog").mkdir()
    refused(f"{tmp_path}/val/dog: {tmp_path}/train has no class 'dog'", f"folder:{tmp_path}", "test")
    (tmp_path / "val" / "dog").rmdir()
    source = open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "train" / "ant" / "000.png").unlink()
    with pytest.raises(DataError, match=r"train/ant/000.png: can't be read \(No such file or directory\)"):
        source.read(0)
    for file in tmp_path.glob("val/*/*"):
        file.unlink()
    refused(f"{tmp_path}/val/ant: no images in this class folder", f"folder:{tmp_path}", "test")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    refused(f"{tmp_path}/empty/train: no class folders there", f"folder:{tmp_path}/empty")


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with the three tiny sets."""
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (TinySquares, TinyPhotos, TinyBroken):
        prepare(builder, folder)
    return folder


def pictures_of(images):
    """Which `picture(i)` each image is."""
    known = {picture(i).tobytes(): i for i in range(8)}
    return [known[image.tobytes()] for image in images]


def test_a_tfds_set_of_one_size_is_read_into_memory(prepared):
    source = open_source("tfds:tiny_squares", "train", prepared)
    assert isinstance(source, MemorySource)
    assert source.images.shape == (8, 8, 8, 3) and source.classes == ("ant", "bee")
    identity = np.array(pictures_of(source.images))
    assert sorted(identity) == list(range(8))
    assert np.array_equal(source.labels, identity % 2)
    assert len(open_source("tfds:tiny_squares:1.0.0", "test", prepared)) == 4


def test_a_tfds_set_of_many_sizes_is_decoded_when_it_is_read(prepared):
    source = pickle.loads(pickle.dumps(open_source("tfds:tiny_photos", "train", prepared)))
    assert len(source) == 8 and source.image_shape is None
    examples = [source.read(index) for index in range(8)]
    identity = pictures_of(decode_whole(example.data, where=example.where) for example in examples)
    assert sorted(identity) == list(range(8))
    assert [example.label for example in examples] == [i % 2 for i in identity]


def test_a_test_split_without_labels_is_passed_over(prepared):
    source = open_source("tfds:tiny_photos", "test", prepared)
    assert (source.split, len(source)) == ("validation", 3)


def test_a_broken_image_of_a_small_set(prepared):
    refused(r"tiny_broken/1.0.0, train record \d: not a readable image", "tfds:tiny_broken", data_dir=prepared)
    source = open_source("tfds:tiny_broken", "train", prepared, on_corrupt="skip")
    (bad,) = source.corrupt
    with pytest.raises(CorruptImageError, match=f"record {bad}: not a readable image"):
        source.read(bad)
    assert len(pictures_of(np.delete(source.images, bad, 0))) == 7


def test_a_tfds_set_that_is_not_there_fails_at_once(prepared):
    start = time.monotonic()
    command = re.escape(f"prepare it with: python experiments/prepare_data.py cifar10 --data-dir {prepared}")
    refused(f"{prepared}/cifar10: no prepared data set there; {command}", "tfds:cifar10", data_dir=prepared)
    refused(f"{prepared}/tiny_photos/2.0.0: no prepared data set", "tfds:tiny_photos:2.0.0", data_dir=prepared)
    assert time.monotonic() - start < 5


@pytest.fixture
def squares(tmp_path):
    """A set of its own, to be damaged."""
    return prepare(TinySquares, tmp_path)


def test_the_newest_version_is_taken(squares):
    for version in ("1.9.0", "1.10.0"):
        shutil.copytree(squares, squares.parent / version)
    assert prepared_folder("tiny_squares", squares.parent.parent).name == "1.10.0"
    assert prepared_folder("tiny_squares:1.9.0", squares.parent.parent).name == "1.9.0"


def test_tfds_sets_that_are_damaged(squares):
    data_dir, info = squares.parent.parent, squares / "dataset_info.json"
    shard = next(squares.glob("*train*"))
    content, metadata = shard.read_bytes(), json.loads(info.read_text())

    def fails(match):
        refused(match, "tfds:tiny_squares", data_dir=data_dir)

    shard.write_bytes(content[: len(content) // 2])
    fails(f"{squares}, train record 0: (can't be read|holds no image and label)")
    shard.unlink()
    fails(f"{squares}, train record 0: can't be read .*No such file")
    shard.write_bytes(content)
    for file_format in ("tfrecord", "parquet"):
        info.write_text(json.dumps(metadata | {"fileFormat": file_format}))
        fails(f"is prepared as {file_format}, not array_record; prepare it in another folder: python experiments/prep")
    info.write_text("{")
    fails(f"{info}: damaged")
    info.write_text(json.dumps(metadata | {"splits": metadata["splits"][:1]}))
    missing = "test" if metadata["splits"][0]["name"] == "train" else "train"
    refused(f"has no labelled {missing} split", "tfds:tiny_squares", missing, data_dir=data_dir)
    info.write_text(json.dumps(metadata))
    (squares / "features.json").unlink()
    fails(f"{squares}: no features.json there")


def test_a_tfds_label_out_of_range(squares):
    (squares / "label.labels.txt").write_text("ant\n")
    features = json.loads((squares / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "1"
    (squares / "features.json").write_text(json.dumps(features))
    refused(
        r"train record \d: label 1 is out of range: there are 1 classes, 0 to 0",
        "tfds:tiny_squares",
        data_dir=squares.parent.parent,
    )


def test_files_of_pixels_that_changed_size(squares):
    features = json.loads((squares / "features.json").read_text())
    features["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = ["9", "8", "3"]
    (squares / "features.json").write_text(json.dumps(features))
    match = r"train record 0: the image is \(8, 8, 3\), not \(9, 8, 3\)"
    refused(match, "tfds:tiny_squares", data_dir=squares.parent.parent)
