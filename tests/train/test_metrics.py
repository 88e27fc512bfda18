"""What a run writes while it runs, and how it stops at a number that is none."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from short_runs import lines_of, short

from ge2mst_jax.train import DivergedError, read_metrics, train
from ge2mst_jax.train.metrics import MetricsFile, Reporter


def metrics(loss=1.0):
    return {"loss": jnp.float32(loss), "gradient_norm": jnp.float32(2.0)}


def report_steps(run_dir, losses, first=0, console=None):
    batch = {"index": jnp.arange(40, 52)}
    with Reporter(run_dir, first, 9, 12, console or Console(quiet=True), 1, lambda: 4) as reporter:
        for step, loss in enumerate(losses, first + 1):
            reporter.step(step, metrics(loss), batch, waited=0.001 * step)
        reporter.flush()


def test_every_step_has_its_line_with_its_waiting(tmp_path):
    report_steps(tmp_path, [3.0, 2.0, 1.0])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    np.testing.assert_allclose([line["data_seconds"] for line in lines], 0.001, atol=1e-9)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_resumed_file_is_cut_back_and_a_torn_last_line_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo'
    path.write_text(text)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    with MetricsFile(path, 2) as file:
        file.write({"step": 3, "loss": 1.0})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'


def test_lines_say_rate_loss_and_waiting_where_there_is_no_terminal(tmp_path, capsys):
    report_steps(tmp_path, [3.0], console=Console(width=200))
    said = capsys.readouterr().out
    assert "step 1/9" in said
    assert "loss 3.000" in said
    assert "images/s" in said
    assert "data " in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_number_that_is_none_stops_with_step_batch_and_last_good_checkpoint(tmp_path, value):
    says = (
        rf"step 2: loss is {value} on the batch of training images 40, 41, 42, .*; the last good checkpoint is step 4"
    )
    with pytest.raises(DivergedError, match=says):
        report_steps(tmp_path, [1.0, value])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.slow
def test_run_that_diverges_stops_and_keeps_its_good_checkpoints(tmp_path, monkeypatch):
    from ge2mst_jax.train import step as steps

    loss = steps.loss_function

    def diverging(params, batch_stats, budget, images, targets, key, model, config):
        value, aux = loss(params, batch_stats, budget, images, targets, key, model, config)
        learned = params["head"]["bias"][0] != 0  # from the first step on
        return value * jnp.where(learned, jnp.inf, 1.0), aux

    monkeypatch.setattr(steps, "loss_function", diverging)
    with pytest.raises(DivergedError, match=r"step \d+: (loss|gradient_norm) is .* on the batch of training images"):
        train(short(mesh_data=1), tmp_path)
    assert all(np.isfinite(line["loss"]) for line in lines_of(tmp_path))
