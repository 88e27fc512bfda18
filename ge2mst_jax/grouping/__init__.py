"""Token partitions and attention inside token groups. No Flax."""

from ge2mst_jax.grouping.attention import (
    REAL,
    attention_halves,
    attention_synops,
    check_rates,
    group_attention,
    gw_attention,
    keys_first,
    share_heads,
    ssa,
)
from ge2mst_jax.grouping.partition import PARTITIONS, Scale, partition, read_scales, unpartition
from ge2mst_jax.grouping.training import masked_attention, training_attention

__all__ = [
    "PARTITIONS",
    "REAL",
    "Scale",
    "attention_halves",
    "attention_synops",
    "check_rates",
    "group_attention",
    "gw_attention",
    "keys_first",
    "masked_attention",
    "partition",
    "read_scales",
    "share_heads",
    "ssa",
    "training_attention",
    "unpartition",
]
