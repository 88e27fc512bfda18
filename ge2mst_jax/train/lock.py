"""One run in a folder: a lock that the system keeps on a disk, a lease that the run renews in a bucket."""

import contextlib
import fcntl
import os
from pathlib import Path

import jax

from ge2mst_jax.checkpoint import reason
from ge2mst_jax.checks import one_line
from ge2mst_jax.folders import folder, in_bucket, make
from ge2mst_jax.train.lease import InUse, in_use, leased
from ge2mst_jax.train.processes import meet

__all__ = ["InUse", "exclusive"]

#: Seconds until process 0 knows whether it has a bucket's folder: the others wait so long for it.
_MOST_SECONDS = 300.0


@contextlib.contextmanager
def exclusive(run_dir):
    """Holds a run's folder; a second run in it is refused.

    Yields a function that raises where the folder is not there any more or another run's; called with `True`, it asks
    a server that was not heard for a minute: before anything is written that another run would read.

    Raises:
        InUse: another process holds it.
        ValueError: it cannot be written, or it was removed or replaced, or taken over, meanwhile.
    """
    run_dir = folder(run_dir)
    if jax.process_index() != 0:
        if in_bucket(run_dir):
            meet(_MOST_SECONDS)
        yield lambda surely=False: None
        return
    with contextlib.ExitStack() as held:
        try:
            make(run_dir)
            check = held.enter_context((_leased if in_bucket(run_dir) else _locked)(run_dir))
        except OSError as error:
            raise ValueError(
                f"the run's folder {one_line(run_dir)} cannot be written: {reason(error)}; give another folder"
            ) from error
        try:
            yield check
        except Exception:
            check()  # says more than what failed because of it
            raise
        check()


@contextlib.contextmanager
def _locked(run_dir: Path):
    with open(run_dir / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use(run_dir) from None

        def check(surely=False):
            try:
                same = os.path.samestat(os.stat(run_dir / ".lock"), os.fstat(lock.fileno()))
            except OSError:
                same = False
            if not same:
                raise ValueError(f"the run's folder {one_line(run_dir)} was removed or replaced while the run used it")

        yield check


@contextlib.contextmanager
def _leased(run_dir):
    with leased(run_dir) as check:
        meet(_MOST_SECONDS)  # the other processes have waited all the while
        yield check
