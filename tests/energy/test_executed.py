"""Counts are what runs: every accumulate of the spiking program, counted while it runs, is one that was counted."""

import jax.numpy as jnp
import numpy as np
import pytest
from executed import executed_synops
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax import create_model
from ge2mst_jax.convert import deploy
from ge2mst_jax.energy import SpikeCounter

#: Of a tiny network: both orders of attention's products (4 tokens of width 2, 1 and 16 of width 8), groups, strides.
NETWORKS = {
    "keys first": dict(head_width=2),
    "queries first": dict(scales=("block1", "grid2")),
    "keys first, several steps": dict(head_width=2, qk_code="1x2"),
    "queries first, several steps": dict(scales=("block1", "grid2"), qk_code="2x2"),
    "one group of all": dict(scales=("block4", "grid4")),
    "queries first, wide values": dict(attention="sdsa", qk_code="1x2", head_width=16),
    "keys first, wide values": dict(attention="sdsa"),
    "gates of channels": dict(attention="sdsa_v1", qk_code="1x2", stages=(("attention", 16, 1),), stem_stride=2),
    "gates of tokens": dict(attention="qk_token", qk_code="1x2", local=False),
    "a stem of stride 2": dict(stem_stride=2, stem_kernel=5, scales=("block2", "grid1")),
}
QUICK = ("keys first, several steps", "queries first, several steps", "gates of channels", "a stem of stride 2")
SLOW = pytest.mark.slow


def compare(model, shape):
    net = deploy(model, random_variables(model, shape), shape, current_bits=24)
    images = random_images(1, shape)
    counter = SpikeCounter()
    counter.add(net(images, execution="spiking")[1])
    executed = executed_synops(net, jnp.asarray(images))
    for name, layer in counter.layers.items():  # with 24 bits weights are one plane on a CPU where spikes arrive
        assert executed.pop(name) == layer.synops > 0, name
    assert not any(executed.values())  # and nothing else accumulates


@pytest.mark.parametrize(
    "code", ["2x3/1", *(pytest.param(code, marks=SLOW) for code in ("1x1", "2x2", "4x1", "1x4", "2x2+2,0"))]
)
def test_every_code_accumulates_what_is_counted(code):
    compare(tiny_model(code), (8, 8, 2))


@pytest.mark.parametrize(
    "changes",
    [pytest.param(changes, id=name, marks=() if name in QUICK else SLOW) for name, changes in NETWORKS.items()],
)
def test_every_kind_of_layer_accumulates_what_is_counted(changes):
    compare(tiny_model("2x2", **changes), (8, 8, 2))


@pytest.mark.slow
def test_network_of_the_quickstart_accumulates_what_is_counted():
    compare(create_model("ge2mst_nano", code="2x3/1"), (8, 8, 1))


def test_a_dense_program_is_not_one_of_spikes(monkeypatch):
    """The counter's own check: products without a spike in them are refused."""
    net = deploy(model := tiny_model("2x2"), random_variables(model), (8, 8, 2), current_bits=24)
    monkeypatch.setattr(type(net), "executed", lambda self, *_: self.model.clone(execution="dense"))
    with pytest.raises(AssertionError, match="no operand is a spike"):
        executed_synops(net, jnp.asarray(np.full((1, 8, 8, 2), 99, np.uint8)))
