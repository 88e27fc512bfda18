"""Interrupted runs equal uninterrupted ones, bit for bit: killed, pre-empted, damaged, on another mesh."""

import dataclasses
import logging
import shutil
import signal

import jax
import numpy as np
import pytest
from short_runs import EVERY, STEPS, finish, lines_of, short, start, state_of

from ge2mst_jax.train import loop, metrics, train
from ge2mst_jax.train.checkpoints import read_run
from ge2mst_jax.train.lock import exclusive

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 2N steps in one sitting."""
    run_dir = tmp_path_factory.mktemp("straight")
    assert train(short(), run_dir).complete
    return run_dir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed after step 9, its checkpoints of 4 and 8 complete."""
    run_dir = tmp_path_factory.mktemp("killed")
    ((status, said),) = finish(start(run_dir, {}, "after", 10))
    assert status == -9, said
    return run_dir


def assert_same_bits(found, expected):
    (leaves, tree), (others, other_tree) = (jax.tree_util.tree_flatten_with_path(state) for state in (found, expected))
    assert tree == other_tree
    for (path, a), (_, b) in zip(leaves, others, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), jax.tree_util.keystr(path)


def assert_equal_runs(found, expected):
    """Parameters, BatchNorm statistics, optimiser, average and controller; every line of the metrics."""
    (step, state), (last, other) = (state_of(run_dir, short()) for run_dir in (found, expected))
    assert step == last == STEPS
    assert_same_bits(state, other)
    assert lines_of(found) == lines_of(expected)


def test_straight_run_has_a_line_a_step_and_an_evaluation_where_asked(straight):
    lines = lines_of(straight)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "test" in line] == [8, 12]
    assert {"loss", "learning_rate", "gradient_norm", "spikes_per_neuron", "penalty"} < set(lines[0])


def test_run_killed_and_resumed_equals_a_straight_one(straight, killed, tmp_path):
    run_dir = shutil.copytree(killed, tmp_path / "run")
    assert lines_of(run_dir)[-1]["step"] > 8  # the resume has lines to cut
    assert train(short(), run_dir).complete
    assert_equal_runs(run_dir, straight)


def test_run_killed_while_saving_and_resumed_equals_a_straight_one(straight, tmp_path):
    ((status, said),) = finish(start(tmp_path, {}, "in_save", 8))
    assert status == -9, said
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert "4" in names
    assert "8" not in names
    assert any(name.startswith("8.") for name in names)  # half a checkpoint
    assert train(short(), tmp_path).complete
    assert_equal_runs(tmp_path, straight)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if not path.name.isdigit()]


def test_pre_emption_saves_and_exits_in_order_and_the_run_goes_on(straight, tmp_path):
    ((status, said),) = finish(start(tmp_path, {}, "term", 6))
    assert status == 128 + signal.SIGTERM, said
    assert "interrupted: step 6 is saved" in said
    assert state_of(tmp_path, short())[0] == 6
    ((status, said),) = finish(start(tmp_path, {}))
    assert status == 0, said
    assert "resume order 1 of 3: the checkpoint of step 6" in said
    assert_equal_runs(tmp_path, straight)


def test_damaged_latest_checkpoint_falls_back_to_the_one_before(straight, killed, tmp_path, caplog):
    run_dir = shutil.copytree(killed, tmp_path / "run")
    largest = max((p for p in (run_dir / "checkpoints/8").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        assert train(short(), run_dir).complete
    (line,) = (record.getMessage() for record in caplog.records if "falling back" in record.getMessage())
    assert "checkpoints/8 is damaged" in line
    assert [path.name for path in (run_dir / "damaged").iterdir()] == ["8.0"]
    assert_equal_runs(run_dir, straight)


@pytest.mark.parametrize("when", ["before", "within"])
def test_evaluation_makes_room_for_an_orderly_end_and_is_made_later(straight, tmp_path, monkeypatch, when):
    evaluate, report = loop.evaluate, metrics.Reporter.step

    def evaluate_and_end(*arguments):
        *others, progress = arguments
        return evaluate(*others, lambda seen: (signal.raise_signal(signal.SIGTERM), progress(seen)))

    def report_and_end(self, step, *rest):
        report(self, step, *rest)
        if step == 8:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        if when == "within":
            patched.setattr(loop, "evaluate", evaluate_and_end)
        else:
            patched.setattr(metrics.Reporter, "step", report_and_end)
        ended = train(short(), tmp_path)
        assert (ended.signal, ended.evaluation) == (signal.SIGTERM, None)
        if when == "within":  # and once more, as soon as the run goes on
            assert train(short(), tmp_path).signal == signal.SIGTERM
    assert state_of(tmp_path, short())[0] == 8
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 9))
    ended = train(short(), tmp_path)
    assert ended.complete and ended.evaluation["examples"] == 360
    assert_equal_runs(tmp_path, straight)
    assert said_by(tmp_path, 12) == said_by(straight, 12)


def test_last_evaluation_is_made_though_a_signal_came(straight, tmp_path, monkeypatch):
    evaluate = loop.evaluate

    def evaluate_and_signal(*arguments):
        if calls.pop():
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments)

    calls = [True, False]
    monkeypatch.setattr(loop, "evaluate", evaluate_and_signal)
    assert train(short(), tmp_path).complete
    assert_equal_runs(tmp_path, straight)


def test_checkpoint_of_an_older_version_holds_a_matrix_and_is_gone_on_with(straight, tmp_path, monkeypatch):
    evaluate, report = loop.evaluate, metrics.Reporter.step

    def report_and_end(self, step, *rest):
        report(self, step, *rest)
        if step in (9, 10):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(metrics.Reporter, "step", report_and_end)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", lambda *arguments: evaluate(*arguments) | {"confusion": [[1, 2]] * 2})
        assert train(short(), tmp_path).signal
    assert said_by(tmp_path, 9)["evaluation"]["confusion"] == [[1, 2]] * 2
    ended = train(short(), tmp_path)
    assert ended.signal and "confusion" not in ended.evaluation and ended.evaluation["examples"] == 360
    assert said_by(tmp_path, 10)["evaluation"] == ended.evaluation
    assert train(short(), tmp_path).complete
    assert state_of(tmp_path, short())[0] == STEPS


def test_checkpoint_holds_no_matrix(straight):
    found = said_by(straight, 12)["evaluation"]
    assert set(found) == {"examples", "skipped", "accuracy", "top5", "loss", "spikes_per_neuron"}


def said_by(run_dir, step):
    """What a checkpoint says of itself, its clock aside."""
    about = read_run(run_dir / "checkpoints" / str(step))
    return {name: value for name, value in about.items() if name != "time"}


def test_latest_and_best_are_kept(straight):
    kept = sorted(int(path.name) for path in (straight / "checkpoints").iterdir())
    assert kept[-2:] == [8, 12] and len(kept) <= 3


def test_second_run_in_a_folder_is_refused(killed, tmp_path):
    run_dir = shutil.copytree(killed, tmp_path / "run")
    with exclusive(run_dir):
        before = sorted(p.name for p in run_dir.rglob("*"))
        with pytest.raises(ValueError, match=r"another run is writing to .*give this one a folder of its own"):
            train(short(), run_dir)
        assert sorted(p.name for p in run_dir.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "the run in this folder has seed 0, not 1"),
        ({"steps": 13}, "the run in this folder has steps 12, not 13"),
    ],
)
def test_run_does_not_go_on_under_another_config(killed, changes, says):
    with pytest.raises(ValueError, match=says):
        train(short(**changes), killed)


def everything_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def another_class(source):
    return dataclasses.replace(source, classes=(*source.classes, "ten"))


def fewer_images(source):
    return dataclasses.replace(source, images=source.images[:-1], labels=source.labels[:-1])


def larger_images(source):
    return dataclasses.replace(source, images=np.pad(source.images, [(0, 0), (4, 4), (4, 4), (0, 0)]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (another_class, r"has 10 classes, not 11 \(new: ten\)"),
        (fewer_images, "has examples 1437, not 1436"),
        (larger_images, r"has image_shape \[8, 8, 1\], not \[16, 16, 1\]"),
    ],
)
def test_run_does_not_go_on_with_other_data_and_nothing_is_touched(killed, tmp_path, monkeypatch, change, says):
    run_dir = shutil.copytree(killed, tmp_path / "run")
    before = everything_in(run_dir)
    open_source = loop.open_source
    monkeypatch.setattr(loop, "open_source", lambda *options: change(open_source(*options)))
    with pytest.raises(ValueError, match=f"the run in this folder {says}"):
        train(short(), run_dir)
    assert everything_in(run_dir) == before


def test_without_config_json_the_checkpoint_is_the_judge(straight, tmp_path):
    run_dir = shutil.copytree(straight, tmp_path / "run")
    config = (run_dir / "config.json").read_text()
    (run_dir / "config.json").unlink()
    before = everything_in(run_dir)
    with pytest.raises(ValueError, match="the run in this folder has seed 0, not 1"):
        train(short(seed=1), run_dir)
    assert everything_in(run_dir) == before
    assert train(short(), run_dir).complete
    assert (run_dir / "config.json").read_text() == config


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b'{"data"', bytes(range(256)), b"[" * 10**5])
def test_damaged_config_json_is_refused_in_one_line(killed, tmp_path, content):
    run_dir = shutil.copytree(killed, tmp_path / "run")
    (run_dir / "config.json").write_bytes(content)
    before = everything_in(run_dir)
    with pytest.raises(
        ValueError, match=r"config.json: damaged \(.*\): mend it, or delete it \(the checkpoints"
    ) as error:
        train(short(), run_dir)
    assert "\n" not in str(error.value)
    assert everything_in(run_dir) == before


def test_metrics_without_config_and_checkpoints_are_not_overwritten(killed, tmp_path):
    run_dir = shutil.copytree(killed, tmp_path / "run")
    (run_dir / "config.json").unlink()
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(ValueError, match=r"holds the metrics of a run whose config and checkpoints are gone: move"):
        train(short(), run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()


def test_damaged_line_of_the_metrics_stops_the_resume_and_nothing_is_cut(killed, tmp_path):
    run_dir = shutil.copytree(killed, tmp_path / "run")
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"loss"', b'"lass"')
    (run_dir / "metrics.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 5 is damaged: mend it, or move the file away"):
        train(short(), run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.parametrize("replace", [False, True])
def test_folder_that_is_removed_while_the_run_uses_it_ends_it(tmp_path, monkeypatch, replace):
    run_dir, report = tmp_path / "run", metrics.Reporter.step

    def report_and_remove(self, step, *rest):
        report(self, step, *rest)
        if step == 6:
            shutil.rmtree(run_dir)
            if replace:
                run_dir.mkdir()

    monkeypatch.setattr(metrics.Reporter, "step", report_and_remove)
    with pytest.raises(ValueError, match="run was removed or replaced while the run used it"):
        train(short(), run_dir)


@pytest.mark.parametrize("name", ["run [1]", "run*"])
def test_folder_in_which_no_checkpoint_could_be_read_is_refused_at_once(tmp_path, name):
    with pytest.raises(ValueError, match=r"checkpoints cannot lie in a path with .*: rename the folder"):
        train(short(), tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_eight_devices_become_four(straight, killed, tmp_path):
    """What is restored is equal bit for bit; the steps after it are float sums in another order.

    Tolerance: quantised activations turn the last bit of a sum into a level now and then, so single parameters move by
    whole Adam steps (at most about the learning rate, 2e-3, each of 4 steps); the parameters as a whole stay within
    2e-3 of their length, the losses within 0.05.
    """
    run_dir, four = shutil.copytree(killed, tmp_path / "run"), short(mesh_data=4)
    (step, on_four), (_, on_eight) = state_of(run_dir, four), state_of(run_dir, short(), 2 * EVERY)
    assert step == 2 * EVERY
    assert_same_bits(on_four, on_eight)
    trained = train(four, run_dir)
    assert trained.complete and len(trained.state.step.sharding.device_set) == 4
    found, expected = state_of(run_dir, four)[1], state_of(straight, short())[1]
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(state.params)]) for state in (found, expected)]
    assert np.linalg.norm(flat[0] - flat[1]) < 2e-3 * np.linalg.norm(flat[1])
    losses = [[line["loss"] for line in lines_of(d) if "loss" in line] for d in (run_dir, straight)]
    np.testing.assert_allclose(*losses, atol=0.05, rtol=0)
