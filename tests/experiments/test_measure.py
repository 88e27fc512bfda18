"""What a row of the trilemma is measured on."""

import jax
import jax.numpy as jnp
import pytest
from harness import measure
from rich.console import Console

from ge2mst_jax import create_model
from ge2mst_jax.data import open_source
from ge2mst_jax.train import TrainConfig
from ge2mst_jax.train.metrics import MetricsFile

SHAPE = (8, 8, 1)


def small(**changes):
    stages = (("conv", 8, 1), ("attention", 16, 1))
    return create_model("ge2mst_nano", stages=stages, head_width=8, scales=("block2",), group_width=8, **changes)


@pytest.mark.parametrize(("attention", "layers"), [("gw_ssa", 10), ("qk_token", 11)])
def test_depth_is_the_longest_way_of_a_spike(attention, layers):
    """Two of the convolution block, one between the stages, neuron, q, [gate,] out, three of the feed-forward, head."""
    model = small(attention=attention)
    images = jax.ShapeDtypeStruct((1, *SHAPE), jnp.uint8)
    _, aux = jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0]
    assert measure.depth(aux) == layers


def test_history_is_means_over_equal_parts(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl", 0) as file:
        for step in range(1, 5):
            file.write({"step": step, "loss": float(step), "accuracy": step / 10})
        file.write({"step": 4, "test": {"accuracy": 0.5}})
    assert measure.history(tmp_path, points=2) == [
        {"step": 2, "loss": 1.5, "accuracy": pytest.approx(0.15)},
        {"step": 4, "loss": 3.5, "accuracy": pytest.approx(0.35)},
        {"step": 4, "test_accuracy": 0.5},
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("neuron", "steps", "latency"),
    [("relu", [0], [0]), ("sfa", [4], [40]), ("lif", [4], [4]), ("qcfs", [2, 3], [2, 3])],
)
def test_every_neuron_is_executed_in_its_way(neuron, steps, latency, monkeypatch):
    monkeypatch.setattr(measure, "RATE_STEPS", (2, 3))
    monkeypatch.setattr(measure, "RATE_IMAGES", 50)
    monkeypatch.setattr(measure, "CERTIFIED", 5)
    model = small(neuron=neuron, code="1x4" if neuron == "lif" else "4x1", qk_code="1x1")
    variables = jax.device_get(model.init(jax.random.key(0), jnp.zeros((1, *SHAPE), jnp.uint8)))
    train, test = (open_source("digits", split) for split in ("train", "test"))
    config = TrainConfig(neuron=neuron)
    found = measure.executions(config, model, variables, SHAPE, train, test, Console(quiet=True))
    runs = found["executed"]
    assert ([run["steps"] for run in runs], [run["latency"] for run in runs]) == (steps, latency)
    assert {run["images"] for run in runs} == {50 if neuron == "qcfs" else 360}
    assert all((run["spikes_per_neuron"] > 0) == (neuron != "relu") for run in runs)
    assert all(run["energy_mj"]["exact"] > 0 for run in runs)
    if neuron == "sfa":
        assert found["certificate"]["differing"] == "0, 0, 0"
        assert found["dense"] == runs[0]["accuracy"]
