"""One run in a folder: the lock that the system keeps on a disk, the lease that a run renews in a bucket."""

import json
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

from ge2mst_jax import mirror
from ge2mst_jax.folders import folder, put, read, remove
from ge2mst_jax.train import lease
from ge2mst_jax.train.lock import InUse, exclusive

#: Of the clients: they close their connections when the process ends.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

# --- on a disk --------------------------------------------------------------------------------------------------------


def removed(folder):
    shutil.rmtree(folder)


def replaced(folder):
    folder.rename(folder.with_name("other"))
    folder.mkdir()
    (folder / ".lock").touch()


def renamed(folder):
    folder.rename(folder.with_name("other"))


@pytest.mark.parametrize("change", [removed, replaced, renamed])
@pytest.mark.parametrize("when", ["at the end", "asked", "another error"])
def test_folder_that_is_not_the_same_any_more_is_noticed(tmp_path, change, when):
    folder = tmp_path / "run"
    with (
        pytest.raises(ValueError, match="run was removed or replaced while the run used it"),
        exclusive(folder) as check,
    ):
        check()
        change(folder)
        if when == "asked":
            check()
        if when == "another error":
            raise FileNotFoundError("some file")


def test_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/run", Path("/proc/run")):
        with (
            pytest.raises(ValueError, match=r"the run's folder .* cannot be written: .*; give another folder"),
            exclusive(path),
        ):
            pass


# --- in a bucket ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(bucket):
    return folder(bucket + "/runs/a")


@pytest.fixture
def hurried(monkeypatch):
    """A second for a minute."""
    for name, seconds in (("RENEW_SECONDS", 0.3), ("STALE_SECONDS", 2.0), ("WATCH_SECONDS", 0.8)):
        monkeypatch.setattr(lease, name, seconds)


def elsewhere(monkeypatch):
    """From now on this process is another one, of another machine."""
    monkeypatch.setattr(lease, "_this_process", lambda: lease.Owner("other", "", 7, "", "id"))


def said(run_dir):
    return json.loads(read(run_dir / ".lock"))


def test_second_run_is_refused_and_the_first_goes_on(run_dir, hurried, monkeypatch):
    with exclusive(run_dir) as still_there:
        with pytest.raises(InUse, match=r"another run \(.*, process \d+\) is writing to gs://.*: give this one a"):
            exclusive(run_dir).__enter__()
        monkeypatch.undo()
        elsewhere(monkeypatch)
        with pytest.raises(InUse, match="another run"):  # one of another machine hears it
            exclusive(run_dir).__enter__()
        still_there(True)
    assert said(run_dir)["released"]
    with exclusive(run_dir) as still_there:
        still_there()
        assert not said(run_dir)["released"]


def test_stale_lock_is_taken_over_and_said(run_dir, hurried, monkeypatch, caplog):
    first = lease.Lease(run_dir)
    first.take()
    time.sleep(lease.STALE_SECONDS)  # nobody renews it
    elsewhere(monkeypatch)
    with exclusive(run_dir):
        assert "waiting whether it is heard again" in caplog.text
        assert re.search(rf"was held by a run \({first.owner}\) that was last heard \d s ago: taken over", caplog.text)
        first.check()  # it has not heard of it yet
        first._renewed -= lease.STALE_SECONDS
        with pytest.raises(ValueError, match=r"was taken over by another run \(other, process 7\) while the run used"):
            first.check(True)
        first.release()
        assert said(run_dir)["owner"]["host"] == "other"
        assert not said(run_dir)["released"]


def test_lock_of_a_process_that_ended_here_is_taken_over_at_once_and_said(run_dir, monkeypatch, caplog):
    gone = lease._this_process()
    monkeypatch.setattr(lease, "_this_process", lambda: lease.Owner(gone.host, gone.boot, gone.pid, "1", "before"))
    lease.Lease(run_dir).take()
    monkeypatch.undo()
    with exclusive(run_dir):
        assert f"was held by a run ({gone}) that has ended: taken over" in caplog.text


def test_lock_that_is_renewed_is_not_taken_over_whatever_its_clock_says(run_dir, hurried):
    put(run_dir / ".lock", lock_of_another(seconds_ago=200))

    def renew():
        put(run_dir / ".lock", lock_of_another(seconds_ago=200))

    with mirror.repeated(0.3, renew), pytest.raises(InUse, match=r"another run \(other, process 7\) is writing"):
        exclusive(run_dir).__enter__()


def test_only_one_of_many_gets_a_stale_lock(run_dir, hurried, monkeypatch):
    lease.Lease(run_dir).take()
    time.sleep(lease.STALE_SECONDS)
    elsewhere(monkeypatch)
    got, refused = [], []

    def try_it(number):
        one = lease.Lease(run_dir)
        one.owner = lease.Owner("other", "", number, "", str(number))
        try:
            one.take()
            got.append(one)
        except InUse:
            refused.append(one)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for one in got:
            one.renew()
        time.sleep(0.1)
    assert (len(got), len(refused)) == (1, 3)


@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_lock_that_is_not_the_same_any_more_ends_the_run(run_dir, hurried, what, monkeypatch):
    with pytest.raises(ValueError, match=r"removed or replaced|taken over"), exclusive(run_dir) as still_there:
        remove(run_dir)
        if what == "replaced":
            put(run_dir / ".lock", lock_of_another())
        for _ in range(100):
            time.sleep(0.05)
            still_there()
        pytest.fail("it was not noticed")


def lock_of_another(seconds_ago: float = 0.0) -> bytes:
    owner = {"host": "other", "boot": "", "pid": 7, "started": "", "id": "id"}
    return json.dumps({"owner": owner, "time": time.time() - seconds_ago, "released": False}).encode()


def test_lock_outlives_a_server_that_fails(run_dir, buckets, hurried, monkeypatch):
    monkeypatch.setattr(lease, "_patience", lambda: {"timeout": 1, "retry": None})
    with exclusive(run_dir) as still_there:
        for fault in ("500", "cut", "lost"):
            buckets.proxy.fault = lambda method, path, fault=fault: fault
            before = len(buckets.proxy.faults)
            while len(buckets.proxy.faults) < before + 3:
                time.sleep(0.05)
            still_there()
        buckets.proxy.fault = lambda method, path: None
        time.sleep(4 * lease.RENEW_SECONDS)
        still_there(True)
        assert len({fault for fault, *_ in buckets.proxy.faults}) == 3
        assert time.time() - said(run_dir)["time"] < 2


def test_what_is_no_lock_is_left_alone(run_dir):
    put(run_dir / ".lock", b"mine")
    with pytest.raises(ValueError, match=r"its .lock is no lock of a run: delete it"):
        exclusive(run_dir).__enter__()
    assert read(run_dir / ".lock") == b"mine"


def test_no_such_bucket_is_said(buckets):
    with pytest.raises(ValueError, match="folder gs://none-such/a cannot be written: there is no such bucket"):
        exclusive(folder("gs://none-such/a")).__enter__()
