"""Prediction reads an image as the pipeline does, names its class, and refuses what it cannot read in one line."""

import json
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

NAMES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def use(monkeypatch):
    """Has the script load a tiny network that says this of its images."""

    def chosen(**about):
        monkeypatch.setattr(predict, "load_network", lambda *_: tiny_net(**about))

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
    probabilities = [row for _, row in predict.classify(net, [Path(name) for name in odd_files()], "dense")]
    assert np.shape(probabilities) == (len(odd_files()), 5) and np.allclose(np.sum(probabilities, 1), 1)
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
    [
        (os.mkfifo, "can't be read (not a regular file)"),
        (os.mkdir, "no images in this folder (looked for .jpg, "),
        (lambda path: None, "can't be read (No such file or directory)"),
    ],
)
def test_a_pipe_and_an_empty_folder_are_no_images(here, use, capsys, make, says):
    use()
    make("image.png")
    assert run(predict, predict.Predict, "image.png") == 2
    assert f"image.png: {says}" in capsys.readouterr().err


@pytest.fixture
def photos(here):
    """A folder with images in it, in a folder of it, and other files."""
    for name in ("a/2.png", "a/1.PNG", "b.png", ".hidden/c.png", ".d.png"):
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(odd_files()["exact.png"])
    Path("photos/a/notes\n.txt").write_text("no image")
    Path("photos/loop").symlink_to("..")
    return ["photos/a/1.PNG", "photos/a/2.png", "photos/b.png"]


def lines(capsys):
    """The objects on stdout, and what stands on stderr."""
    out, said = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], said


def test_a_folder_stands_for_its_images_and_what_else_is_there_is_named(use, photos, capsys):
    use(classes=CLASSES)
    assert run(predict, predict.Predict, "photos", "photos/b.png", "--json", "True") == 0
    found, said = lines(capsys)
    assert [each["image"] for each in found] == [*photos, "photos/b.png"]
    assert said == "passed over, no images by their suffix (1): photos/a/notes .txt\n"


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_json_is_a_line_an_image_and_nothing_else(here, use, capsys, classes, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 2)
    use(classes=classes, decode=DECODE)
    names = list(odd_files())[:5]
    for name in names:
        Path(name).write_bytes(odd_files()[name])
    assert run(predict, predict.Predict, *names, "--json", "True", "--top", 5, "--execution", "dense") == 0
    found, said = lines(capsys)
    assert not said and [each["image"] for each in found] == names
    net = tiny_net(decode=DECODE)
    for each in found:
        pixels = predict.read_image(Path(each["image"]), SHAPE, decoding(net))
        logits = np.asarray(net(pixels[None], execution="dense")[0])[0]
        order = np.argsort(-logits, kind="stable").tolist()
        assert [guess["class"] for guess in each["top"]] == order
        assert [guess["name"] for guess in each["top"]] == [classes and classes[n] for n in order]
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose([guess["probability"] for guess in each["top"]], expected[order], rtol=1e-5)


def test_table_has_a_row_a_class_and_the_name_of_the_image_once(here, use, capsys):
    use(classes=NAMES)
    Path("exact.png").write_bytes(odd_files()["exact.png"])
    assert run(predict, predict.Predict, "exact.png", "--top", 3) == 0
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert [row[0] for row in rows] == ["exact.png", "", ""]
    shares = [float(row[2]) for row in rows]
    assert shares == sorted(shares, reverse=True) and len({row[1] for row in rows}) == 3
    assert all(row[1] == f"{row[1][0]} {NAMES[int(row[1][0])]}" for row in rows)


@pytest.mark.parametrize("options", [[], ["--json", "True"]])
def test_a_file_that_is_none_does_not_lose_the_answers_of_the_others(here, use, capsys, monkeypatch, options):
    monkeypatch.setattr(predict, "BATCH", 2)
    use(classes=NAMES)
    good, files = odd_files()["exact.png"], ["bad.png", "wide.png", "one.png", "gone.png", "two.png"]
    for name, data in {
        "bad.png": b"text",
        "wide.png": odd_files()["wide.png"],
        "one.png": good,
        "two.png": good,
    }.items():
        Path(name).write_bytes(data)
    assert run(predict, predict.Predict, *files, "--on-corrupt", "skip", *options) == 0
    out, said = capsys.readouterr()
    said = said.splitlines()
    assert [line.split(":")[1].split()[0] for line in said] == ["bad.png", "wide.png", "gone.png"]
    assert all(line.startswith("left out: ") for line in said)
    if options:
        found = [json.loads(line) for line in out.splitlines()]
        assert [each["image"] for each in found] == files
        assert [f"left out: {each['error']}" for each in found if "error" in each] == said
        assert all(len(each["top"]) == 1 for each in found if "top" in each)
    else:
        assert [name in out for name in files] == [False, False, True, False, True]
    assert run(predict, predict.Predict, "bad.png", "--on-corrupt", "skip", *options) == 2
    out, said = capsys.readouterr()
    assert said.splitlines()[-1] == "predict.py: error: not one of 1 files can be classified"
    assert len(out.splitlines()) == bool(options)


@pytest.mark.parametrize(
    ("top", "says"),
    [
        ("0", "top is 0: it must be a whole number, 1 to"),
        ("6", "top (of 5 classes) is 6: it must be a whole number, 1 to 5"),
    ],
)
def test_more_classes_than_there_are_and_none_are_refused(here, use, capsys, top, says):
    use()
    Path("exact.png").write_bytes(odd_files()["exact.png"])
    assert run(predict, predict.Predict, "exact.png", "--top", top) == 2
    assert says in capsys.readouterr().err


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
