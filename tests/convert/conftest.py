"""One tiny network for all tests of the conversion."""

import pytest
from tiny_networks import SHAPE, random_variables, tiny_model

from ge2mst_jax.convert import deploy


@pytest.fixture(scope="module")
def model():
    return tiny_model("2x2")


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.fixture(scope="module")
def net(model, variables):
    return deploy(model, variables, SHAPE)


@pytest.fixture(scope="module")
def small():
    """The smallest network there is, with its variables: one convolution block."""
    model = tiny_model(stages=(("conv", 8, 1),))
    return model, random_variables(model, seed=5)
