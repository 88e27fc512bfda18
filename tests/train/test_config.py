"""The config: what it refuses, what it counts, and that JSON keeps all of it."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from ge2mst_jax.data import AugmentConfig, DecodeConfig
from ge2mst_jax.models import model_fields
from ge2mst_jax.spiking import LIFSettings
from ge2mst_jax.train import TrainConfig, as_json, build_model, from_json
from ge2mst_jax.train.config import BEFORE
from ge2mst_jax.train.loop import check_config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0: it must be a whole number, 1 to 16777216"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: it must be a number at least 0"),
        ({"base_learning_rate": 0.0}, "base_learning_rate is 0.0: it must be a number above 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0: it must be a number at least 0 and below 1"),
        ({"seed": -1}, "seed is -1: it must be a whole number, 0 to 4294967295"),
        ({"mesh_data": 0}, "mesh_data is 0: it must be at least 1, or -1 for all devices"),
        ({"epochs": float("nan")}, "epochs is nan: it must be a number above 0"),
        ({"steps": 0}, "steps is 0: it must be a whole number, 1 to 2147483647"),
        ({"batch_size": 10, "accumulate": 4}, "accumulate is 4: it must divide batch_size 10"),
        ({"remat": "all"}, "unknown remat 'all': known are none"),
        ({"spike_budget": 9.0}, "spike_budget is 9.0: it must be a number above 0 and at most 8"),
        (
            {"data_dir": Path("gs://bucket/data")},
            "data_dir is gs://bucket/data: data are not read from a bucket",
        ),
        ({"init_from": Path("s3://bucket/run")}, "init_from is s3://bucket/run: of buckets only gs:// is known"),
        (
            {"distill_from": "gs://bucket"},
            "distill_from is gs://bucket: name a folder in a bucket",
        ),
        ({"init_from": 3}, "init_from is 3: it must be a Path"),
        ({"spike_budget": 0.3, "neuron": "relu"}, "spike_budget: relu sends real numbers, not spikes"),
        ({"neuron": "perceptron"}, "unknown neuron 'perceptron': known are expg"),
        ({"attention": "softmax"}, "unknown attention 'softmax': known are gw_ssa, ssa, sdsa, sdsa_v1, qk_token$"),
        ({"dtype": "float64"}, "unknown dtype 'float64': known are float32, bfloat16"),
        ({"on_corrupt": None}, "unknown on_corrupt None: known are raise, skip"),
        ({"scales": ("block2", 2)}, "scales holds 2: it must be texts such as block1x7"),
        ({"mesh_data": -2}, "mesh_data is -2: it must be a whole number, -1 to 1048576"),
    ],
)
def test_wrong_field_is_refused_by_name_with_what_it_must_be(changes, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        TrainConfig(**changes)


FIELDS = dataclasses.fields(TrainConfig)
WHOLE = [f.name for f in FIELDS if str(f.type) in ("<class 'int'>", "int | None")]
NUMBERS = [f.name for f in FIELDS if str(f.type) in ("<class 'float'>", "float | None")]


@pytest.mark.parametrize("name", WHOLE + NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -(10**30), 1e20, 10**30, True, "3", [3], {}, 1j])
def test_no_number_is_taken_that_is_none_or_out_of_any_range(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*: it must be a (whole )?number") as error:
        TrainConfig(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WHOLE)
def test_fractions_are_no_whole_numbers(name):
    with pytest.raises(ValueError, match=f"^{name} is 2.5: it must be a whole number"):
        TrainConfig(**{name: 2.5})


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
@pytest.mark.parametrize("value", [None, [], {"a": 1}, b"bytes", object()], ids=["none", "list", "dict", "bytes", "it"])
def test_no_field_takes_what_is_of_another_kind(field, value):
    fits = (value is None and "None" in str(field.type)) or (value == [] and field.name == "scales")
    if fits:
        assert getattr(TrainConfig(**{field.name: value}), field.name) in (None, ())
        return
    with pytest.raises(ValueError, match=field.name):
        TrainConfig(**{field.name: value})


def test_numpys_numbers_become_pythons():
    config = TrainConfig(batch_size=np.int64(32), epochs=np.float32(2), data_dir="somewhere", scales=["block2"])
    assert json.loads(json.dumps(as_json(config)))["batch_size"] == 32
    assert (type(config.epochs), config.data_dir, config.scales) == (float, Path("somewhere"), ("block2",))


def test_more_steps_than_can_be_counted_are_refused():
    said = r"epochs is 1000000000.0 and extra_steps 0: that is \d+ steps, more than 2147483647"
    with pytest.raises(ValueError, match=said):
        TrainConfig(epochs=1e9).num_steps(10**6)


def test_json_keeps_everything():
    config = TrainConfig(
        data="folder:x", data_dir=Path("d"), decode=DecodeConfig(image_size=96), init_from=Path("runs/a"),
        augment=AugmentConfig(mixup=0.2, erasing=0.25), lif=LIFSettings(tau=3.0, reset="soft"),
        scales=("block2", "grid2"), spike_budget=0.3, steps=7,
    )  # fmt: skip
    assert from_json(json.loads(json.dumps(as_json(config)))) == config


def test_config_of_another_version_is_refused_by_its_field():
    with pytest.raises(ValueError, match="has the field 'momentum', which this version does not know"):
        from_json(as_json(TrainConfig()) | {"momentum": 0.9})


@pytest.mark.parametrize("config", [None, [], "text", 3])
def test_config_that_is_no_object_is_refused(config):
    with pytest.raises(ValueError, match=r"the run's config is .*: it must be an object with the fields of"):
        from_json(config)


@pytest.mark.parametrize("name", [f.name for f in FIELDS])
@pytest.mark.parametrize("value", ["absent", [1], {"a": 1}, True, 1e30, "\x00"])
def test_config_with_a_field_missing_or_of_another_kind_is_refused_by_name(name, value):
    fields = as_json(TrainConfig())
    if value == "absent" and name in BEFORE:
        del fields[name]
        assert as_json(from_json(fields))[name] == BEFORE[name]  # as runs of before this field were
        return
    if value == "absent":
        del fields[name]
    elif (name in ("profile", "local") and value is True) or (
        isinstance(value, str) and isinstance(fields[name], str | None)
    ):
        return  # a text that is checked where it is used
    else:
        fields[name] = value
    with pytest.raises(ValueError, match=name):
        from_json(fields)


@pytest.mark.parametrize("part", ["augment", "decode", "lif"])
@pytest.mark.parametrize("value", [None, [], {}, {"colour": 1}])
def test_part_of_a_config_with_other_fields_is_refused(part, value):
    with pytest.raises(ValueError, match=f"the run's {part} (is|has|lacks)"):
        from_json(as_json(TrainConfig()) | {part: value})


def test_lengths_are_counted_in_steps():
    config = TrainConfig(batch_size=100, epochs=3.0)
    assert (config.num_steps(1000), config.in_steps(0.5, 1000), config.num_steps(1)) == (30, 5, 1)
    assert TrainConfig(batch_size=100, steps=7).num_steps(1000) == 7


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda fields: fields | {"nope\x1b[31m": 1}, r"nope\x1b[31m"),
        (lambda fields: {name: fields[name] for name in fields if name not in ("data", "seed")}, "data, seed"),
    ],
    ids=["unknown", "absent"],
)
def test_config_of_another_version_is_refused_by_the_fields_that_differ(tmp_path, change, names):
    (tmp_path / "config.json").write_text(json.dumps(change(as_json(TrainConfig()))))
    says = rf"config.json is not the config of a run of this version (unknown or absent: {names}): mend it, or"
    with pytest.raises(ValueError, match=re.escape(says)):
        check_config(tmp_path, TrainConfig())


def test_runs_of_before_a_field_did_what_they_did():
    """Runs that say nothing of it had binary queries and keys, GW-SSA with its local half, no teacher, one LIF."""
    fields = as_json(TrainConfig())
    for name in BEFORE:
        del fields[name]
    found = from_json(fields)
    assert (found.qk_code, found.attention, found.local, found.distill_from) == ("1x1", "gw_ssa", True, None)
    assert found.lif == LIFSettings(tau=2.0, threshold=1.0, reset="soft", surrogate="triangle", width=1.0)


def test_every_field_of_the_network_reaches_it():
    changes = dict(
        code="2x3/1", qk_code="2x2", neuron="qcfs", input_code="direct", scales=("block2",), drop_path=0.2,
        remat="nothing_saveable", dtype="bfloat16", attention="qk_token", local=False,
        lif=LIFSettings(tau=3.0, reset="soft"),
    )  # fmt: skip
    made = model_fields(build_model(TrainConfig(**changes), 7))
    expected = changes | {"scales": ["block2"], "lif": dataclasses.asdict(changes["lif"])}
    assert {name: made[name] for name in changes} == expected
    assert made["num_classes"] == 7
