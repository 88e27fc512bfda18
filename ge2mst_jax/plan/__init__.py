"""What a pod that is not there would do: the TPU compiler's answer, with chip figures as data."""

from ge2mst_jax.plan.chips import CHIPS, Chip
from ge2mst_jax.plan.make import DATASETS, Plan, lower_step, make_plan, shape_of, shares
from ge2mst_jax.plan.program import Work, named, read_program, shape_bytes
from ge2mst_jax.plan.topology import open_topology, read_topology

__all__ = [
    "CHIPS",
    "DATASETS",
    "Chip",
    "Plan",
    "Work",
    "lower_step",
    "make_plan",
    "named",
    "open_topology",
    "read_program",
    "read_topology",
    "shape_bytes",
    "shape_of",
    "shares",
]
