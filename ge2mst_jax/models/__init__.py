"""Networks, their size tables, and `create_model` by name."""

from ge2mst_jax.models.ge2mst import Ge2mST, StageSize
from ge2mst_jax.models.registry import SIZES, create_model, model_fields

__all__ = ["SIZES", "Ge2mST", "StageSize", "create_model", "model_fields"]
