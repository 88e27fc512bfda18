"""Joining processes: by the config's fields or the environment."""

import jax
import pytest

from ge2mst_jax.train import TrainConfig
from ge2mst_jax.train.distributed import initialize


@pytest.fixture
def joined(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    return calls


def test_single_process_joins_nothing(joined):
    initialize(TrainConfig(), {})
    assert joined == []


def test_fields_go_before_the_environment(joined):
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    initialize(TrainConfig(), environment)
    initialize(TrainConfig(coordinator="b:2", num_processes=2, process_id=0), environment)
    initialize(TrainConfig(coordinator="auto"), {})
    assert joined == [("a:1", 4, 3), ("b:2", 2, 0), ()]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"coordinator": "a:1"}, r"num_processes \(or JAX_NUM_PROCESSES\) is missing"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "process_id is 2: with 2 processes it must be 0 to 1",
        ),
    ],
)
def test_half_an_address_is_refused(joined, fields, says):
    with pytest.raises(ValueError, match=says):
        initialize(TrainConfig(**fields), {})
    with pytest.raises(ValueError, match="must be whole numbers"):
        initialize(TrainConfig(), {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "x", "JAX_PROCESS_ID": "0"})
    assert joined == []
