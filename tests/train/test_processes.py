"""One device, eight devices and two processes of four are one and the same run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from short_runs import EVERY, finish, lines_of, settings, short, start, state_of, together
from trajectories import STEPS, logits_of_deployed, trajectory

from ge2mst_jax.train import train

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("trajectories.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The trajectory of each layout, by name."""
    path = tmp_path_factory.mktemp("processes") / "two.npz"

    def start_one(environment):
        return subprocess.Popen(
            [sys.executable, SCRIPT, path],
            env={**os.environ, **settings(4), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for status, said in finish(*together(start_one, 2)):
        assert status == 0, said
    return {
        "2x4": dict(np.load(path)),
        "1x8": trajectory(8),
        "1x1": trajectory(1),
        "ulp": trajectory(1, "neuron_head/raw"),
    }


def gap(a, b) -> tuple[float, float]:
    """Between two trajectories: the largest of the losses, and the length of the parameters' difference."""
    return np.abs(a["losses"] - b["losses"]).max(), np.linalg.norm(a["params"] - b["params"])


@pytest.mark.parametrize("layout", ["2x4", "1x8"])
def test_layouts_see_the_same_images_in_the_same_order(runs, layout):
    assert runs[layout]["images"].shape == (STEPS, 32)
    np.testing.assert_array_equal(runs[layout]["images"], runs["1x1"]["images"])


@pytest.mark.parametrize("layout", ["2x4", "1x8"])
def test_first_loss_is_equal(runs, layout):
    np.testing.assert_allclose(runs[layout]["losses"][0], runs["1x1"]["losses"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["2x4", "1x8"])
def test_steps_drift_no_further_than_twice_what_one_ulp_does(runs, layout):
    """Quantised activations amplify rounding; how far is measured here, by the last bit of one threshold."""
    for distance, of_one_ulp in zip(gap(runs[layout], runs["1x1"]), gap(runs["ulp"], runs["1x1"]), strict=True):
        assert 0 < distance < 2 * of_one_ulp


@pytest.mark.parametrize("layout", ["2x4", "1x8"])
def test_evaluation_counts_every_example_once(runs, layout):
    assert runs[layout]["examples"] == runs["1x1"]["examples"] == 360
    assert runs[layout]["confusion"].sum() == 360
    np.testing.assert_array_equal(runs[layout]["confusion"].sum(1), runs["1x1"]["confusion"].sum(1))


def test_deployed_outputs_are_equal_bit_for_bit(runs):
    one = logits_of_deployed(1)
    assert len(np.unique(one)) > 300
    np.testing.assert_array_equal(logits_of_deployed(8), one)
    np.testing.assert_array_equal(runs["2x4"]["logits"], one)


def test_pre_emption_of_one_process_stops_all_after_the_same_step(tmp_path):
    def start_one(environment):
        end = ("term", 5) if environment["JAX_PROCESS_ID"] == "1" else ()
        return start(tmp_path, {}, *end, devices=4, **environment)

    for status, said in finish(*together(start_one, 2)):
        assert status == 128 + signal.SIGTERM, said
    assert state_of(tmp_path, short())[0] == 8  # they ask each other every 8 steps
    assert [line["step"] for line in lines_of(tmp_path) if "loss" in line] == list(range(1, 9))


def test_run_of_two_processes_goes_on_in_one(tmp_path):
    two = together(lambda environment: start(tmp_path, {}, "after", 6, devices=4, **environment), 2)
    statuses = [status for status, _ in finish(*two)]
    assert all(statuses)
    whole = state_of(tmp_path, short())
    assert whole[0] == EVERY
    kept = shutil.copytree(tmp_path, tmp_path.with_name("kept"))
    assert train(short(), tmp_path).complete
    steps = [line["step"] for line in lines_of(tmp_path) if "loss" in line]
    assert steps == list(range(1, 13))
    for a, b in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(state_of(kept, short(mesh_data=1))[1]), strict=True):
        np.testing.assert_array_equal(a, b)
