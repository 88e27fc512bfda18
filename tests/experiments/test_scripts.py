"""A pulse of the scripts that people launch, and what they say to a wrong input."""

import csv
import gc
import importlib.util
import json
import sys

import bench
import evaluate
import export
import numpy as np
import predict
import pytest
import quickstart
import train
from PIL import Image

from ge2mst_jax.data import load_digits
from ge2mst_jax.train.command import run_command


def run(module, options, *arguments):
    """Runs a script's command line in this process; returns its exit status."""
    before, sys.argv = sys.argv, [f"{module.__name__}.py", *map(str, arguments)]
    try:
        run_command(module.main, options)
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick start")
    assert run(quickstart, quickstart.Quickstart, "--run-dir", folder, "--train.epochs", 2) == 0
    return folder


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "digit.png"
    Image.fromarray(load_digits().test_images[0, ..., 0]).save(path)
    return path


@pytest.mark.slow
def test_quickstart_writes_its_report_and_a_checkpoint(run_dir):
    report = json.loads((run_dir / "report.json").read_text())
    assert report["certificate"]["images"] == 360
    assert report["certificate"]["spikes_differing"] == report["certificate"]["levels_differing"] == 0
    assert report["audit"]["real_x_real"] == 0
    assert report["accuracy"]["dense"] == report["accuracy"]["spiking"] > 0.5
    assert (run_dir / "report.html").is_file()
    assert not [p for p in run_dir.rglob("*") if p.name.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_predict_classifies_an_image(run_dir, digit, execution, capsys):
    checkpoint = run_dir / "checkpoint"
    assert run(predict, predict.Predict, digit, "--checkpoint", checkpoint, "--execution", execution) == 0
    assert "digit.png" in capsys.readouterr().out


# A load that fails leaves TensorStore a callback into the event loop that Orbax has closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_predict_refuses_an_image_of_another_size_and_a_damaged_checkpoint(run_dir, digit, tmp_path, capsys):
    wide = tmp_path / "wide.png"
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(wide)
    assert run(predict, predict.Predict, wide, "--checkpoint", run_dir / "checkpoint") == 2
    assert "wide.png is 9x8 pixels: this network takes 8x8" in capsys.readouterr().err

    broken = tmp_path / "checkpoint"
    files = [p for p in (run_dir / "checkpoint").rglob("*") if p.is_file()]
    for file in files:
        copy = broken / file.relative_to(run_dir / "checkpoint")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    largest = max(broken.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert run(predict, predict.Predict, digit, "--checkpoint", broken) == 2
    said = capsys.readouterr().err
    gc.collect()  # the callback's complaint belongs to this test
    assert "checkpoint" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.png"], "no checkpoint at"),
        (["missing.png", "--checkpoint", "."], "is not one of a deployed network|cannot be read"),
        ([], "no image: name at least one image file"),
    ],
)
def test_predict_refuses_in_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(predict, predict.Predict, *arguments) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert any(part in said for part in says.split("|"))


def test_predict_refuses_what_is_no_image(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png: not a readable image \(unknown format\)"):
        predict.read_image(text, (8, 8, 1))
    with pytest.raises(ValueError, match=r"absent\.png: can't be read \(No such file or directory\)"):
        predict.read_image(tmp_path / "absent.png", (8, 8, 1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--train.code", "0x4"], "groups is 0: it must be a whole number, 1 to 255"),
        (["--train.model", "ge2mst_xl"], "unknown model 'ge2mst_xl': known are ge2mst_nano"),
        (["--train.epochs", "0"], "epochs is 0.0: it must be a number above 0"),
        (["--train.spike-budget", "-1"], "spike_budget is -1.0: it must be a number above 0 and at most 8"),
    ],
)
def test_quickstart_refuses_in_one_line(arguments, says, capsys, tmp_path):
    assert run(quickstart, quickstart.Quickstart, "--run-dir", tmp_path / "run", *arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_quickstart_goes_on_with_a_run_and_refuses_another_one_in_its_folder(run_dir, capsys):
    before = (run_dir / "metrics.jsonl").read_text()
    assert run(quickstart, quickstart.Quickstart, "--run-dir", run_dir, "--train.epochs", 2) == 0
    assert (run_dir / "metrics.jsonl").read_text() == before
    assert run(quickstart, quickstart.Quickstart, "--run-dir", run_dir, "--train.epochs", 3) == 2
    assert "the run in this folder has epochs 2.0, not 3.0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_evaluate_reads_a_run_and_a_deployed_network(run_dir, execution, tmp_path, capsys):
    common = ["--execution", execution, "--limit", 30]
    assert run(evaluate, evaluate.Evaluate, run_dir, "--out", tmp_path / "run", *common) == 0
    deployed = [run_dir / "checkpoint", "--data", "digits", "--out", tmp_path / "deployed"]
    assert run(evaluate, evaluate.Evaluate, *deployed, *common) == 0
    assert "accuracy" in capsys.readouterr().out
    for name in ("run", "deployed"):
        found = json.loads((tmp_path / name / "evaluation.json").read_text())
        _, *rows = csv.reader((tmp_path / name / "confusion.csv").read_text().splitlines())
        counts = np.array([row[1:] for row in rows], int)
        assert found["images"] == counts.sum() == 30
        assert found["accuracy"] == np.trace(counts) / 30
        assert found["energy"]["exact"]["total_mj"] > 0
        assert found["audit"]["real_x_real"] == 0
        assert (tmp_path / name / "confusion.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing"], "no checkpoint at missing: there is no such folder"),
        (["missing", "--execution", "training"], "dense"),
        (["missing", "--limit", "0"], "limit is 0: it must be a whole number, 1 to"),
    ],
)
def test_evaluate_refuses_in_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(evaluate, evaluate.Evaluate, *arguments, "--data", "digits") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "missing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("platforms", [("cpu", "cuda", "tpu"), ("tpu",)])
def test_export_compares_what_it_wrote(run_dir, platforms, tmp_path, capsys):
    out = tmp_path / "exported [x]" / "digits"
    assert run(export, export.Export, run_dir / "checkpoint", "--platforms", *platforms, "--out", out) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("a fresh process" in said) == ("cpu" in platforms)
    assert ("not run" in said) == ("cpu" not in platforms)
    assert json.loads((tmp_path / "exported [x]" / "digits.json").read_text())["platforms"] == list(platforms)


@pytest.mark.slow
def test_export_refuses_a_file_that_differs_and_one_that_does_not_run(run_dir, tmp_path, capsys, monkeypatch):
    arguments = run_dir / "checkpoint", "--platforms", "cpu", "--out", tmp_path / "digits"
    monkeypatch.setattr(export, "ALONE", export.ALONE.replace("np.load(", "255 - np.load("))
    assert run(export, export.Export, *arguments) == 2
    assert "digits does not give the network's logits on cpu" in capsys.readouterr().err
    assert not (tmp_path / "digits").exists()  # what must not be used is not left to be used
    assert not (tmp_path / "digits.json").exists()
    monkeypatch.setattr(export, "ALONE", "import ge2mst_nowhere")
    assert run(export, export.Export, *arguments) == 2
    assert "digits does not run without this package: ModuleNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing"], "no checkpoint at missing: there is no such folder"),
        (["missing", "--execution", "training"], "dense"),
        (["missing", "--platforms", "gpu"], "cuda"),
        (["missing", "--step", "0"], "step is 0: it must be a whole number, 1 to"),
        ([], "required"),
    ],
)
def test_export_refuses_in_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(export, export.Export, *arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def train_by_name(*arguments):
    """The exit status of `experiments/train.py`."""
    before, sys.argv = sys.argv, ["train.py", *map(str, arguments)]
    try:
        train.launch_by_name()
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


@pytest.mark.slow
def test_train_runs_an_experiment_by_its_name(tmp_path, capsys):
    options = ["--steps", 3, "--batch-size", 32, "--warmup-epochs", 0, "--profile", "True"]
    assert train_by_name("digits", "--run-dir", tmp_path / "run", *options) == 0
    said = capsys.readouterr().out
    assert said.startswith("devices: 8 cpu\nresume order 3 of 3: seed 0\n")
    assert "step 3/3" in said
    assert "test accuracy" in said
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert {"learning_rate", "gradient_norm", "accuracy", "data_seconds"} < set(lines[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mnist"], "unknown experiment 'mnist': known are cifar10, cifar100, digits"),
        (["--model", "ge2mst_nano"], "an experiment comes before '--model': known are cifar10, cifar100, digits"),
        (["digits", "--batch-size", "0"], "batch_size is 0: it must be a whole number, 1 to 16777216"),
        (["digits", "--batch-sizes", "8"], "--batch-sizes"),
        (["digits", "--epochs", "many"], "many"),
        (["digits", "--data", "idx:nowhere"], "nowhere"),
        (
            ["digits", "--run-dir", "s3://bucket/run"],
            "run_dir is s3://bucket/run: of buckets only gs:// is known; mount",
        ),
    ],
)
def test_train_refuses_what_it_does_not_know(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_by_name(*arguments) == 2
    assert says in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_train_lists_the_experiments(capsys):
    assert train_by_name() == 0
    assert "experiments: cifar10, cifar100, digits, fashion_mnist" in capsys.readouterr().out


def test_bench_refuses_a_file_that_cannot_be_written_before_it_measures(tmp_path, capsys):
    assert run(bench, bench.Bench, "--json", tmp_path / "gone" / "bench.json") == 2
    assert f"json is {tmp_path}/gone/bench.json: there is no folder {tmp_path}/gone" in capsys.readouterr().err


def test_bench_refuses_pytorch_where_there_is_none_before_it_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
    assert run(bench, bench.Bench, "--pytorch", "True", "--json", tmp_path / "bench.json") == 2
    said = capsys.readouterr().err
    assert "install the extra: pip install torch spikingjelly" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_bench_prints_and_writes_its_figures(tmp_path, capsys):
    path = tmp_path / "bench.json"
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(20):
                noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(noise).save(tmp_path / split / name / f"{i}.png")
    assert run(bench, bench.Bench, "--quick", "True", "--json", path, "--images", tmp_path) == 0
    found = json.loads(path.read_text())
    speeds = found["deployed"]["images_per_second"]
    assert set(speeds) == {"relu", "training", "dense_24", "spiking_24", "dense_31", "spiking_31"}
    assert all(speed > 0 for speed in speeds.values())
    memory = [row["expg"]["bytes"] for row in found["training_over_time_steps"].values()]
    assert len(set(memory)) == 1
    assert found["input_pipeline"]["ratio"] > 0.2
    assert "twin / ReLU" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_times_a_peer_beside_ours_and_beside_pytorch_where_it_is_installed(tmp_path, capsys):
    path, beside = tmp_path / "bench.json", importlib.util.find_spec("spikingjelly") is not None
    arguments = ["--only", "peers", "--quick", "True", "--pytorch", beside, "--json", path]
    assert run(bench, bench.Bench, *arguments) == 0
    ours, peer = json.loads(path.read_text())["peers"]["rows"]
    assert (ours["model"], peer["model"]) == ("ge2mst_nano", "sdt_2_512")
    assert (ours["parameters"], peer["parameters"]) == (117_082, 10_227_274)
    assert set(ours["training"]) == {"jax"}
    frameworks = {"jax", "pytorch"} if beside else {"jax"}
    for work in ("training", "inference"):
        assert set(peer[work]) == {"ge2mst_nano"} | frameworks
        assert ours[work]["jax"] == peer[work]["ge2mst_nano"] > 0
    assert set(peer["bytes"]) == frameworks
    assert min(peer["bytes"].values()) > 4 * peer["parameters"]  # their gradient
    assert ("in PyTorch" in capsys.readouterr().out) == beside
