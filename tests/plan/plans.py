"""Plans that nobody compiled: what the tests of this room count with."""

import jax

from ge2mst_jax.plan import CHIPS, Plan, Pod

#: As many devices as the tests have.
POD = Pod("v5e:2x4", CHIPS["v5e"], jax.devices())


def a_plan(**changes) -> Plan:
    """Four chips that take half a second for 400 images."""
    fields = dict(
        topology="v5e:2x2", chips=4, batch=400, work="train", compile_seconds=1.0, hbm=7.0, flops=50.0, cycles=10,
        memory={"arguments": 3, "temporary": 4}, seconds=0.5, peak=1000.0, bytes_accessed=819e9, byte_seconds=1.0,
        collectives={}, collective_seconds=0.0, unknown_loops=0, steps=7200, shares={"stage": {"stem": 1.0}},
    )  # fmt: skip
    return Plan(**fields | changes)
