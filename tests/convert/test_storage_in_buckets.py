"""Deployed networks in a bucket, where nothing can be renamed: whenever a save is killed, one of them is there."""

import contextlib

import pytest
from tiny_networks import SHAPE

from ge2mst_jax import folders
from ge2mst_jax.checkpoint import CheckpointError
from ge2mst_jax.convert import deploy, load_net, save_net
from ge2mst_jax.convert.storage import ocp
from ge2mst_jax.files import write_whole
from ge2mst_jax.folders import files_in, folder, names_in, put, read

#: Of the clients: they close their connections when the process ends.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def place(bucket):
    return folder(bucket + "/nets/a")


class Killed(BaseException):
    pass


def killing(monkeypatch, after: int) -> list[str]:
    """From now on the process dies at the bucket's client's call of this number, or at Orbax's save."""
    files, calls = folders._files(), []

    def dying(name, method):
        def call(*arguments, **options):
            if len(calls) >= after:
                raise Killed
            if name not in ("exists", "info", "ls", "find", "cat_file"):
                calls.append(name)
            return method(*arguments, **options)

        return call

    class Dying:
        def __getattr__(self, name):
            return dying(name, getattr(files, name))

    monkeypatch.setattr(folders, "_files", Dying)
    monkeypatch.setattr(ocp, "save", dying("save", ocp.save))
    return calls


def test_network_comes_back_and_is_replaced(place, small):
    model, variables = small
    nets = [deploy(model, variables, SHAPE, about={"number": number}) for number in (1, 2)]
    for net in nets:
        save_net(place, net, "ge2mst_nano")
        found = load_net(place)
        assert (found.digest, found.about) == (net.digest, net.about)
    assert names_in(place.parent) == ["a"]


def test_something_else_is_not_replaced_and_no_network_is_said(place, small):
    net = deploy(*small, SHAPE)
    with pytest.raises(CheckpointError, match=r"no checkpoint at gs://.*/nets/a: give the folder"):
        load_net(place)
    write_whole(place / "notes.txt", b"mine")
    with pytest.raises(CheckpointError, match="is no deployed network that can be read: it is not replaced"):
        save_net(place, net, "ge2mst_nano")
    assert [read(file) for file in files_in(place)] == [b"mine"]


def test_damaged_network_is_refused(place, small):
    save_net(place, deploy(*small, SHAPE), "ge2mst_nano")
    largest = max(files_in(place), key=lambda file: len(read(file)))
    content = bytearray(read(largest))
    content[len(content) // 2] ^= 4
    put(largest, bytes(content))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_net(place)


@pytest.mark.slow
def test_wherever_a_save_is_killed_a_network_is_there_and_the_next_save_succeeds(place, small, monkeypatch):
    model, variables = small
    old, new, last = (deploy(model, variables, SHAPE, about={"number": number}) for number in (1, 2, 3))
    seen = set()
    for after in range(0, 60, 3):
        save_net(place, old, "ge2mst_nano")
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            calls = killing(patched, after)
            save_net(place, new, "ge2mst_nano")
        number = load_net(place).about["number"]
        assert number in (1, 2), after
        seen.add(number)
        with monkeypatch.context() as patched, contextlib.suppress(Killed):  # and the one that mends it, too
            killing(patched, after % 7)
            save_net(place, last, "ge2mst_nano")
        assert load_net(place).about["number"] in (number, 3), after
        save_net(place, last, "ge2mst_nano")
        assert load_net(place).about["number"] == 3
        assert names_in(place.parent) == ["a"]
        if len(calls) < after:
            break
    assert seen == {1, 2}
    assert len(calls) < after
