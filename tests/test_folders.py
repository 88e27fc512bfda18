"""Folders on a disk and in a bucket: what differs between the two."""

import contextlib
import importlib.util
import json
import time
from pathlib import Path

import pytest

from ge2mst_jax import folders
from ge2mst_jax.files import read_json, write_whole
from ge2mst_jax.folders import (
    MARK,
    check_mounted,
    exists,
    files_in,
    folder,
    in_bucket,
    is_folder,
    is_unfinished,
    make,
    move,
    names_in,
    read,
    remove,
)  # fmt: skip
from ge2mst_jax.mirror import Mirror
from ge2mst_jax.train import TrainConfig

#: Of the client: it closes its connections when the process ends.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.mark.parametrize("given", ["gs://b/runs/a", Path("gs://b/runs/a"), "gs:/b/runs/a", "gs://b/runs/a/"])
def test_address_of_a_bucket_survives_being_a_path(bucket, given):
    found = folder(given)
    assert str(found) == "gs://b/runs/a"
    assert str(folder(found) / "x") == "gs://b/runs/a/x"
    assert in_bucket(found)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("s3://b/run", r"run_dir is s3://b/run: of buckets only gs:// is known; mount it, or use a disk that"),
        ("hdfs://host/run", r"run_dir is hdfs://host/run: of buckets only gs:// is known"),
        ("gs://bucket", r"run_dir is gs://bucket: name a folder in a bucket, such as gs://bucket/runs/a"),
        ("gs://", r"run_dir is gs:.*: name a folder in a bucket"),
        ("gs://bucket/../x", r"run_dir is gs://bucket/../x: name a folder in a bucket, .* without '..'"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_other_addresses_are_refused(bucket, given, says, kind):
    with pytest.raises(ValueError, match=f"^{says}"):
        folder(kind(given), "run_dir")


def test_without_its_client_a_bucket_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"run_dir is gs://b/a: a bucket needs gcsfs: pip install gcsfs"):
        folder("gs://b/a", "run_dir")
    assert str(TrainConfig(init_from="gs://b/a").init_from) == "gs://b/a"  # a run is read where its start is not


def test_data_in_a_bucket_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"data_dir is gs://b/data: data are not read from a bucket: mount it read-"):
        check_mounted("data_dir", Path("gs://b/data"))


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "run"
    return folder(request.getfixturevalue("bucket") + "/run")


def test_both_kinds_of_folder_do_the_same(place):
    assert (names_in(place), is_folder(place), exists(place)) == ([], False, False)
    make(place / "a")
    write_whole(place / "a" / "one.json", json.dumps({"n": 1}))
    write_whole(place / "a" / "one.json", json.dumps({"n": 2}))
    write_whole(place / "two", b"2")
    assert (names_in(place), names_in(place / "a")) == (["a", "two"], ["one.json"])
    assert (is_folder(place), exists(place / "two"), exists(place / "three")) == (True, True, False)
    assert read_json(place / "a" / "one.json") == {"n": 2}
    assert sorted(map(str, files_in(place))) == [str(place / "a" / "one.json"), str(place / "two")]
    move(place / "a", place / "b")
    assert names_in(place) == ["b", "two"]
    assert read_json(place / "b" / "one.json") == {"n": 2}
    remove(place / "b")
    assert names_in(place) == ["two"]
    with pytest.raises(FileNotFoundError, match="none"):
        read(place / "none")


def test_what_another_process_writes_is_seen_at_once(bucket, buckets):
    place = folder(bucket + "/run")
    write_whole(place / "a", b"1")
    assert names_in(place) == ["a"]
    from google.cloud import storage

    storage.Client().bucket(place.parts[2]).blob("run/b").upload_from_string(b"2")
    assert names_in(place) == ["a", "b"]
    assert exists(place / "b")


def test_no_bucket_is_made_by_a_typing_error(buckets):
    place = folder("gs://no-such-bucket/run")
    with pytest.raises(OSError, match="there is no such bucket"):
        make(place)
    with pytest.raises(OSError, match="No such file"):
        write_whole(place / "a", b"")
    assert not is_folder(place)


def test_faults_of_the_server_are_overcome_or_said(bucket, buckets, monkeypatch):
    place = folder(bucket + "/run")
    for number, fault in enumerate(("500", "cut", "lost")):
        left = [fault]
        buckets.proxy.fault = lambda method, path, left=left: left.pop() if left else None
        write_whole(place / str(number), fault)
        assert read(place / str(number)) == fault.encode()
        assert not left
    monkeypatch.setattr("asyncio.sleep", no_sleep)
    buckets.proxy.fault = lambda method, path: "500"
    for call in (lambda: read(place / "1"), lambda: exists(place / "1"), lambda: names_in(place)):
        with pytest.raises(OSError, match="on purpose") as error:
            call()
        assert "run" in str(error.value.filename)


async def no_sleep(*_):
    """Retries wait a minute in all."""


@pytest.mark.parametrize("killed_after", [1, 3, 5, 7, 9])
def test_a_move_that_is_killed_leaves_one_of_the_two_whole(bucket, buckets, killed_after, monkeypatch):
    source, target = folder(bucket + "/a"), folder(bucket + "/b")
    for name in ("x", "d/y", MARK):
        write_whole(source / name, name)
    files, calls = folders._files(), []

    def dying(method):
        def call(*arguments, **options):
            calls.append(method)
            if len(calls) > killed_after:
                raise KeyboardInterrupt
            return getattr(files, method)(*arguments, **options)

        return call

    class Dying:
        def __getattr__(self, name):
            return dying(name)

    monkeypatch.setattr(folders, "_files", Dying)
    with contextlib.suppress(KeyboardInterrupt):
        move(source, target)
    monkeypatch.undo()
    whole = [place for place in (source, target) if not is_unfinished(place)]
    assert whole
    assert all(sorted(f.name for f in files_in(place)) == sorted(["x", "y", MARK]) for place in whole)


def test_mirror_uploads_what_has_grown_and_nothing_once_the_folder_is_lost(bucket, buckets, monkeypatch):
    place, lost = folder(bucket + "/run"), []

    def may_write():
        if lost:
            raise ValueError("taken over")

    monkeypatch.setattr("ge2mst_jax.mirror.UPLOAD_SECONDS", 0.05)
    with Mirror(place, may_write) as mirror:
        grows = mirror.here / "sub" / "grows"
        grows.parent.mkdir()
        grows.write_text("a")
        mirror.upload()
        assert read(place / "sub" / "grows") == b"a"
        grows.write_text("ab")
        for _ in range(100):
            time.sleep(0.05)
            if read(place / "sub" / "grows") == b"ab":
                break
        else:
            pytest.fail("nothing was uploaded in the background")
        buckets.proxy.asked.clear()
        mirror.upload()
        assert not [path for method, path in buckets.proxy.asked if method == "POST"]
        lost.append(True)
        grows.write_text("abc")
        with pytest.raises(ValueError, match="taken over"):
            mirror.upload()
        assert read(place / "sub" / "grows") == b"ab"
        lost.clear()
    assert read(place / "sub" / "grows") == b"abc"
    assert not mirror.here.exists()
