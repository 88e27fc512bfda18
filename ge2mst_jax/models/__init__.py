"""Networks, ours and the peers', their size tables, and `create_model` by name."""

from ge2mst_jax.models.e_spikeformer import ESpikeFormer
from ge2mst_jax.models.ge2mst import REMAT, Ge2mST, StageSize
from ge2mst_jax.models.maxformer import MaxFormer
from ge2mst_jax.models.meta_spikeformer import MetaSpikeFormer
from ge2mst_jax.models.qkformer import QKFormer
from ge2mst_jax.models.registry import PEERS, SIZES, PeerSize, create_model, fields_of, model_class, model_fields
from ge2mst_jax.models.sizes import Parameters, parameter_counts
from ge2mst_jax.models.spike_driven_transformer import SpikeDrivenTransformer
from ge2mst_jax.models.spikformer import Spikformer
from ge2mst_jax.models.spikingresformer import SpikingResformer
from ge2mst_jax.models.torch_names import from_torch

__all__ = [
    "PEERS",
    "REMAT",
    "SIZES",
    "ESpikeFormer",
    "Ge2mST",
    "MaxFormer",
    "MetaSpikeFormer",
    "Parameters",
    "PeerSize",
    "QKFormer",
    "SpikeDrivenTransformer",
    "Spikformer",
    "SpikingResformer",
    "StageSize",
    "create_model",
    "fields_of",
    "from_torch",
    "model_class",
    "model_fields",
    "parameter_counts",
]
