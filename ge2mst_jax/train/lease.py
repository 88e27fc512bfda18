"""Who holds a run's folder in a bucket: an object that the run renews, and that another one may take over."""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from ge2mst_jax.checks import one_line
from ge2mst_jax.mirror import repeated

log = logging.getLogger(__name__)

#: Seconds between the renewals of a lease; after how many without one it may be taken over; how long one that looks
#: old is watched before: the clocks of two machines differ.
RENEW_SECONDS, STALE_SECONDS, WATCH_SECONDS = 20.0, 120.0, 45.0


class InUse(ValueError):
    """Another process holds a run's folder."""


def in_use(run_dir, by: str = "") -> InUse:
    return InUse(f"another run{by} is writing to {one_line(run_dir)}: give this one a folder of its own")


@contextlib.contextmanager
def leased(run_dir):
    """Holds a run's folder in a bucket while the block runs; yields `check`, as `exclusive` does.

    Raises:
        InUse: another run holds it.
        OSError: the bucket cannot be read or written.
    """
    lease = Lease(run_dir)
    lease.take()
    try:
        with repeated(RENEW_SECONDS, lease.renew_or_wait):
            yield lease.check
    finally:
        lease.release()


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a bucket's folder: a process, and what tells it from another one of the same number.

    Args:
        host: name of its machine.
        boot: of the machine's start and the process's name space; empty where the system does not tell.
        pid: its number there.
        started: ticks of the machine's clock at its start; empty where the system does not tell.
        id: by chance.
    """

    host: str
    boot: str
    pid: int
    started: str
    id: str

    def __str__(self):
        return f"{one_line(self.host)}, process {self.pid}"

    def is_gone(self, here: "Owner") -> bool | None:
        """Whether it ended, as one of the same machine can tell; `None` where that is not known."""
        if not self.boot or self.boot != here.boot:
            return None
        return _started(self.pid) != self.started


def _started(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _this_process() -> Owner:
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return Owner(socket.gethostname(), boot, os.getpid(), _started(os.getpid()), uuid.uuid4().hex)


class Lease:
    """`.lock` of a run in a bucket: an object that says who holds the folder, and since when it was not heard.

    Whoever writes it names the generation that it replaces: the server refuses the second of two.
    """

    def __init__(self, run_dir):
        from google.cloud import storage

        self.run_dir, self.owner, self.lost = run_dir, _this_process(), None
        self._generation, self._renewed, self._lock = 0, 0.0, threading.Lock()
        bucket, _, inside = str(run_dir).removeprefix("gs://").partition("/")
        with _answered():
            self._bucket, self._name = storage.Client().bucket(bucket), f"{inside}/.lock"

    def take(self) -> None:
        """Until it is ours.

        Raises:
            InUse: another run renewed it.
            OSError: the bucket cannot be read or written.
        """
        seen, watched = None, time.monotonic()
        while True:
            found = self._read()
            generation, owner, age = found or (0, None, 0.0)
            since = time.monotonic() - watched
            gone = owner is None or owner.is_gone(self.owner)
            if owner is not None and (gone is False or seen not in (None, generation)):
                raise in_use(self.run_dir, f" ({owner})")
            if gone or (since >= WATCH_SECONDS and max(age, since) >= STALE_SECONDS):
                if self._write(generation):
                    if owner is not None:
                        why = "has ended" if gone else f"was last heard {age:.0f} s ago"
                        log.warning("%s was held by a run (%s) that %s: taken over", self.run_dir, owner, why)
                    return
            elif seen is None:
                seen = generation
                log.warning(
                    "%s is held by a run (%s) that was last heard %.0f s ago: waiting whether it is heard again",
                    self.run_dir, owner, age,
                )  # fmt: skip
            time.sleep(min(1.0, WATCH_SECONDS / 10))

    def check(self, surely: bool = False) -> None:
        """Raises a `ValueError` where the folder is not ours any more, as far as was heard in the last minute."""
        if surely and time.monotonic() - self._renewed > STALE_SECONDS / 2:
            self.renew()
        if self.lost is not None:
            raise ValueError(self.lost)

    def renew_or_wait(self) -> None:
        """One renewal; a server that does not answer is asked again the next time."""
        with contextlib.suppress(OSError):
            self.renew()

    def renew(self) -> None:
        """Says that the run is alive, or finds that the folder is another one's.

        Raises:
            OSError: the bucket cannot be read or written.
        """
        with self._lock:
            if self.lost is not None or self._write(self._generation):
                return
            found = self._read()
            by = f"taken over by another run ({found[1] or 'ended since'})" if found else "removed or replaced"
            self.lost = f"the run's folder {one_line(self.run_dir)} was {by} while the run used it"

    def release(self) -> None:
        """Leaves it to whoever comes next."""
        with contextlib.suppress(OSError):
            if self.lost is None:
                self._write(self._generation, released=True)

    def _write(self, generation: int, released: bool = False) -> bool:
        """Whether the object was still of this generation (0: absent), and is now ours."""
        from google.api_core import exceptions

        content = {"owner": dataclasses.asdict(self.owner), "time": time.time(), "released": released}
        began, blob = time.monotonic(), self._bucket.blob(self._name)
        with _answered():
            try:
                blob.upload_from_string(
                    json.dumps(content), "application/json", if_generation_match=generation, **_patience()
                )
            except exceptions.PreconditionFailed:
                found = self._read()  # the answer to our own write may have been lost
                if found is None or found[1] != self.owner or found[0] == self._generation:
                    return False
        self._generation, self._renewed = blob.generation or found[0], began
        return True

    def _read(self):
        """`(generation, owner, seconds since it was heard)`; the owner is `None` where it was released."""
        from google.api_core import exceptions

        blob = self._bucket.blob(self._name)  # one that was read before would be read again in its old generation
        with _answered():
            try:
                content = blob.download_as_bytes(**_patience())
            except exceptions.NotFound:
                return None
        try:
            said = json.loads(content)
            owner = None if said["released"] else Owner(**said["owner"])
            return blob.generation, owner, time.time() - said["time"]
        except (ValueError, KeyError, TypeError):
            raise OSError(
                None, "its .lock is no lock of a run: delete it if none is running", str(self.run_dir)
            ) from None


def _patience() -> dict:
    """How long a request is tried: much less than a lease lasts."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": 10, "retry": DEFAULT_RETRY.with_timeout(30)}


@contextlib.contextmanager
def _answered():
    """Whatever Google's client raises, but for what is caught within, as an `OSError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(None, one_line(error) or type(error).__name__) from error
