"""Prediction reads an image as the pipeline does, names its class, and refuses what it cannot read in one line."""

import os
from pathlib import Path

import numpy as np
import predict
import pytest
from odd_images import CLASSES, DECODE, SHAPE, bytes_of, odd_files, run, tiny_net, write_odd_folder
from PIL import Image

from ge2mst_jax.checks import one_line
from ge2mst_jax.data import BatchPlan, DecodeConfig, eval_batches, open_source
from ge2mst_jax.train.deployed import class_names, decoding


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def use(monkeypatch):
    """Has the script load a tiny network that says this of its images."""

    def chosen(**about):
        monkeypatch.setattr(predict, "load_deployed", lambda _: tiny_net(**about))

    return chosen


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_file_is_read_as_evaluation_reads_it(tmp_path, interpolation):
    source = open_source(f"folder:{write_odd_folder(tmp_path)}", "test")
    config = decoding(tiny_net(decode=DECODE | {"interpolation": interpolation}))
    (batch,) = eval_batches(source, BatchPlan(len(source), decode=config))
    for index, pixels in enumerate(batch["image"]):
        assert np.array_equal(predict.read_image(source.path(index), SHAPE, config), pixels), source.path(index)
    assert len(np.unique(batch["image"], axis=0)) == len(odd_files())


def test_classes_are_named_in_the_order_of_the_labels(here, use, capsys, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 4)
    use(classes=CLASSES, decode=DECODE)
    for name, data in odd_files().items():
        Path(name).write_bytes(data)
    net = tiny_net(decode=DECODE)
    probabilities = predict.classify(net, [Path(name) for name in odd_files()], "dense")
    assert probabilities.shape == (len(odd_files()), 5) and np.allclose(probabilities.sum(1), 1)
    assert run(predict, predict.Predict, *odd_files()) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row[0].strip() for row in rows] == list(odd_files())
    shown = ["1", "10", "2", "[/x]", r"$a \x1b[31m_b"]
    for row, expected in zip(rows, probabilities, strict=True):
        best = int(expected.argmax())
        assert [cell.strip() for cell in row[1:]] == [f"{best} {shown[best]}", f"{expected.max():.3f}"]


def test_classes_without_names_are_said(here, use, capsys):
    use()
    Path("exact.png").write_bytes(odd_files()["exact.png"])
    assert run(predict, predict.Predict, "exact.png") == 0
    said = capsys.readouterr().out
    assert "this network does not hold their names" in said


@pytest.mark.parametrize("name", ["[/x].png", "[bold]a.png", "a\nb.png", "a\x1b[31m.png", ":smile:.png"])
def test_odd_names_of_files_are_shown_as_they_are(here, use, capsys, name):
    use(classes=CLASSES)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(odd_files()["exact.png"])
    assert run(predict, predict.Predict, f"./{name}") == 0
    assert f" {one_line(name)} " in capsys.readouterr().out


def test_name_that_is_no_utf8_is_refused(here, use, capsys):
    use(classes=CLASSES)
    Path("a\udcff.png").write_bytes(odd_files()["exact.png"])
    assert run(predict, predict.Predict, "./a\udcff.png") == 2
    assert r"the argument ./a\udcff.png is no UTF-8: name files and folders in UTF-8" in capsys.readouterr().err


def float_tiff():
    return bytes_of(Image.new("F", (8, 8), 0.5), "TIFF")


def damaged():
    data = bytearray(odd_files()["exact.png"])
    data[data.index(b"IDAT") + 8] ^= 0xFF
    return bytes(data)


def bomb():
    data = bytearray(odd_files()["exact.png"])
    data[16:24] = (100_000).to_bytes(4) * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (float_tiff(), "32-bit pixels (mode F) have no 8-bit meaning"),
        (damaged(), "not a readable image"),
        (bomb(), "not a readable image"),
        (b"", "an empty file"),
        (b"text", "unknown format"),
        (odd_files()["wide.png"], "is 60x5 pixels: this network takes 8x8 and has no rule for other sizes"),
    ],
    ids=["float", "damaged", "bomb", "empty", "text", "size"],
)
def test_files_that_cannot_be_classified_are_one_line(here, use, capsys, content, says):
    use(classes=CLASSES)
    Path("good.png").write_bytes(odd_files()["exact.png"])
    Path("bad.png").write_bytes(content)
    assert run(predict, predict.Predict, "good.png", "bad.png") == 2
    out, said = capsys.readouterr()
    assert not out and len(said.splitlines()) == 1
    assert said.startswith("predict.py: error: bad.png") and says in said


@pytest.mark.parametrize(
    ("make", "says"),
    [(os.mkfifo, "not a regular file"), (os.mkdir, "Is a directory"), (lambda path: None, "No such file or directory")],
)
def test_a_pipe_and_a_folder_are_no_images(here, use, capsys, make, says):
    use()
    make("image.png")
    assert run(predict, predict.Predict, "image.png") == 2
    assert f"image.png: can't be read ({says})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("about", "says"),
    [
        (dict(decode=[]), "decode of this network is"),
        (dict(decode=3), "decode of this network is 3"),
        (dict(decode=dict(size=8)), "decode of this network is .*size"),
        (dict(decode=DECODE | {"image_size": 9}), "makes images of 9"),
        (dict(decode=DECODE | {"image_size": "8"}), "image_size is '8'"),
        (dict(classes=["a"]), "classes of this network are .*they must be the names of its 5"),
        (dict(classes=[1, 2, 3, 4, 5]), "classes of this network are"),
        (dict(classes="abcde"), "classes of this network are"),
    ],
)
def test_what_a_network_says_of_its_images_is_checked(about, says):
    net = tiny_net(**about)
    with pytest.raises(ValueError, match=says):
        decoding(net)
        class_names(net)


def test_what_a_network_says_of_its_images():
    assert decoding(tiny_net()) is None and class_names(tiny_net()) is None
    assert decoding(tiny_net(decode=DECODE)) == DecodeConfig(8, interpolation="bicubic")
    assert class_names(tiny_net(classes=CLASSES)) == CLASSES
