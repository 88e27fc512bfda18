"""What a run writes while it runs, and how it stops at a number that is none."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from short_runs import lines_of, short

from ge2mst_jax.train import DivergedError, read_metrics, train
from ge2mst_jax.train import metrics as metrics_module
from ge2mst_jax.train.metrics import MetricsFile, Reporter


def metrics(loss=1.0):
    return {"loss": jnp.float32(loss), "gradient_norm": jnp.float32(2.0)}


def report_steps(run_dir, losses, first=0, console=None):
    batch = {"index": jnp.arange(40, 52)}
    with Reporter(run_dir, first, first, 9, 12, console or Console(quiet=True), 1, lambda: 4) as reporter:
        for step, loss in enumerate(losses, first + 1):
            reporter.step(step, metrics(loss), batch, waited=0.001 * step)
        reporter.flush()


def test_every_step_has_its_line_with_its_waiting(tmp_path):
    report_steps(tmp_path, [3.0, 2.0, 1.0])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    np.testing.assert_allclose([line["data_seconds"] for line in lines], 0.001, atol=1e-9)
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        for step in (1, 2, 3):
            file.write({"step": step, "loss": 1 / step})
    return path


def test_resumed_file_is_cut_back_and_a_torn_last_line_goes(written):
    whole = written.read_bytes()
    with written.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(written)] == [1, 2, 3]
    with MetricsFile(written, 2) as file:
        file.write({"step": 3, "loss": 1 / 3})
        assert file.count == 3
    assert written.read_bytes() == whole


def test_no_flipped_bit_passes(written):
    content = written.read_bytes()
    end_of_second = content.index(b"\n", content.index(b"\n") + 1) + 1
    for position in range(end_of_second):
        for bit in range(8):
            written.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            flipped = written.read_bytes()
            with pytest.raises(
                ValueError, match=r"metrics\.jsonl: line [12] is damaged: mend it, or move the file away"
            ):
                read_metrics(written)
            with pytest.raises(ValueError, match=r"metrics\.jsonl(: line [12] is damaged| has \d lines)"):
                MetricsFile(written, 2)
            assert written.read_bytes() == flipped  # and nothing is lost


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"null", b"3", b"{}", b'{"loss": 1}', b'{"step": 2.5}', b'{"step": true}', b"\xff\x00", b"[" * 9999],
)
def test_line_that_is_none_is_named_and_all_others_stay(written, line):
    first, _, last, _ = written.read_bytes().split(b"\n")
    written.write_bytes(b"\n".join([first, line, last, b""]))
    before = written.read_bytes()
    for read in (read_metrics, lambda path: MetricsFile(path, 2), lambda path: MetricsFile(path, 3)):
        with pytest.raises(ValueError, match=r"line 2 is damaged: mend it, or move the file away"):
            read(written)
    assert written.read_bytes() == before
    with MetricsFile(written, 1):  # what follows the checkpoint is written anew
        pass
    assert [line["step"] for line in read_metrics(written)] == [1]


def test_file_that_lacks_lines_is_refused_and_one_that_is_gone_is_begun_anew(written, caplog):
    with pytest.raises(ValueError, match=r"has 3 lines, not the 4 of the checkpoint to go on from"):
        MetricsFile(written, 4)
    written.unlink()
    with MetricsFile(written, 4) as file:
        file.write({"step": 5})
        assert file.count == 1
    assert "is gone: the lines before are missing" in caplog.text


def test_lines_say_rate_loss_and_waiting_where_there_is_no_terminal(tmp_path, capsys):
    report_steps(tmp_path, [3.0], console=Console(width=200))
    said = capsys.readouterr().out
    assert "step 1/9" in said
    assert "loss 3.000" in said
    assert "images/s" in said
    assert "data " in said


def test_pace_is_of_the_last_steps_without_compilation_and_evaluation(tmp_path, monkeypatch):
    now, lines = [0.0], Console(width=200, file=io.StringIO())
    monkeypatch.setattr(metrics_module.time, "perf_counter", lambda: now[0])
    with Reporter(tmp_path, 0, 0, 9, 12, lines, 2, lambda: None) as reporter:
        waited = 0.0
        for step, seconds in enumerate([60.0, 1.0, 3.0, 2.0, 1.0, 1.0], 1):
            reporter.step(step, metrics(), {}, waited := waited + 0.25)
            now[0] += seconds
            reporter.flush()
            if step == 3:
                with reporter.evaluating(5) as progress:
                    now[0] += 100
                    progress(5)
                reporter.evaluation(step, {"accuracy": 0.5, "top5": 1.0})
    said = [line.split("  ") for line in lines.file.getvalue().splitlines() if "images/s" in line]
    assert [line[:1] + line[2:] for line in said] == [
        ["step 2/9", "12 images/s", "data 25%", ""],
        ["step 4/9", "5 images/s", "data 10%", "test 50.00 %, top-5 100.00 %"],
        ["step 6/9", "12 images/s", "data 25%", "test 50.00 %, top-5 100.00 %"],
    ]
    steps = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in steps if "loss" in line] == [60, 1, 3, 102, 1, 1]  # of the clock on the wall


def test_evaluation_has_a_bar_where_there_is_a_terminal(tmp_path):
    terminal = Console(force_terminal=True, width=120, file=io.StringIO())
    with Reporter(tmp_path, 0, 0, 9, 12, terminal, 2, lambda: None) as reporter:
        with reporter.evaluating(50) as progress:
            progress(30)
            reporter._progress.refresh()
        assert [task.description for task in reporter._progress.tasks] == ["train"]
    assert "test" in terminal.file.getvalue() and "30/50" in terminal.file.getvalue()


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

    def diverging(params, *arguments):
        value, aux = loss(params, *arguments)
        learned = params["head"]["bias"][0] != 0  # from the first step on
        return value * jnp.where(learned, jnp.inf, 1.0), aux

    monkeypatch.setattr(steps, "loss_function", diverging)
    with pytest.raises(DivergedError, match=r"step \d+: (loss|gradient_norm) is .* on the batch of training images"):
        train(short(mesh_data=1), tmp_path)
    assert all(np.isfinite(line["loss"]) for line in lines_of(tmp_path))
