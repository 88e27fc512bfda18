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
from ge2mst_jax.grouping.gates import channel_sums, gated, head_sums, per_channel
from ge2mst_jax.grouping.partition import PARTITIONS, Scale, partition, read_scales, unpartition
from ge2mst_jax.grouping.training import masked_attention, training_attention

__all__ = [
    "PARTITIONS",
    "REAL",
    "Scale",
    "attention_halves",
    "attention_synops",
    "channel_sums",
    "check_rates",
    "gated",
    "group_attention",
    "gw_attention",
    "head_sums",
    "keys_first",
    "masked_attention",
    "partition",
    "per_channel",
    "read_scales",
    "share_heads",
    "ssa",
    "training_attention",
    "unpartition",
]
