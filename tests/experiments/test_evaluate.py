"""Evaluation decodes as the run did, leaves out what it is told to, and says what its energies are."""

import csv
import dataclasses
import json

import evaluate
import numpy as np
import predict
import pytest
from odd_images import CLASSES, DECODE, run, tiny_net, write_odd_folder
from rich.console import Console
from tiny_networks import random_variables, tiny_model

from ge2mst_jax.convert import deploy
from ge2mst_jax.data import AugmentConfig, DecodeConfig, eval_batches, load_digits
from ge2mst_jax.train import TrainConfig, train
from ge2mst_jax.train.deployed import load_deployed

NAMES = [f"class {number}" for number in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_odd_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def use(monkeypatch, folder):
    """Has the script load a tiny network that says this of its images."""

    def chosen(**about):
        about = dict(data=f"folder:{folder}", decode=DECODE, classes=NAMES) | about
        monkeypatch.setattr(evaluate, "load_network", lambda *_: tiny_net(**about))

    return chosen


def evaluated(tmp_path, *arguments):
    """Status, and what was written."""
    status = run(evaluate, evaluate.Evaluate, "a run", "--out", tmp_path / "out", *arguments)
    file = tmp_path / "out" / "evaluation.json"
    return status, json.loads(file.read_text()) if file.exists() else None


def matrix(folder):
    """What `confusion.csv` counts."""
    _, *rows = csv.reader((folder / "confusion.csv").read_text().splitlines())
    return np.array([row[1:] for row in rows], int)


def test_matrix_accuracy_and_confused_pairs_are_one_count(tmp_path, use, folder, capsys):
    use()
    status, found = evaluated(tmp_path, "--execution", "dense")
    counts, net = matrix(tmp_path / "out"), tiny_net(decode=DECODE)
    source, plan = evaluate.open_images(net, evaluate.Evaluate(tmp_path, data=f"folder:{folder}"))
    (batch,) = eval_batches(source, plan)
    guesses = np.argmax(net(batch["image"][:50])[0], -1)
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (batch["label"][:50], guesses), 1)
    np.testing.assert_array_equal(counts, expected)
    assert status == 0 and found["accuracy"] == np.trace(expected) / 50 and "top5" not in found
    first, wrong = found["confused"][0], expected - np.diag(np.diag(expected))
    assert first["images"] == wrong.max() == wrong[NAMES.index(first["label"]), NAMES.index(first["prediction"])]
    assert first["of"] == 10
    said = " ".join(capsys.readouterr().out.split())
    assert f"accuracy, top-1 │ {100 * found['accuracy']:.2f} %" in said and "top-5" not in said
    assert f"{first['label']} taken for {first['prediction']} │ {first['images']} of 10" in said


def test_top_5_of_more_than_five_classes(tmp_path, monkeypatch, capsys):
    model = tiny_model(stages=(("conv", 8, 1),), num_classes=10)
    net = deploy(model, random_variables(model, (8, 8, 1)), (8, 8, 1), about={"data": "digits"})
    monkeypatch.setattr(evaluate, "load_network", lambda *_: net)
    _, found = evaluated(tmp_path, "--execution", "dense")
    digits = load_digits()
    order = np.argsort(-np.asarray(net(digits.test_images)[0]), 1, kind="stable")
    assert found["top5"] == (order[:, :5] == digits.test_labels[:, None]).any(1).mean()
    assert f"accuracy, top-5 │ {100 * found['top5']:.2f} %" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_energies_are_said_to_be_of_spikes(tmp_path, use, capsys, execution):
    use()
    status, found = evaluated(tmp_path, "--execution", execution)
    said = " ".join(capsys.readouterr().out.split())
    assert status == 0 and found["images"] == 50 and found["skipped"] == 0
    assert found["energy_execution"] == "spiking"
    assert ("energy an image were it run in spikes, exact" in said) == (execution == "dense")
    assert ("energy an image, exact" in said) == (execution == "spiking")


def test_images_are_decoded_by_the_networks_own_rule(tmp_path, use, folder):
    use(decode=DECODE | {"interpolation": "bilinear"})
    net = tiny_net(decode=DECODE)
    source, plan = evaluate.open_images(net, evaluate.Evaluate(tmp_path, data=f"folder:{folder}"))
    assert plan.decode == DecodeConfig(8, interpolation="bicubic") and len(source) == 50
    _, plan = evaluate.open_images(tiny_net(), evaluate.Evaluate(tmp_path, data=f"folder:{folder}"))
    assert plan.decode == DecodeConfig(8)  # not known: the network's size, not 224
    assert evaluated(tmp_path)[1]["accuracy"] <= 1


@pytest.fixture
def damaged(folder):
    """One test image is cut in half."""
    file = folder / "val" / "class 1" / "exact.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    yield file
    file.write_bytes(whole)


def test_an_image_that_cannot_be_decoded(tmp_path, use, damaged, capsys):
    use()
    assert evaluated(tmp_path) == (2, None)
    assert f"{damaged}: not a readable image" in capsys.readouterr().err
    status, found = evaluated(tmp_path, "--on-corrupt", "skip")
    assert status == 0 and (found["images"], found["skipped"]) == (49, 1)
    use(on_corrupt="skip")
    assert evaluated(tmp_path)[1]["skipped"] == 1
    assert "images left out: they can't be decoded" in " ".join(capsys.readouterr().out.split())
    assert evaluated(tmp_path, "--on-corrupt", "raise")[0] == 2
    assert evaluated(tmp_path, "--limit", 12, "--batch-size", 5)[1]["images"] == 12
    assert evaluated(tmp_path, "--limit", 13, "--batch-size", 5)[1]["images"] == 12  # the thirteenth is the damaged one


@pytest.mark.parametrize(
    ("about", "arguments", "says"),
    [
        (dict(data=None), [], "data: name the data set of a deployed network, such as --data digits"),
        (dict(), ["--data", "digits"], "digits has images (8, 8, 1): this network takes (8, 8, 3)"),
        (dict(), ["--data", "folder:gone"], "gone: no folder train there"),
        (dict(classes=NAMES[::-1]), [], "its classes have another order"),
        (dict(classes=["a"]), [], "classes of this network are ['a']: they must be the names of its 5"),
        (dict(decode={}), [], "decode of this network makes images of 224"),
    ],
)
def test_data_that_do_not_fit_the_network_are_refused(tmp_path, use, capsys, about, arguments, says):
    use(**about)
    assert evaluated(tmp_path, *arguments) == (2, None)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and says in said


def test_other_names_of_classes_are_said(tmp_path, use, capsys):
    use(classes=CLASSES)
    status, _ = evaluated(tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert status == 0 and "note: class 0 is class 0 in folder:" in said and "classes are compared by number" in said


def test_odd_names_are_shown_as_they_are(tmp_path, use, folder, capsys, monkeypatch):
    source = tmp_path / "[/x] $a"
    for split in ("train", "val"):
        for number, name in enumerate(["$x_$", "[bold]", "a\nb", "a\udcff", "ü 漢"]):
            target = source / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(folder / split / f"class {number}")
    use(classes=None, data=f"folder:{source}")
    assert run(evaluate, evaluate.Evaluate, "[/b]", "--out", tmp_path / "[/y]") == 0
    assert (tmp_path / "[/y]" / "confusion.png").is_file()
    head, *rows = csv.reader((tmp_path / "[/y]" / "confusion.csv").read_text().splitlines())
    assert head[1:] == [row[0] for row in rows] == ["$x_$", "[bold]", "a b", r"a\udcff", "ü 漢"]
    said = "".join(capsys.readouterr().out.split())
    assert "[/b]" in said and "[/x]" in said and "[/y]" in said


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "1e20", "True"])
@pytest.mark.parametrize("option", ["--batch-size", "--limit", "--step"])
def test_numbers_out_of_range(tmp_path, use, option, value):
    use()
    assert evaluated(tmp_path, option, value) == (2, None)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("a file")])
def test_a_checkpoint_that_is_no_folder(tmp_path, make):
    path = tmp_path / "nope"
    make(path)
    with pytest.raises(ValueError, match=f"no checkpoint at {path}: there is no such folder; give that of a training"):
        load_deployed(path)
    path = tmp_path / "deployed"
    path.mkdir()
    with pytest.raises(ValueError, match=r"step is 3: .* is no folder of a training run"):
        load_deployed(path, 3)


@pytest.mark.slow
def test_a_run_on_files_is_evaluated_and_predicts_as_it_was_trained(folder, damaged, tmp_path, capsys):
    config = TrainConfig(
        data=f"folder:{folder}", decode=DecodeConfig(**DECODE), on_corrupt="skip", steps=2, batch_size=8,
        warmup_epochs=0, augment=AugmentConfig(),
    )  # fmt: skip
    trained = train(config, tmp_path / "run", Console())
    net = load_deployed(tmp_path / "run")
    assert net.about["data"] == f"folder:{folder}" and net.about["on_corrupt"] == "skip"
    assert net.about["decode"] == dataclasses.asdict(DecodeConfig(**DECODE)) and net.about["classes"] in (None, NAMES)
    assert run(evaluate, evaluate.Evaluate, tmp_path / "run", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (found["images"], found["skipped"]) == (49, 1) and matrix(tmp_path / "out").sum() == 49
    assert trained.evaluation["examples"] == 49
    capsys.readouterr()
    files = [folder / "val" / "class 0" / name for name in ("turned.jpg", "wide.png", "sixteen.png")]
    assert run(predict, predict.Predict, *files, "--checkpoint", tmp_path / "run") == 0
    assert "turned.jpg" in "".join(capsys.readouterr().out.split())
