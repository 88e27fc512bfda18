"""Interrupted runs equal uninterrupted ones, bit for bit: killed, pre-empted, damaged, on another mesh."""

import logging
import shutil
import signal

import jax
import numpy as np
import pytest
from short_runs import EVERY, STEPS, finish, lines_of, short, start, state_of

from ge2mst_jax.train import train
from ge2mst_jax.train.checkpoints import exclusive

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
