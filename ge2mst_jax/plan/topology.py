"""A pod that is not there: its chips as the TPU's compiler knows them, without one at hand."""

import dataclasses
import importlib.util
import math
import os
import re

from ge2mst_jax.checks import one_line, shown
from ge2mst_jax.plan.chips import CHIPS, Chip

_TEXT = re.compile(r"(v\w+):(\d{1,3}(?:x\d{1,3}){1,2})", re.ASCII)
#: Shapes that the compiler knows, examples to name in an error.
SHAPES = {
    "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4",
    "v5e": "2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8",
    "v6e": "2x2 2x4 4x4 4x8 8x8 8x16 16x16",
}


def read_topology(text: str) -> tuple[Chip, int]:
    """The chip of a topology and how many there are.

    Raises:
        ValueError: no topology; names those that are.

    >>> chip, count = read_topology("v5e:4x4")
    >>> chip.name, count
    ('v5e', 16)
    >>> read_topology("v9:1")
    Traceback (most recent call last):
    ValueError: unknown topology 'v9:1': write CHIP:SHAPE, v4:2x2x1 ... v5e:4x4 ... v5p:2x2x2 ... v6e:16x16
    """
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f"unknown topology {shown(text)}: write CHIP:SHAPE, v4:2x2x1 ... v5e:4x4 ... v5p:2x2x2 ... v6e:16x16"
        )
    count = math.prod(int(side) for side in match[2].split("x"))
    if not 1 <= count <= 4096:
        raise ValueError(f"topology {text} has {count} chips: 1 to 4096 can be planned")
    return CHIPS[match[1]], count


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips that need not be there.

    Args:
        topology: their text, `v5e:4x4`.
        chip: their generation.
        devices: as JAX compiles for them.
    """

    topology: str
    chip: Chip
    devices: list


def open_topology(text: str) -> Pod:
    """The pod of a topology, from the compiler in `libtpu`; JAX itself stays on the CPU.

    Raises:
        ValueError: no topology, a shape that the compiler does not know, no `libtpu`, or another process that uses it.
    """
    chip, count = read_topology(text)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "a plan needs the TPU's compiler, libtpu, which is not installed: pip install 'libtpu==0.0.42.1'"
        )
    # Read by libtpu when it is loaded: without them it asks the network for the machine that it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.accelerator}-{count}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(text, platform="tpu").devices
    except Exception as error:  # the compiler's own, of many types
        if "lockfile" in str(error):
            raise ValueError(
                f"topology {text}: another process uses the compiler, which serves one at a time: wait until it ends "
                f"({one_line(error)[:160]})"
            ) from error
        raise ValueError(
            f"topology {text}: the compiler does not know it ({one_line(error)[:120]}); "
            f"shapes of {chip.name} are {SHAPES[chip.name]}"
        ) from error
    if len(devices) != count:
        raise ValueError(
            f"topology {text}: the compiler shows {len(devices)} devices of {count} chips, and figures of a part of "
            "a chip are not planned: take v5e or v6e"
        )
    return Pod(text, chip, list(devices))
