"""Ge²mS-T in JAX: one network definition, two executions (dense, spiking), equal bit for bit."""

from ge2mst_jax.models import create_model
from ge2mst_jax.spiking import SpikeCode

__version__ = "0.1.0"

__all__ = ["SpikeCode", "create_model"]
