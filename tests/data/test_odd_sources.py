"""Data sets as people have them: odd names, links, pipes, damaged metadata; read right, or refused in one line."""

import gzip
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import TinySquares, idx_bytes, picture, prepare, write_folder, write_idx

from ge2mst_jax.data import MemorySource, open_source
from ge2mst_jax.data.decode import DataError, decode_whole
from ge2mst_jax.data.tfds_source import MissingDataError, parse_name, prepared_folder


def refusal(spec, split="train", **options) -> str:
    """What is said when a source is opened and read, in one line."""
    with pytest.raises(DataError) as caught:
        source = open_source(spec, split, **options)
        for index in range(len(source)):
            source.read(index)
    said = str(caught.value)
    assert said.isprintable() and said.encode()
    return said


@pytest.mark.parametrize("module", ["source", "digits", "folder", "idx", "tfds_source"])
def test_what_a_source_is_and_its_readers_stand_below_what_opens_them(module):
    text = Path(importlib.util.find_spec(f"ge2mst_jax.data.{module}").origin).read_text()
    imported = set(re.findall(r"from ge2mst_jax\.data\.(\w+) import", text))
    assert imported <= {"decode"} if module == "source" else imported <= {"decode", "source"}


# Arrays in memory

IMAGES, LABELS = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (IMAGES / 255, LABELS, r"images are float64 \(2, 4, 4, 1\): they must be uint8 \[N, H, W, 1 or 3\]"),
        (IMAGES.astype(np.uint16), LABELS, "images are uint16"),
        (IMAGES.astype(bool), LABELS, "images are bool"),
        (IMAGES[..., 0], LABELS, r"images are uint8 \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 2), np.uint8), LABELS, r"images are uint8 \(2, 4, 4, 2\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), LABELS, r"images are uint8 \(2, 1, 4, 4\)"),
        (np.zeros((2, 0, 4, 1), np.uint8), LABELS, r"images are uint8 \(2, 0, 4, 1\)"),
        (None, LABELS, "images are object"),
        (IMAGES, LABELS / 2, r"labels are float64 \(2,\): they must be whole numbers \[N\]"),
        (IMAGES, LABELS == 1, "labels are bool"),
        (IMAGES, np.eye(2, dtype=int), r"labels are int64 \(2, 2\)"),
        (IMAGES, np.array(["0", "1"]), "labels are <U1"),
        (IMAGES, np.array([0, -1]), "image 1: label -1 is out of range"),
        (IMAGES, np.array([0, 2**63], np.uint64), f"image 1: label {2**63} is out of range"),
        (IMAGES, LABELS[:1], "2 images but 1 labels"),
        (IMAGES[:0], LABELS[:0], "has no images"),
    ],
)
def test_arrays_that_are_no_split(images, labels, says):
    with pytest.raises(DataError, match=f"two.*{says}"):
        MemorySource("two", "train", images, labels, ("no", "yes"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint64])
def test_labels_of_any_whole_type_become_int32(dtype):
    assert MemorySource("two", "train", IMAGES, LABELS.astype(dtype), ("no", "yes")).labels.dtype == np.int32


@pytest.mark.parametrize(("spec", "split"), [(None, "train"), (3, "train"), ("digits", None), ("digits", ["train"])])
def test_names_that_are_no_text(spec, split):
    with pytest.raises(ValueError, match=r"unknown data set|split is"):
        open_source(spec, split)


@pytest.mark.parametrize("kind", ["idx", "folder"])
def test_homes_of_nobody(kind):
    assert refusal(f"{kind}:~nobody at all/x") == "~nobody at all/x: no home folder is known for this user"
    with pytest.raises(DataError, match="no home folder"):
        prepared_folder("mnist", "~nobody at all/x")


# IDX files


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 28), "bytes, but its sizes .* need"),
        (idx_bytes(np.zeros((6, 0, 0))), r"images are uint8 \(6, 0, 0, 1\): they must be"),
        (b"\0\0\x0d\x03" + struct.pack(">3I", 6, 5, 4) + bytes(480), "starts with 00000d03, not 00000803"),
    ],
    ids=["huge", "no pixels", "floats"],
)
def test_idx_sizes_that_cannot_be(tmp_path, images, says):
    (write_idx(tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    assert re.search(says, refusal(f"idx:{tmp_path}"))


def test_an_idx_file_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ge2mst_jax.data.idx.MAX_BYTES", 10**6)
    (write_idx(tmp_path) / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(10**8)))
    assert "holds more than 1000000 bytes" in refusal(f"idx:{tmp_path}")


# Folders


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set", train=2, test=2, classes=("ant", "bee", "cat"))


def add_dangling_class(folder):
    shutil.move(folder / "train/bee", folder / "bee elsewhere")
    (folder / "train/bee").symlink_to("../gone")


def add_loop(folder):
    (folder / "train/loop").symlink_to("loop")


def add_pipe(folder):
    os.mkfifo(folder / "train/ant/pipe.png")


def add_folder(folder):
    (folder / "train/ant/000.png.PNG").mkdir()


def add_dangling_image(folder):
    (folder / "train/ant/9.JPEG").symlink_to("../gone.jpeg")


def add_image_loop(folder):
    (folder / "train/ant/9.JPEG").symlink_to("9.JPEG")


def add_empty_class(folder):
    (folder / "train/dog").mkdir()


def add_class_of_folders(folder):
    (folder / "train/self").symlink_to(".")


def add_device(folder):
    (folder / "train/ant/zero.png").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (add_dangling_class, "train/bee: a link to nothing; mend or remove this class"),
        (add_loop, r"train/loop: can't be read \(Too many levels"),
        (add_pipe, "train/ant/pipe.png: not an image file but a link to nothing, a pipe or a device; remove it"),
        (add_device, "train/ant/zero.png: not an image file but a link to nothing, a pipe or a device; remove it"),
        (add_folder, "train/ant/000.png.PNG: not an image file but a folder; remove it"),
        (add_dangling_image, "train/ant/9.JPEG: not an image file but a link to nothing"),
        (add_image_loop, r"train/ant/9.JPEG: can't be read \(Too many levels"),
        (add_empty_class, "train/dog: no images in this class folder"),
        (add_class_of_folders, "train/self: no images in this class folder"),
    ],
)
def test_entries_that_are_not_what_they_seem(folder, change, says):
    change(folder)
    assert re.search(says, refusal(f"folder:{folder}"))


def test_a_class_that_became_a_link_to_nothing_since_is_no_shift_of_labels(folder):
    assert open_source(f"folder:{folder}", "test").classes == ("ant", "bee", "cat")
    add_dangling_class(folder)
    assert "a link to nothing" in refusal(f"folder:{folder}", "test")


def test_files_that_become_pipes_or_vanish_while_they_are_read(folder):
    source = open_source(f"folder:{folder}", "train")
    for index, change in enumerate([os.mkfifo, os.mkdir, lambda path: None]):
        path = source.path(index)
        os.unlink(path)
        change(path)
        with pytest.raises(DataError, match="can't be read") as caught:
            source.read(index)
        assert str(caught.value).startswith(path)


def test_classes_may_be_links_to_folders(folder):
    shutil.move(folder / "train/bee", folder / "bee elsewhere")
    (folder / "train/bee").symlink_to("../bee elsewhere")
    source = open_source(f"folder:{folder}", "train")
    assert source.classes == ("ant", "bee", "cat") and len(source) == 6
    assert np.array_equal(decode_whole(source.read(2).data, where=""), picture(100))


def test_what_is_passed_over_is_counted_and_said_once(folder, caplog):
    for name in ("train/ant/a.heic", "train/bee/b.HEIC", "train/bee/c.txt", "train/cat/README", "train/notes.txt"):
        (folder / name).write_text("")
    (folder / "train/cat/more").mkdir()
    (folder / "train/cat/.hidden").write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(open_source(f"folder:{folder}", "train")) == 6
    kinds = "2 .heic, 2 .txt, 1 folder, 1 without suffix"
    assert [r.getMessage() for r in caplog.records] == [
        f"data: {folder}/train: passed over what is no image by its suffix ({kinds})"
    ]
    caplog.clear()
    assert len(open_source(f"folder:{folder}", "test")) == 6 and not caplog.records


def test_classes_without_test_images_are_said(folder, caplog):
    shutil.rmtree(folder / "val/bee")
    assert open_source(f"folder:{folder}", "test").labels.tolist() == [0, 0, 2, 2]
    assert "set/val: no images of 1 of the 3 classes (bee)" in caplog.text


ODD = [
    "a\nb",
    "a\x1b[31m",
    "[bold]",
    "$x_$",
    b"\xff\xfe".decode(errors="surrogateescape"),
    "ü 漢",
    "-x",
    "%s",
    "a  b",
    "~",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_classes_and_files(tmp_path, name):
    write_folder(tmp_path, train=2, test=1, classes=("ant", name))
    os.rename(tmp_path / "train" / name / "000.png", tmp_path / "train" / name / f"{name}.PnG")
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.classes == tuple(sorted(("ant", name)))
    label = source.classes.index(name)
    assert [source.read(index).label for index in np.flatnonzero(source.labels == label)] == [label] * 2
    (tmp_path / "train" / name / f"{name}.PnG").write_bytes(b"no image")
    for index in np.flatnonzero(source.labels == label):
        example = source.read(index)
        if example.data == b"no image":
            with pytest.raises(DataError) as caught:
                decode_whole(example.data, where=example.where)
            assert str(caught.value).isprintable()
    (tmp_path / "val" / f"{name}2").mkdir()
    assert "has no class" in refusal(f"folder:{tmp_path}", "test")


def test_classes_are_in_alphabetical_order(tmp_path):
    write_folder(tmp_path, train=1, test=1, classes=("1", "2", "10"))
    assert open_source(f"folder:{tmp_path}", "train").classes == ("1", "10", "2")


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(TinySquares, tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def squares(prepared, tmp_path):
    """A set of its own, to be damaged."""
    return shutil.copytree(prepared, tmp_path / "tiny_squares" / "1.0.0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mnist[:80%]", "slices of a split are not read: write its images into FOLDER/train/CLASS"),
        ("mnist:train[:80%]", "slices of a split are not read"),
        ("mnist:latest", "version 'latest' must be three numbers, such as 3.0.1"),
        ("mnist:1.*.*", "version '1.\\*.\\*' must be three numbers"),
        ("mnist:", "version '' must be three numbers"),
        ("mnist:1.0.0:2.0.0", "must be three numbers"),
        ("../mnist", "'../mnist' must be TFDS's name of a set, NAME or NAME/CONFIG"),
        ("mnist/../..", "must be TFDS's name"),
        ("mnist/..", "must be TFDS's name"),
        ("/etc", "must be TFDS's name"),
        ("a b", "must be TFDS's name"),
        (" ", "must be TFDS's name"),
        ("mnist/", "must be TFDS's name"),
        ("mnist/a/b", "must be TFDS's name"),
        ("mnist\n", "must be TFDS's name"),
        ("mnïst", "must be TFDS's name"),
    ],
)
def test_names_that_tfds_does_not_have(tmp_path, text, says):
    assert re.search(says, refusal(f"tfds:{text}", data_dir=tmp_path))


def test_sets_with_configs(squares, tmp_path):
    data_dir = tmp_path / "configs"
    for config in ("plain", "en.v2-x"):
        shutil.copytree(squares, data_dir / "tiny_squares" / config / "1.0.0")
    says = "has the configs en.v2-x, plain; name one, such as tfds:tiny_squares/en.v2-x"
    assert says in refusal("tfds:tiny_squares", data_dir=data_dir)
    assert len(open_source("tfds:tiny_squares/en.v2-x", "train", data_dir)) == 8
    assert len(open_source("tfds:tiny_squares/plain:1.0.0", "train", data_dir)) == 8
    assert "no prepared data set there" in refusal("tfds:tiny_squares/other", data_dir=data_dir)


def hint(text, data_dir) -> tuple[str, str]:
    """Name and folder of the command that a refusal tells."""
    with pytest.raises(DataError) as caught:
        prepared_folder(text, data_dir)
    words = shlex.split(re.search(r"python experiments/prepare_data.py (.*?)( \(and|$)", str(caught.value))[1])
    assert words[1] == "--data-dir" and len(words) == 3
    return words[0], words[2]


def test_a_hint_that_is_followed_does_not_come_again(squares, tmp_path):
    info = squares / "dataset_info.json"
    assert hint("tiny_squares:2.0.0", tmp_path) == (
        "tiny_squares:2.0.0",
        str(tmp_path),
    )
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    name, elsewhere = hint("tiny_squares", tmp_path)
    assert elsewhere != str(tmp_path)
    with pytest.raises(MissingDataError):  # there the command prepares
        prepared_folder(name, elsewhere)
    spaced = tmp_path / "a folder"
    assert hint("tiny_squares", spaced) == ("tiny_squares", str(spaced))


def test_a_set_with_a_train_split_alone(squares, tmp_path):
    info = squares / "dataset_info.json"
    metadata = json.loads(info.read_text())
    only = [split for split in metadata["splits"] if split["name"] == "train"]
    info.write_text(json.dumps(metadata | {"splits": only}))
    said = refusal("tfds:tiny_squares", "test", data_dir=tmp_path)
    assert "has no labelled test split (splits: train); to train on a part of one and test on the rest, write" in said


BROKEN = [b"", b"[]", b"null", b"3", b"{}", b"{", b'{"a": 1}', b"\x00\xff\x93", b'{"splits": 3}', b'{"splits": [[]]}']


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", BROKEN)
def test_metadata_that_are_no_metadata(squares, tmp_path, file, content):
    (squares / file).write_bytes(content)
    assert str(squares) in refusal("tfds:tiny_squares", data_dir=tmp_path)


@pytest.mark.parametrize(("names", "number"), [("ant\n", 1), ("ant\nbee\ncat\n", 3)])
def test_names_of_classes_that_are_too_few_or_too_many(squares, tmp_path, names, number):
    (squares / "label.labels.txt").write_text(names)
    assert f"it has 2 classes but {number} names of them" in refusal("tfds:tiny_squares", data_dir=tmp_path)


def edited(squares, change):
    features = json.loads((squares / "features.json").read_text())
    change(features["featuresDict"]["features"])
    (squares / "features.json").write_text(json.dumps(features))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda f: f["image"]["image"].update(dtype="float32", shape={"dimensions": ["8", "8", "1"]}),
            "its images are float32: they must be uint8 or uint16",
        ),
        (lambda f: f.pop("label"), "its features are image, not an image and a class label"),
        (lambda f: f.update(label=f["image"]), "its features are image, label, not an image and a class label"),
        (lambda f: f.update(image=f["label"]), "its features are image, label, not an image and a class label"),
        (lambda f: f["image"].clear(), "can't open it"),
    ],
)
def test_features_that_are_no_labelled_images(squares, tmp_path, change, says):
    edited(squares, change)
    assert says in refusal("tfds:tiny_squares", data_dir=tmp_path)


def test_a_set_that_was_not_prepared_to_its_end(squares, tmp_path):
    (squares / "features.json").unlink()
    assert "not prepared to its end: remove it and do so" in refusal("tfds:tiny_squares", data_dir=tmp_path)


def test_names_that_tfds_has():
    assert parse_name("imagenet2012") == ("imagenet2012", "")
    assert parse_name("c4/en.noblocklist:3.1.0") == ("c4/en.noblocklist", "3.1.0")
