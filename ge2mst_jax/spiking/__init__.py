"""Spike codes, neurons as pure steps, their one-pass twins, surrogate gradients. No Flax."""

from ge2mst_jax.spiking.codes import SpikeCode
from ge2mst_jax.spiking.neurons import (
    ExpGParams,
    ExpGState,
    LIFParams,
    LIFSettings,
    charge_step,
    expg_charge,
    expg_fire,
    fire_step,
    if_params,
    lif_fire,
    lif_params,
    lif_step,
    plif_params,
)
from ge2mst_jax.spiking.operands import align
from ge2mst_jax.spiking.scan import scan_time
from ge2mst_jax.spiking.surrogate import SURROGATES, heaviside
from ge2mst_jax.spiking.twins import (
    expg_activation,
    expg_spike_count,
    expg_twin,
    expg_twin_kept,
    halves_to_even,
    kept_levels,
    ladder_levels,
    project,
    qcfs_twin,
    sfa_twin,
)

__all__ = [
    "SURROGATES",
    "ExpGParams",
    "ExpGState",
    "LIFParams",
    "LIFSettings",
    "SpikeCode",
    "align",
    "charge_step",
    "expg_activation",
    "expg_charge",
    "expg_fire",
    "expg_spike_count",
    "expg_twin",
    "expg_twin_kept",
    "fire_step",
    "halves_to_even",
    "heaviside",
    "if_params",
    "kept_levels",
    "ladder_levels",
    "lif_fire",
    "lif_params",
    "lif_step",
    "plif_params",
    "project",
    "qcfs_twin",
    "scan_time",
    "sfa_twin",
]
