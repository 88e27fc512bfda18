"""Answers on which all processes of a run agree."""

import jax
import numpy as np


def largest(number: int) -> int:
    """The largest of the processes' numbers; every process must ask.

    >>> largest(3)
    3
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).max())
