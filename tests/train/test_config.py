"""The config: what it refuses, what it counts, and that JSON keeps all of it."""

import json
from pathlib import Path

import pytest

from ge2mst_jax.data import AugmentConfig, DecodeConfig
from ge2mst_jax.train import TrainConfig, as_json, from_json


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: it must be at least 0"),
        ({"base_learning_rate": 0.0}, "base_learning_rate is 0.0: it must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0: it must be at least 0 and below 1"),
        ({"seed": -1}, "seed is -1: it must be 0 to 4294967295"),
        ({"mesh_data": 0}, "mesh_data is 0: it must be at least 1, or -1 for all devices"),
        ({"epochs": float("nan")}, "epochs is nan: it must be above 0"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"batch_size": 10, "accumulate": 4}, "accumulate is 4: it must divide batch_size 10"),
        ({"remat": "all"}, "unknown remat 'all': known are none"),
        ({"spike_budget": 9.0}, "spike_budget is 9.0: it must be above 0, in spikes"),
        ({"data_dir": Path("gs://bucket/data")}, "data_dir is gs:/bucket/data: a bucket is not a folder"),
        ({"init_from": Path("gs://bucket/run")}, "init_from is gs:/bucket/run: a bucket is not a folder"),
    ],
)
def test_wrong_field_is_refused_by_name_with_what_it_must_be(changes, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        TrainConfig(**changes)


def test_json_keeps_everything():
    config = TrainConfig(
        data="folder:x", data_dir=Path("d"), decode=DecodeConfig(image_size=96), init_from=Path("runs/a"),
        augment=AugmentConfig(mixup=0.2, erasing=0.25), scales=("block2", "grid2"), spike_budget=0.3, steps=7,
    )  # fmt: skip
    assert from_json(json.loads(json.dumps(as_json(config)))) == config


def test_config_of_another_version_is_refused_by_its_field():
    with pytest.raises(ValueError, match="has the field 'momentum', which this version does not know"):
        from_json(as_json(TrainConfig()) | {"momentum": 0.9})


def test_lengths_are_counted_in_steps():
    config = TrainConfig(batch_size=100, epochs=3.0)
    assert (config.num_steps(1000), config.in_steps(0.5, 1000), config.num_steps(1)) == (30, 5, 1)
    assert TrainConfig(batch_size=100, steps=7).num_steps(1000) == 7
