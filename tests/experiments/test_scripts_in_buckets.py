"""Every script that takes a run's folder takes one in a bucket."""

import json

import convert
import evaluate
import export
import predict
import pytest
from odd_images import run
from PIL import Image

from ge2mst_jax.data import load_digits
from ge2mst_jax.folders import exists, folder, names_in, read
from ge2mst_jax.train import TrainConfig, train

SHORT = dict(steps=6, batch_size=32, warmup_epochs=0.0, eval_every_epochs=100.0)
#: Of the clients: they close their connections when the process ends.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.mark.slow
def test_scripts_read_and_write_a_bucket(bucket, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address, run_dir = bucket + "/runs/a", folder(bucket + "/runs/a")
    train(TrainConfig(**SHORT), run_dir)

    assert run(evaluate, evaluate.Evaluate, address, "--limit", 20, "--batch-size", 10) == 0
    assert json.loads(read(run_dir / "evaluation.json"))["images"] == 20
    assert f"confusion matrix: {address}/confusion.png" in capsys.readouterr().out

    few = ("--limit", 20, "--certify", 10, "--calibrate", 20, "--batch-size", 10)
    assert run(convert, convert.Convert, address, *few) == 0
    (row,) = json.loads(read(run_dir / "converted" / "convert.json"))["rows"]
    place = run_dir / "converted" / row["code"]
    assert {"network", "report.html", "report.json", "figures"} <= set(names_in(place))

    image = tmp_path / "digit.png"
    Image.fromarray(load_digits().test_images[0, ..., 0]).save(image)
    assert run(predict, predict.Predict, image, "--checkpoint", f"{place}/network") == 0
    assert "probability" in capsys.readouterr().out

    assert run(export, export.Export, f"{place}/network", "--platforms", "cpu") == 0
    assert sorted(p.name for p in tmp_path.glob("network.*")) == [
        "network.dense.jax_export", "network.dense.jax_export.json",
    ]  # fmt: skip
    assert run(export, export.Export, address, "--out", bucket + "/x/y") == 2
    assert "out is gs://" in capsys.readouterr().err

    tuned = folder(bucket + "/runs/b")
    train(TrainConfig(**SHORT | {"init_from": address, "steps": 1}), tuned)
    assert json.loads(read(tuned / "config.json"))["init_from"] == address
    assert exists(tuned / "checkpoints" / "1" / "commit_success.txt")


@pytest.mark.parametrize("script", [(evaluate, evaluate.Evaluate), (export, export.Export), (convert, convert.Convert)])
def test_scripts_say_that_there_is_no_such_run(bucket, script, capsys):
    assert run(*script, bucket + "/nope") == 2
    said = capsys.readouterr().err
    assert f"{bucket}/nope" in said
    assert len(said.splitlines()) == 1
