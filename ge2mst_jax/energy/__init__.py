"""Exact counts, energy conventions, the audit of every product."""

from ge2mst_jax.energy.audit import KINDS, Audit, AuditError, Product, audit, list_products
from ge2mst_jax.energy.conventions import CONVENTIONS, Convention, energy
from ge2mst_jax.energy.synops import LayerCount, NeuronCount, SpikeCounter, connections_per_spike

__all__ = [
    "CONVENTIONS",
    "KINDS",
    "Audit",
    "AuditError",
    "Convention",
    "LayerCount",
    "NeuronCount",
    "Product",
    "SpikeCounter",
    "audit",
    "connections_per_spike",
    "energy",
    "list_products",
]
