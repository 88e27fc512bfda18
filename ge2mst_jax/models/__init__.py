"""Networks, their size tables, and `create_model` by name."""

from ge2mst_jax.models.ge2mst import REMAT, Ge2mST, StageSize
from ge2mst_jax.models.registry import SIZES, create_model, model_fields

__all__ = ["REMAT", "SIZES", "Ge2mST", "StageSize", "create_model", "model_fields"]
