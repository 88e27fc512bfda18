"""A run becomes deployed networks: of an ANN under several codes, of a spiking one as it is; what is refused."""

import json

import convert
import pytest
from odd_images import run

from ge2mst_jax.convert import load_net
from ge2mst_jax.train import TrainConfig, as_json, train

SHORT = dict(steps=6, batch_size=32, warmup_epochs=0.0, eval_every_epochs=100.0)
FEW = ("--limit", 20, "--certify", 10, "--calibrate", 20, "--batch-size", 10)


def converted(run_dir, *arguments):
    """Status, and what was written."""
    status = run(convert, convert.Convert, run_dir, *FEW, *arguments)
    file = run_dir / "converted" / "convert.json"
    return status, json.loads(file.read_text()) if file.exists() else None


@pytest.mark.slow
def test_an_ann_becomes_a_network_for_each_code_and_goes_on_where_it_was(tmp_path, capsys):
    train(TrainConfig(neuron="relu", extra_steps=2, freeze="^stage_0/", **SHORT), tmp_path / "ann")
    arguments = ("--codes", "1x4", "--finetune-epochs", 0.1)
    status, found = converted(tmp_path / "ann", *arguments)
    said, wrong = capsys.readouterr()
    assert status == 0, wrong
    assert "converted, no training" in said and "fine-tuned" in said and "levels unlike" in said
    (row,) = found["rows"]
    assert row["steps"] == 4 and row["differing"] == "0, 0, 0" and row["dense"] == row["spiking"]
    assert row["test_images"] == 20 and row["exact_mj"] > 0 and (row["code"], row["qk_code"]) == ("1x4", "1x2")
    folder = tmp_path / "ann" / "converted" / "1x4"
    net = load_net(folder / "network")
    assert (net.digest, str(net.model.code), net.about["data"]) == (row["digest"], "1x4", "digits")
    assert (folder / "report.html").is_file()
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["extra_steps"], config["freeze"]) == (0, None)  # those were the ANN's
    again = converted(tmp_path / "ann", *arguments)[1]
    assert "resume order 1 of 3" in capsys.readouterr().out
    assert again == found


@pytest.mark.slow
def test_no_fine_tuning_is_none_and_every_code_has_its_column(tmp_path, capsys):
    train(TrainConfig(neuron="relu", **SHORT), tmp_path / "ann")
    status, found = converted(tmp_path / "ann", "--finetune-epochs", 0, "--codes", "1x4", "2x2")
    said, wrong = capsys.readouterr()
    assert status == 0, wrong
    assert [(row["code"], row["finetuned"], row["steps"]) for row in found["rows"]] == [
        ("1x4", None, None), ("2x2", None, None),
    ]  # fmt: skip
    assert "1x4 (1x2)" in said and "2x2 (1x2)" in said and "fine-tuned" not in said
    assert not (tmp_path / "ann" / "converted" / "1x4" / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("neuron", "code"), [("expg", "2x2"), ("sfa", "4x1")])
def test_a_spiking_run_is_deployed_as_it_is(tmp_path, capsys, neuron, code):
    train(TrainConfig(neuron=neuron, code=code, **SHORT), tmp_path / "spiking")
    status, found = converted(tmp_path / "spiking")
    said, wrong = capsys.readouterr()
    assert status == 0, wrong
    assert [(row["code"], row["differing"]) for row in found["rows"]] == [(code, "0, 0, 0")]
    assert "ann" not in found["rows"][0] and "as trained" in said
    assert load_net(tmp_path / "spiking" / "converted" / code / "network").model.neuron == neuron


@pytest.mark.slow
def test_a_qcfs_run_is_run_rate_coded_for_each_number_of_steps(tmp_path, capsys):
    train(TrainConfig(neuron="qcfs", code="4x1", **SHORT), tmp_path / "qcfs")
    status, found = converted(tmp_path / "qcfs", "--rate-steps", 2, 8)
    said, wrong = capsys.readouterr()
    assert status == 0, wrong
    assert [(row["rate_steps"], row["test_images"]) for row in found["rows"]] == [(2, 20), (8, 20)]
    assert all(0 <= row["rate_coded"] <= 1 and row["trained"] == found["rows"][0]["trained"] for row in found["rows"])
    costs = [(row["spikes_per_neuron"], row["exact_mj"]) for row in found["rows"]]
    assert costs[1][0] > 2 * costs[0][0] > 0 and costs[1][1] > costs[0][1] > 0
    assert "T = 2" in said and "T = 8" in said and "rate-coded" in said and "fine-tuned" not in said
    assert [path.name for path in (tmp_path / "qcfs" / "converted").iterdir()] == ["convert.json"]


@pytest.mark.parametrize(
    ("neuron", "arguments", "says"),
    [
        ("relu", ("--codes", "9z"), "'9z' is not a spike code"),
        ("relu", ("--qk-code", ""), "code"),
        ("relu", ("--finetune-epochs", -1), "finetune_epochs is -1.0: it must be a number at least 0"),
        ("relu", ("--finetune-rate", 0), "finetune_rate is 0.0: it must be a number above 0"),
        ("relu", ("--certify", 0), "certify is 0"),
        ("relu", ("--step", 3), "step: an ANN is converted from its best checkpoint"),
        ("relu", ("--rate-steps", 2, 256), "rate_steps is 256: it must be a whole number, 1 to 255"),
        ("qcfs", ("--rate-steps",), "rate_steps is empty: give at least one number of time steps"),
        (
            "lif",
            (),
            "run: its neurons are lif: expg and sfa ones are deployed, qcfs ones are run rate-coded, and an ANN",
        ),
        ("qcfs", ("--codes", "4x1"), "codes: this run's neurons are qcfs ones of code 1x4: leave codes out"),
        ("expg", ("--codes", "2x2"), "codes: this run's neurons are expg ones of code 1x4: leave codes out"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(tmp_path, monkeypatch, capsys, neuron, arguments, says):
    about = {"config": as_json(TrainConfig(neuron=neuron)), "image_shape": [8, 8, 1]}
    monkeypatch.setattr(convert, "load_averaged", lambda *_: (None, None, about))
    status, found = converted(tmp_path, *arguments)
    said = capsys.readouterr().err.strip()
    assert status == 2 and says in said and len(said.splitlines()) == 1
    assert found is None and not (tmp_path / "converted").exists()


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert converted(tmp_path)[0] == 2
    assert "no checkpoint of a run in" in capsys.readouterr().err
