"""Answers on which all processes of a run agree."""

import itertools

import jax
import numpy as np

_meetings = itertools.count()


def largest(number: int) -> int:
    """The largest of the processes' numbers; every process must ask.

    >>> largest(3)
    3
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).max())


def meet(seconds: float) -> None:
    """Waits so long, at most, until every process is here; `largest` waits half a minute for the first time on CPUs."""
    number = next(_meetings)
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.get_barrier_sync_fn()(key=f"ge2mst_jax meeting {number}", timeout_ms=int(1000 * seconds))
