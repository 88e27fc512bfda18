"""TPU chips as data: what a plan is held against."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPU chips.

    Args:
        name: as topologies are written, `v5e`.
        peak: bfloat16 operations a second and chip.
        hbm: bytes of memory.
        bandwidth: of that memory, bytes a second.
        clock: cycles a second; the peak over what its matrix units do in a cycle.
        interconnect: bytes a second and chip to its neighbours, all links, both directions.
        accelerator: prefix of `TPU_ACCELERATOR_TYPE`.
        source: of the figures.
    """

    name: str
    peak: float
    hbm: float
    bandwidth: float
    clock: float
    interconnect: float
    accelerator: str
    source: str


_DOCS = "docs.cloud.google.com/tpu/docs/"
#: The clock is peak / (matrix units · rows · columns · 2); v6e's page names units that would make it 3.5 GHz, so its
#: clock is taken as v5p's, and its times in cycles are worth less.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32e9, 1228e9, 1.05e9, 300e9, "v4", _DOCS + "v4"),
        Chip("v5e", 197e12, 16e9, 819e9, 1.5e9, 200e9, "v5litepod", _DOCS + "v5e"),
        Chip("v5p", 459e12, 95e9, 2765e9, 1.75e9, 600e9, "v5p", _DOCS + "v5p"),
        Chip("v6e", 918e12, 32e9, 1638e9, 1.75e9, 400e9, "v6e", _DOCS + "v6e"),
    )
}
