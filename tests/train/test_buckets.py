"""Runs in a bucket: checkpoints, metrics and the lock, with a server that fails and processes that are killed."""

import asyncio
import time

import jax.numpy as jnp
import pytest
from rich.console import Console
from short_runs import EVERY, STEPS, finish, lines_of, short, start, state_of, together
from test_checkpoints import ABOUT, ABSTRACT, equal, state_at
from test_lock import lock_of_another
from test_metrics import metrics

from ge2mst_jax import checkpoint, folders, mirror
from ge2mst_jax.checkpoint import METADATA, CheckpointError, DamagedError
from ge2mst_jax.files import write_whole
from ge2mst_jax.folders import MARK, exists, files_in, folder, names_in, put, read
from ge2mst_jax.train import Checkpoints, lease, read_about, read_metrics, read_state, train
from ge2mst_jax.train.checkpoints import steps_in
from ge2mst_jax.train.metrics import Reporter

#: Of the clients: they close their connections when the process ends.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def run_dir(bucket):
    return folder(bucket + "/runs/a")


def write(run_dir, steps=(4, 8, 12, 16), best=8):
    with Checkpoints(run_dir) as checkpoints:
        for step in steps:
            if step <= best:
                checkpoints.best = step
            checkpoints.save(step, state_at(step), ABOUT)


def restore(run_dir):
    with Checkpoints(run_dir) as checkpoints:
        return checkpoints.restore_latest(ABSTRACT)


def damage(path):
    largest = max(files_in(path / "state"), key=lambda file: len(read(file)))
    content = bytearray(read(largest))
    content[len(content) // 2] ^= 4
    put(largest, bytes(content))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_latest_and_best_are_kept_and_come_back(run_dir):
    write(run_dir)
    assert steps_in(run_dir / "checkpoints") == [8, 12, 16]
    step, state, about = restore(run_dir)
    assert (step, about["best_step"]) == (16, 8)
    assert equal(state, state_at(16))
    path, _ = read_about(run_dir)
    assert str(path) == f"{run_dir}/checkpoints/8"
    assert equal(read_state(path, ABSTRACT), state_at(8))


@pytest.mark.parametrize("left", ["nothing but the mark", "the mark alone is missing", "half"])
def test_what_a_killed_save_leaves_is_passed_over_and_cleaned_away(run_dir, left):
    write(run_dir)
    path = run_dir / "checkpoints" / "20"
    for number, file in enumerate(files_in(run_dir / "checkpoints" / "16")):
        name = str(file.relative_to(run_dir / "checkpoints" / "16"))
        if name != MARK and (left != "half" or number % 2):
            put(path / name, read(file))
    if left == "nothing but the mark":
        folders.remove(path)
    assert steps_in(run_dir / "checkpoints") == [8, 12, 16]
    assert restore(run_dir)[0] == 16
    assert names_in(run_dir / "checkpoints") == ["12", "16", "8"]


@pytest.mark.parametrize(
    "spoil", [damage, lambda path: put(path / METADATA, b""), lambda path: folders._files().rm(str(path / METADATA))]
)
def test_damaged_one_is_set_aside_and_the_one_before_is_taken(run_dir, spoil, caplog):
    write(run_dir)
    spoil(run_dir / "checkpoints" / "16")
    step, state, _ = restore(run_dir)
    assert step == 12
    assert equal(state, state_at(12))
    assert names_in(run_dir / "damaged") == ["16.0"]
    assert steps_in(run_dir / "checkpoints") == [8, 12]
    assert "checkpoints/16 is damaged: " in caplog.text


def test_server_that_does_not_answer_is_no_damage(run_dir, buckets, monkeypatch):
    """Not once in any order of its faults is a checkpoint that is whole set aside, or passed over."""
    write(run_dir)
    before = {str(file): read(file) for file in files_in(run_dir)}
    monkeypatch.setattr("asyncio.sleep", soon)
    restored = 0
    for seed in range(6):
        buckets.proxy.randomly(0.25, seed)
        try:
            with Checkpoints(run_dir) as checkpoints:
                state, _ = checkpoints.restore(16, ABSTRACT)
            restored += equal(state, state_at(16))
        except DamagedError:
            raise
        except CheckpointError as error:
            assert "cannot be read" in str(error) or "no checkpoint at" in str(error)
    buckets.proxy.fault = lambda method, path: None
    assert restored >= 3
    assert {str(file): read(file) for file in files_in(run_dir)} == before


def test_absence_that_passes_is_no_damage(run_dir, monkeypatch):
    """Orbax takes a folder of which the server says nothing for one that is not there."""
    write(run_dir, (4, 8))
    load, left = checkpoint.ocp.load, [1]

    def at_first_not(*arguments, **options):
        if left:
            left.pop()
            raise FileNotFoundError("Checkpoint does not exist")
        return load(*arguments, **options)

    monkeypatch.setattr(checkpoint.ocp, "load", at_first_not)
    assert restore(run_dir)[0] == 8
    assert not left


SLEEP = asyncio.sleep


async def soon(seconds, *_):
    """Retries wait half a minute in all."""
    await SLEEP(min(seconds, 0.05))


def test_faults_while_saving_lose_nothing(run_dir, buckets, monkeypatch):
    monkeypatch.setattr("asyncio.sleep", soon)
    write(run_dir, (4, 8))
    saved, refused = [4, 8], 0
    for seed, step in enumerate(range(12, 40, 4)):
        buckets.proxy.randomly(0.1, seed)
        try:
            with Checkpoints(run_dir) as checkpoints:
                checkpoints.best = 8
                checkpoints.save(step, state_at(step), ABOUT)
            saved.append(step)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        buckets.proxy.fault = lambda method, path: None
        found = steps_in(run_dir / "checkpoints")
        assert found[-1] >= saved[-1]
        for one in found:
            with Checkpoints(run_dir) as checkpoints:
                assert equal(checkpoints.restore(one, ABSTRACT)[0], state_at(one))
    assert len(buckets.proxy.faults) > 5
    assert len(saved) > 4


@pytest.mark.parametrize("after", range(0, 40, 8))
def test_connection_cut_in_the_middle_of_a_save_leaves_the_checkpoint_before(run_dir, buckets, after, monkeypatch):
    """Three requests in a row are cut off, after so many of the save's."""
    monkeypatch.setattr("asyncio.sleep", soon)
    write(run_dir, (4,))
    numbers = iter(range(10**9))
    buckets.proxy.faults.clear()
    with Checkpoints(run_dir) as checkpoints:
        checkpoints.restore_latest(ABSTRACT)
        buckets.proxy.fault = lambda method, path: "cut" if after <= next(numbers) < after + 3 else None
        checkpoints.save(8, state_at(8), ABOUT)
    assert len(buckets.proxy.faults) == 3
    found = restore(run_dir)
    assert found[0] == 8
    assert equal(found[1], state_at(8))


# --- metrics ----------------------------------------------------------------------------------------------------------


def report(run_dir, steps, first=0, sync=True):
    batch = {"index": jnp.arange(40, 52)}
    with Reporter(run_dir, first, first, 9, 12, Console(quiet=True), 1, lambda: 4) as reporter:
        for step in range(first + 1, first + steps + 1):
            reporter.step(step, metrics(1 / step), batch, waited=0.0)
        reporter.flush()
        if sync:
            reporter.sync()
            return [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]


def test_metrics_are_there_once_synced_and_cut_back_by_a_resume(run_dir):
    assert report(run_dir, 3) == [1, 2, 3]
    assert len(names_in(run_dir / "tensorboard")) == 1
    time.sleep(1.1)  # TensorBoard's files are named by the second
    assert report(run_dir, 2, first=1) == [1, 2, 3]
    assert len(names_in(run_dir / "tensorboard")) == 2


def test_metrics_are_there_before_a_minute_is_over(run_dir, monkeypatch):
    assert mirror.UPLOAD_SECONDS + 20 < 60  # and what TensorBoard's own writer holds back
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 0.1)
    batch = {"index": jnp.arange(40, 52)}
    with Reporter(run_dir, 0, 0, 9, 12, Console(quiet=True), 1, lambda: 4) as reporter:
        for step in (1, 2):
            reporter.step(step, metrics(), batch, waited=0.0)
        for _ in range(100):
            time.sleep(0.05)
            if exists(run_dir / "metrics.jsonl") and read_metrics(run_dir / "metrics.jsonl"):
                return
    pytest.fail("nothing was uploaded")


def test_damaged_metrics_are_refused_and_left(run_dir):
    write_whole(run_dir / "metrics.jsonl", b"{}\n")
    with pytest.raises(ValueError, match=r"gs://.*/metrics.jsonl: line 1 is damaged"):
        report(run_dir, 1, first=1)
    assert read(run_dir / "metrics.jsonl") == b"{}\n"


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("end", "saved"), [(("in_save", 2 * EVERY), [EVERY]), (("after", 10), [EVERY, 2 * EVERY])])
def test_run_that_was_killed_equals_one_on_a_disk_that_was_not(run_dir, end, saved, tmp_path, caplog):
    assert train(short(), tmp_path).complete
    ((status, said),) = finish(start(run_dir, {}, *end))
    assert status == -9, said
    assert steps_in(run_dir / "checkpoints") == saved
    assert train(short(), run_dir).complete
    assert "that has ended: taken over" in caplog.text
    assert lines_of(run_dir) == lines_of(tmp_path)
    assert equal(state_of(run_dir, short())[1], state_of(tmp_path, short())[1])
    assert steps_in(run_dir / "checkpoints")[-1] == STEPS
    assert names_in(run_dir) == [".lock", "checkpoints", "config.json", "metrics.jsonl", "tensorboard"]


@pytest.mark.slow
def test_two_processes_write_one_run_and_wait_for_a_stale_lock(run_dir, tmp_path):
    def start_one(environment):
        return start(run_dir, {}, devices=4, **environment)

    put(run_dir / ".lock", lock_of_another(seconds_ago=130))
    began = time.monotonic()
    for status, said in finish(*together(start_one, 2)):
        assert status == 0, said
    assert time.monotonic() - began > lease.WATCH_SECONDS
    assert steps_in(run_dir / "checkpoints")[-1] == STEPS
    names = {file.name for file in files_in(run_dir / "checkpoints" / str(STEPS))}
    assert {"process_0", "process_1"} <= names  # each wrote its part
    assert [line["step"] for line in lines_of(run_dir) if "loss" in line] == list(range(1, STEPS + 1))
    _, state = state_of(run_dir, short())
    assert int(state.step) == STEPS


@pytest.mark.slow
def test_run_that_was_taken_over_writes_nothing_more(run_dir, monkeypatch):
    report, taken = Reporter.step, []

    def report_and_lose(self, now, *rest):
        report(self, now, *rest)
        if now == EVERY + 1:
            put(run_dir / ".lock", lock_of_another())
            monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)  # as if it had slept
            taken.append({str(file): read(file) for file in files_in(run_dir / "checkpoints")})

    monkeypatch.setattr(Reporter, "step", report_and_lose)
    with pytest.raises(ValueError, match=r"was taken over by another run \(other, process 7\) while the run used it"):
        train(short(), run_dir)
    assert steps_in(run_dir / "checkpoints") == [EVERY]
    assert len(read_metrics(run_dir / "metrics.jsonl")) == EVERY
