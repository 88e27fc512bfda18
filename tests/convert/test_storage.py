"""Deployed networks on disk: nothing that was changed loads, and a save that is killed loses nothing."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import traverse_util

from ge2mst_jax.checkpoint import METADATA
from ge2mst_jax.convert import CheckpointError, load_net, save_net, storage
from ge2mst_jax.convert.storage import describe

ABOUT = {"data": "digits", "classes": ["zero", "one, [/x] $"], "decode": None}


@pytest.fixture(scope="module")
def told(net):
    return dataclasses.replace(net, about=ABOUT)


@pytest.fixture(scope="module")
def saved(told, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net"
    save_net(path, told, "ge2mst_nano")
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "net")


def arrays_of(net):
    return jax.tree.map(lambda a: describe(np.asarray(a)), [net.params, net.source])


def same(a, b) -> bool:
    return (
        arrays_of(a) == arrays_of(b)
        and (a.formats, a.image_shape, a.digest, a.about) == (b.formats, b.image_shape, b.digest, b.about)
        and str(a.model) == str(b.model)
    )


def files_of(path):
    files = [p for p in path.rglob("*") if p.is_file() and p.stat().st_size]
    return sorted(files, key=lambda p: str(p.relative_to(path)).split("/d/")[0])  # below `d` names are drawn


def refused(path, told) -> bool:
    """Whether a checkpoint with one flipped bit is refused in one line; what is not must be equal to the bit."""
    try:
        loaded = load_net(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return True
    assert same(loaded, told)
    return False


def test_network_comes_back_with_all_that_it_carries(saved, told):
    loaded = load_net(saved)
    assert same(loaded, told)
    assert loaded.about == ABOUT
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_network_without_its_training_network_comes_back(told, tmp_path):
    save_net(tmp_path / "net", dataclasses.replace(told, source=None), "ge2mst_nano")
    assert load_net(tmp_path / "net").source is None


@pytest.mark.slow
def test_every_flipped_bit_is_refused_or_changes_nothing(saved, told, tmp_path):
    draws = random.Random(0)
    for number in range(len(files_of(saved))):
        for _ in range(4):
            path = shutil.copytree(saved, tmp_path / "net")
            file = files_of(path)[number]
            content = bytearray(file.read_bytes())
            content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
            file.write_bytes(content)
            refused(path, told)
            shutil.rmtree(path)


def test_flipped_bits_of_the_index_of_arrays_are_refused(copy, told):
    """All of it is read; files of arrays have gaps, and are flipped at random above."""
    (index,) = copy.glob("state/d/*")
    content = index.read_bytes()
    for position in range(len(content) // 60, len(content), len(content) // 30):
        index.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        assert refused(copy, told)


def test_one_bit_of_any_array_of_both_networks_is_refused_by_its_name(saved, monkeypatch):
    """Whatever Orbax and TensorStore let pass: the arrays are changed after they were read."""
    load, names, flipped = storage.load_arrays, [], None

    def load_changed(*arguments):
        flat = traverse_util.flatten_dict(jax.tree.map(np.array, load(*arguments)), sep="/")
        names[:] = sorted(flat)
        if flipped is not None:
            flat[flipped].reshape(-1).view(np.uint8)[-4] ^= 1
        return traverse_util.unflatten_dict(flat, sep="/")

    monkeypatch.setattr(storage, "load_arrays", load_changed)
    load_net(saved)
    assert {name.split("/")[0] for name in names} == {"deployed", "training"}
    for name in tuple(names):
        flipped = name
        with pytest.raises(CheckpointError, match=f"is damaged: {name} is not what was written"):
            load_net(saved)


def change(path, edit):
    metadata = json.loads((path / METADATA).read_text())
    edit(metadata["custom_metadata"])
    (path / METADATA).write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "edit",
    [
        lambda about: about["model"].update(name="ge2mst_cifar"),
        lambda about: about["model"]["fields"].update(scales=["block4"]),
        lambda about: about["model"]["fields"].update(stem_stride=2),
        lambda about: about["about"].update(classes=["one", "zero"]),
        lambda about: about["about"].update(decode={"image_size": 8}),
        lambda about: about["formats"][0].update(fraction_bits=3),
        lambda about: about.update(image_shape=[16, 16, 2]),
        lambda about: about.update(arrays={}),
        lambda about: about.update(digest="0" * 64),
        lambda about: about.pop("model"),
    ],
)
def test_edited_metadata_is_refused(copy, edit):
    change(copy, edit)
    with pytest.raises(CheckpointError, match=r"net is damaged: _CHECKPOINT_METADATA is not what was written"):
        load_net(copy)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b"3", b'"text"', b'{"custom_metadata": []}', bytes(range(256)), b"[" * 10**5],
)
def test_metadata_that_is_not_what_it_should_be_is_refused_in_one_line(copy, content):
    (copy / METADATA).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_net(copy)
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize(("name", "what"), [("net [1]", r"\["), ("net*", r"\*"), ("net?", r"\?"), ("a\\b", r"\\\\")])
def test_path_that_would_be_taken_for_a_pattern_is_refused(told, tmp_path, name, what):
    for do in (lambda path: save_net(path, told, "ge2mst_nano"), load_net):
        with pytest.raises(CheckpointError, match=f"cannot lie in a path with '{what}': rename the folder"):
            do(tmp_path / name / "net")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\nb", "a%20b", "#", "$HOME", "gs:x", "é", "-a", " ", ".hidden", "a'b\"", "n" * 200])
def test_other_odd_names_work(saved, told, tmp_path, name):
    save_net(tmp_path / name, told, "ge2mst_nano")
    assert same(load_net(tmp_path / name), told)


def test_what_is_no_deployed_network_is_not_replaced(told, copy, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("work")
    (copy / METADATA).write_text("{}")
    for path in (folder, file, copy):
        with pytest.raises(CheckpointError, match="no deployed network that can be read: it is not replaced"):
            save_net(path, told, "ge2mst_nano")
    assert (folder / "chapter.txt").read_text() == "years of work"
    assert file.read_text() == "work"
    with pytest.raises(CheckpointError, match=r"cannot be written: (Not a directory|File exists)"):
        save_net(file / "net", told, "ge2mst_nano")


def test_about_that_json_cannot_hold_is_refused(told, tmp_path):
    with pytest.raises(ValueError, match="about must be what JSON can hold"):
        save_net(tmp_path / "net", dataclasses.replace(told, about={"classes": {1, 2}}), "ge2mst_nano")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("left", [".net.old", ".net.new", ".net.new.orbax-checkpoint-tmp"])
def test_what_a_killed_save_left_is_cleared_away_by_the_next(copy, told, left):
    shutil.copytree(copy, copy.with_name(left))
    assert same(load_net(copy), told)
    save_net(copy, told, "ge2mst_nano")
    assert [path.name for path in copy.parent.iterdir()] == ["net"]


def test_save_killed_between_its_renames_leaves_the_old_network(copy, told):
    old = copy.rename(copy.with_name(".net.old"))
    assert same(load_net(copy), told)
    save_net(copy, told, "ge2mst_nano")
    assert same(load_net(copy), told)
    assert not old.exists()


SAVING = """
import dataclasses, itertools, pathlib, sys
import jax
from ge2mst_jax.convert import load_net, save_net
path, ready = map(pathlib.Path, sys.argv[1:])
net = load_net(path)
for number in itertools.count(net.about["number"] + 1):
    save_net(path, dataclasses.replace(net, about={"number": number}), "ge2mst_nano")
    ready.touch()
"""


@pytest.mark.slow
def test_killed_at_random_moments_a_complete_network_is_there(told, tmp_path):
    draws = random.Random(0)
    path, ready, reached = tmp_path / "net", tmp_path / "ready", [0]
    save_net(path, dataclasses.replace(told, about={"number": 0}), "ge2mst_nano")
    for _ in range(12):
        ready.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, path, ready], env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        loaded = load_net(path)
        assert arrays_of(loaded) == arrays_of(told)
        reached.append(loaded.about["number"])
        assert reached[-1] > reached[-2]


def test_descriptors_and_threads_stay(told, saved, tmp_path):
    def held():
        return len(os.listdir("/proc/self/fd"))

    counts = []
    for _ in range(5):
        save_net(tmp_path / "net", told, "ge2mst_nano")
        load_net(tmp_path / "net")
        counts.append(held())
    assert counts[-1] <= counts[1] + 2


@pytest.mark.parametrize("name", ["ge2mst_xl", 3, None, ""], ids=str)
def test_network_is_not_saved_by_a_name_that_no_model_has(tmp_path, net, name):
    with pytest.raises(ValueError, match=r"unknown model .*: known are ge2mst_nano"):
        save_net(tmp_path / "net", net, name)
    assert not any(tmp_path.iterdir())


def test_links_in_a_circle_are_refused(tmp_path, net):
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (lambda: load_net(tmp_path / "loop"), lambda: save_net(tmp_path / "loop", net, "ge2mst_nano")):
        with pytest.raises(CheckpointError, match="no path to a checkpoint"):
            attempt()
