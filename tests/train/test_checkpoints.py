"""Checkpoints of a run: what is not as it was written is never taken, and nothing is set aside without proof."""

import errno
import json
import os
import random
import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax import checkpoint
from ge2mst_jax.checkpoint import METADATA, CheckpointError, DamagedError, reason
from ge2mst_jax.train import Checkpoints, read_about, read_state
from ge2mst_jax.train.checkpoints import check_same_run, steps_in
from ge2mst_jax.train.fingerprint import fingerprints

ABOUT = {
    "config": {"seed": 0}, "image_shape": [8, 8, 1], "classes": ["a", "b"], "examples": 10, "data": {"step": 0},
    "padding": "x" * 500,
}  # fmt: skip


def state_at(step):
    random_state = np.random.default_rng(step)
    return {
        "step": jnp.int32(step),
        "params": {"kernel": jnp.asarray(random_state.normal(size=(40, 30)), jnp.float32)},
        "moments": [jnp.asarray(random_state.normal(size=(7,)), jnp.bfloat16), jnp.zeros(3, bool)],
    }


ABSTRACT = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state_at(0))


def equal(a, b) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with checkpoints of the steps 4, 8 (the best) and 12, 16."""
    run_dir = tmp_path_factory.mktemp("written")
    with Checkpoints(run_dir) as checkpoints:
        for step in (4, 8, 12, 16):
            if step in (4, 8):
                checkpoints.best = step
            checkpoints.save(step, state_at(step), ABOUT)
    return run_dir


@pytest.fixture
def run_dir(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def restore(run_dir, check=lambda about: None):
    with Checkpoints(run_dir) as checkpoints:
        return checkpoints.restore_latest(ABSTRACT, check)


def everything_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_latest_and_best_are_kept_and_come_back(run_dir):
    assert steps_in(run_dir / "checkpoints") == [8, 12, 16]
    step, state, about = restore(run_dir)
    assert (step, about["best_step"], about["step"]) == (16, 8, 16)
    assert equal(state, state_at(16))
    path, about = read_about(run_dir)
    assert path.name == "8"
    assert equal(read_state(path, ABSTRACT), state_at(8))
    assert {read_about(run_dir, which)[0].name for which in (12, "latest")} == {"12", "16"}


# --- what is proven to be damaged -------------------------------------------------------------------------------------


def arrays_file(path):
    return max((p for p in path.glob("state/*/d/*")), key=lambda p: p.stat().st_size)


def flip(file, position=None):
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 4
    file.write_bytes(content)


def cut_off(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "metadata empty": lambda path: (path / METADATA).write_bytes(b""),
    "metadata cut off": lambda path: cut_off(path / METADATA),
    "metadata a list": lambda path: (path / METADATA).write_text("[]"),
    "metadata null": lambda path: (path / METADATA).write_text("null"),
    "metadata binary": lambda path: (path / METADATA).write_bytes(bytes(range(256))),
    "metadata gone": lambda path: (path / METADATA).unlink(),
    "metadata flipped": lambda path: flip(path / METADATA, (path / METADATA).read_bytes().index(b"xxxx") + 9),
    "arrays flipped": lambda path: flip(arrays_file(path)),
    "arrays cut off": lambda path: cut_off(arrays_file(path)),
    "arrays gone": lambda path: arrays_file(path).unlink(),
    "manifest cut off": lambda path: cut_off(path / "state/manifest.ocdbt"),
    "names cut off": lambda path: cut_off(path / "state/_METADATA"),
    "all arrays gone": lambda path: shutil.rmtree(path / "state"),
    "all gone": lambda path: [shutil.rmtree(path), path.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_one_is_set_aside_and_the_one_before_is_taken(run_dir, damage, caplog, capfd):
    damage(run_dir / "checkpoints/16")
    step, state, _ = restore(run_dir)
    assert step == 12
    assert equal(state, state_at(12))
    assert [path.name for path in (run_dir / "damaged").iterdir()] == ["16.0"]
    (line,) = (r.getMessage() for r in caplog.records if "falling back" in r.getMessage())
    assert "checkpoints/16 is damaged: " in line
    assert "\n" not in line
    assert "Traceback" not in capfd.readouterr().err


def test_where_all_are_damaged_the_run_stops_and_nothing_is_touched(run_dir):
    for step in (8, 12, 16):
        flip(arrays_file(run_dir / f"checkpoints/{step}"))
    before = everything_in(run_dir)
    with pytest.raises(CheckpointError, match=r"none of the 3 checkpoints in .* can be read: put copies of them in"):
        restore(run_dir)
    assert everything_in(run_dir) == before


def test_every_flipped_bit_is_noticed_or_changes_nothing(run_dir):
    draws, path = random.Random(0), run_dir / "checkpoints/16"
    whole = path.rename(run_dir / "whole")
    found = []
    files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and p.stat().st_size]
    for file in sorted(files, key=lambda p: str(p).split("/d/")[0]):
        for _ in range(4):
            shutil.copytree(whole, path)
            content = bytearray((path / file).read_bytes())
            content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
            (path / file).write_bytes(content)
            try:
                with Checkpoints(run_dir) as checkpoints:
                    state, _ = checkpoints.restore(16, ABSTRACT)
                assert equal(state, state_at(16)), file
            except CheckpointError as error:
                assert "\n" not in str(error)
                found.append(file)
            shutil.rmtree(path)
    assert len(found) > 10


# --- what is not ------------------------------------------------------------------------------------------------------


def endless(file):
    """A file that cannot be read: this process's memory, from address 0, is an I/O error."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


NOT_PROVEN = {
    "metadata I/O": (lambda path: endless(path / METADATA), "16 cannot be read: Input/output error"),
    "arrays I/O": (lambda path: endless(arrays_file(path)), "16 cannot be read: "),
    "names I/O": (lambda path: endless(path / "state/_METADATA"), "16 cannot be read: Input/output error"),
    "a folder": (lambda path: [(path / METADATA).unlink(), (path / METADATA).mkdir()], "cannot be read: Is a dir"),
    "a file": (lambda path: [shutil.rmtree(path), path.write_text("")], "cannot be read: Not a directory"),
    "nothing said": (lambda path: (path / METADATA).write_text("{}"), "16 carries no sha256 of what it says"),
    "another's": (lambda path: (path / METADATA).write_text('{"custom_metadata": {}}'), "16 carries no sha256"),
    "renamed": (lambda path: path.rename(path.with_name("16.bak")), r"16\.bak is no checkpoint by its name: name it"),
    "padded": (lambda path: path.rename(path.with_name("0016")), "0016 is no checkpoint by its name"),
    "another step": (lambda path: path.rename(path.with_name("17")), "17 is of step 16: name it so, or move it"),
    "a copy": (lambda path: shutil.copytree(path, path.with_name("²")), "² is no checkpoint by its name"),
    "notes": (lambda path: path.with_name("notes").write_text("x"), "notes is no checkpoint by its name"),
}


@pytest.mark.parametrize(("change", "says"), NOT_PROVEN.values(), ids=NOT_PROVEN)
def test_what_is_not_proven_damaged_stops_the_run_and_touches_nothing(run_dir, change, says):
    change(run_dir / "checkpoints/16")
    names = sorted(str(path) for path in run_dir.rglob("*"))
    with pytest.raises(CheckpointError, match=says) as error:
        restore(run_dir)
    assert not isinstance(error.value, DamagedError)
    assert "\n" not in str(error.value)
    assert sorted(str(path) for path in run_dir.rglob("*")) == names


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_error_of_the_system_is_no_proof_however_it_is_wrapped(run_dir, monkeypatch, number, wrapped):
    def load(*_, **__):
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            if not wrapped:
                raise
            raise ValueError("DATA_LOSS: while reading") from error

    monkeypatch.setattr(checkpoint.ocp, "load", load)
    before = everything_in(run_dir)
    with pytest.raises(CheckpointError, match=f"16 cannot be read: {os.strerror(number)}"):
        restore(run_dir)
    assert everything_in(run_dir) == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: out of memory"), KeyError("key")])
def test_other_errors_are_no_proof_either(run_dir, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.ocp, "load", load)
    with pytest.raises(CheckpointError, match="16 cannot be read: ") as raised:
        restore(run_dir)
    assert not isinstance(raised.value, DamagedError)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        ValueError("RESOURCE_EXHAUSTED: Too many open files"),
    ],
    ids=["system", "tensorstore"],
)
def test_too_many_open_files_is_no_damage(run_dir, monkeypatch, error):
    """As Python and TensorStore say it; at a real limit uvloop may end the process, whoever meets it first."""
    before = everything_in(run_dir)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp, "load", raising(error))
        with pytest.raises(CheckpointError, match="Too many open files") as raised:
            restore(run_dir)
    assert not isinstance(raised.value, DamagedError)
    assert everything_in(run_dir) == before
    assert restore(run_dir)[0] == 16


def raising(error):
    def call(*_, **__):
        raise error

    return call


def test_checkpoint_of_other_shapes_is_refused_by_the_leaf(run_dir):
    other = ABSTRACT | {"params": {"kernel": jax.ShapeDtypeStruct((40, 31), jnp.float32)}}
    before = everything_in(run_dir)
    with (
        Checkpoints(run_dir) as checkpoints,
        pytest.raises(ValueError, match=r"16 has params/kernel float32\[40,30\], not float32\[40,31\]"),
    ):
        checkpoints.restore_latest(other)
    assert everything_in(run_dir) == before


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"classes": ["a", "b", "c"]}, r"has 2 classes, not 3 \(new: c\)"),
        ({"classes": ["b"]}, r"has 2 classes, not 1 \(gone: a\)"),
        ({"classes": ["b", "a"]}, r"has 2 classes, not 2 \(in another order\)"),
        ({"image_shape": [16, 8, 1]}, r"has image_shape \[8, 8, 1\], not \[16, 8, 1\]"),
        ({"examples": 11}, "has examples 10, not 11"),
    ],
)
def test_other_data_are_refused_by_what_differs_and_nothing_is_touched(run_dir, now, says):
    before = everything_in(run_dir)

    def check(about):
        check_same_run({field: about[field] for field in now}, now)

    with pytest.raises(ValueError, match=f"the run in this folder {says}: go on with the same, or give another"):
        restore(run_dir, check)
    assert everything_in(run_dir) == before


# --- which is taken ---------------------------------------------------------------------------------------------------


def test_missing_best_is_said_and_another_taken_on_purpose_alone(run_dir, tmp_path, caplog):
    (run_dir / "checkpoints/8").rename(tmp_path / "8")
    with pytest.raises(CheckpointError, match=r"the best checkpoint, of step 8, is not in .*: name the step .* 12, 16"):
        read_about(run_dir)
    assert read_about(run_dir, 12)[0].name == "12"
    assert restore(run_dir)[0] == 16
    assert "the best checkpoint, of step 8, is gone" in caplog.text


@pytest.mark.parametrize("step", [8, 16])
def test_best_is_not_replaced_by_another_where_metadata_are_damaged(run_dir, step):
    cut_off(run_dir / f"checkpoints/{step}" / METADATA)
    with pytest.raises(CheckpointError, match=f"{step} is damaged"):
        read_about(run_dir)


@pytest.mark.parametrize("which", [None, True, 2.0, "first", b"best", -1, 10**30])
def test_which_is_a_step_or_one_of_two_words(run_dir, which):
    with pytest.raises(ValueError, match=r"which is|no checkpoint of step"):
        read_about(run_dir, which)


@pytest.mark.parametrize("name", ["nope", "file", "empty"])
def test_folder_without_a_run_is_refused(tmp_path, name):
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"no checkpoint of a run in .*{name}: give the folder that a training"):
        read_about(tmp_path / name)


@pytest.mark.parametrize("name", ["run[1]", "run*", "a?b", "a\\b", "ü\udce9"])
def test_path_that_orbax_cannot_read_again_is_refused_before_anything_is_written(tmp_path, name):
    for do in (Checkpoints, read_about):
        with pytest.raises(CheckpointError, match=r"checkpoints cannot lie in a path .*: rename the folder"):
            do(tmp_path / name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\nb", "run %1", "é", "-run", "gs:x"])
def test_other_odd_names_work(tmp_path, name):
    with Checkpoints(tmp_path / name) as checkpoints:
        checkpoints.save(1, state_at(1), ABOUT)
    assert equal(restore(tmp_path / name)[1], state_at(1))


# --- saving -----------------------------------------------------------------------------------------------------------


def held():
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.parametrize("saves", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_saves_hold_neither_descriptors_nor_threads(tmp_path, saves):
    with Checkpoints(tmp_path) as checkpoints:
        counts = []
        for step in range(1, saves + 1):
            checkpoints.save(step, state_at(step), ABOUT)
            checkpoints.wait()
            counts.append(held())
    assert counts[-1][0] <= counts[0][0] + 2
    assert counts[-1][1] <= counts[0][1] + 2


def test_full_disk_is_said_in_one_line_and_the_checkpoint_before_stays(run_dir, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = state_at(20) | {"noise": jnp.asarray(np.random.default_rng(0).normal(size=(400, 400)))}
    fingerprints(jax.tree.map(jnp.copy, large))  # compiled here: what the compilation cache keeps meets the limit, too
    with (
        pytest.raises(CheckpointError, match=r"checkpoints/20 cannot be written: ") as error,
        Checkpoints(run_dir) as c,
    ):
        c.restore_latest(ABSTRACT)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limits[1]))
        try:
            c.save(20, large, ABOUT)
            c.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    step, state, _ = restore(run_dir)
    assert step == 16
    assert equal(state, state_at(16))


def test_reason_is_what_the_system_said():
    error = ValueError("outer\nlines")
    error.__cause__ = RuntimeError("inner")
    error.__cause__.__cause__ = OSError(errno.EIO, "Input/output error")
    assert reason(error) == "Input/output error"
    assert reason(json.JSONDecodeError("what", "", 0)).startswith("what")
    assert reason(StopIteration()) == "StopIteration"
