"""Exact counts, energy conventions, the audit of every product."""

from ge2mst_jax.energy.audit import Audit, AuditError, audit
from ge2mst_jax.energy.conventions import CONVENTIONS, Convention, energy
from ge2mst_jax.energy.synops import LayerCount, NeuronCount, SpikeCounter, connections_per_spike

__all__ = [
    "CONVENTIONS",
    "Audit",
    "AuditError",
    "Convention",
    "LayerCount",
    "NeuronCount",
    "SpikeCounter",
    "audit",
    "connections_per_spike",
    "energy",
]
