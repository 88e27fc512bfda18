"""What a pod that is not there would do: the TPU compiler's answer, with chip figures as data."""

from ge2mst_jax.plan.anchors import ANCHORS, check_anchors, lower_anchor
from ge2mst_jax.plan.batches import LargestBatch, Search, largest_batch, search
from ge2mst_jax.plan.chips import CHIPS, Chip
from ge2mst_jax.plan.lower import DATASETS, WORKS, accumulated, check_work, lower_work, shape_of
from ge2mst_jax.plan.make import OutOfMemory, Plan, make_anchor, make_plan, plan_of, shares
from ge2mst_jax.plan.program import Operation, named, read_program, shape_bytes
from ge2mst_jax.plan.sweep import Point, Row, make_points, ranked, read_rows, sweep
from ge2mst_jax.plan.tables import cheapest, largest_table, plan_table, sweep_table
from ge2mst_jax.plan.topology import Pod, open_topology, read_topology

__all__ = [
    "ANCHORS",
    "CHIPS",
    "DATASETS",
    "WORKS",
    "Chip",
    "LargestBatch",
    "Operation",
    "OutOfMemory",
    "Plan",
    "Pod",
    "Point",
    "Row",
    "Search",
    "accumulated",
    "cheapest",
    "check_anchors",
    "check_work",
    "largest_batch",
    "largest_table",
    "lower_anchor",
    "lower_work",
    "make_anchor",
    "make_plan",
    "make_points",
    "named",
    "open_topology",
    "plan_of",
    "plan_table",
    "ranked",
    "read_program",
    "read_rows",
    "read_topology",
    "search",
    "shape_bytes",
    "shape_of",
    "shares",
    "sweep",
    "sweep_table",
]
