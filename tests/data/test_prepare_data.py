"""The script that prepares TFDS sets, and the measurement of the pipeline's speed."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tiny_sets import TinyBuilder, picture, prepare, write_folder

from ge2mst_jax.data.decode import DataError
from ge2mst_jax.data.sources import open_source
from ge2mst_jax.data.throughput import measure

SCRIPT = Path(__file__).parents[2] / "experiments" / "prepare_data.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_data_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TinyPrepared(TinyBuilder):
    """What the script prepares; its validation split has no labels."""

    SPLITS = {"train": 8, "validation": 4}
    UNLABELLED = ("validation",)


class TinyCut(TinyBuilder):
    """An image that is cut in half."""

    BROKEN = (1,)


class TinyArrays(TinyBuilder):
    """Images given as arrays, which TFDS encodes with TensorFlow."""

    def _generate_examples(self, split, number):
        yield 0, {"image": picture(0), "label": 0}


class TinyManual(TinyBuilder):
    """A set whose code fails."""

    def _split_generators(self, manager):
        raise AssertionError("put the archive into manual/\nand come again")


def test_a_set_is_prepared_counted_and_verified(script, tmp_path, capsys):
    script.main(script.PrepareData("tiny_prepared", tmp_path, verify=True))
    out = capsys.readouterr().out
    assert "train: 8 records, every image decodes, 8 labels in range" in out
    assert "validation: 4 records, every image decodes, 0 labels in range" in out
    assert len(open_source("tfds:tiny_prepared", "train", tmp_path)) == 8
    script.main(script.PrepareData("tiny_prepared:1.0.0", tmp_path))  # it is there: only counted
    assert "validation: 4 records, counted" in capsys.readouterr().out


def test_a_broken_image_is_named(script, tmp_path):
    with pytest.raises(DataError, match=r"tiny_cut/1.0.0, (train|test) record \d: not a readable image"):
        script.main(script.PrepareData("tiny_cut", tmp_path, verify=True))


def test_records_that_are_missing_are_noticed(script, tmp_path):
    info = prepare(TinyPrepared, tmp_path) / "dataset_info.json"
    metadata = json.loads(info.read_text())
    for split in metadata["splits"]:
        split["shardLengths"] = [str(int(split["shardLengths"][0]) + 1)]
    info.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=r"split (train has 8|validation has 4) records, but its metadata say [95]"):
        script.main(script.PrepareData("tiny_prepared", tmp_path))
    next(info.parent.glob("*train*")).write_bytes(b"no records")
    with pytest.raises(DataError, match=r"can't be read|but its metadata say 5"):
        script.main(script.PrepareData("tiny_prepared", tmp_path))


class TinyConfigured(TinyBuilder):
    """A set with configs, of which TFDS takes the first where none is named."""

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version="1.0.0") for name in ("plain", "other")]


def test_a_set_with_configs_is_prepared_and_its_name_is_told(script, tmp_path, capsys):
    script.main(script.PrepareData("tiny_configured", tmp_path))
    name = re.search(r"ready: --data (tfds:\S+)", capsys.readouterr().out)[1]
    assert name == "tfds:tiny_configured/plain:1.0.0"
    assert len(open_source(name, "train", tmp_path)) == 8
    with pytest.raises(DataError, match="has the configs plain; name one, such as tfds:tiny_configured/plain"):
        script.main(script.PrepareData("tiny_configured", tmp_path))
    script.main(script.PrepareData("tiny_configured/other", tmp_path))
    assert len(open_source("tfds:tiny_configured/other", "train", tmp_path)) == 8


@pytest.mark.parametrize(
    "name", ["", "..", "/etc", "a b", "[/x]", "mnist[:10]", "mnist:latest", "mn\nist", "a\x1b[31m"]
)
def test_names_that_cannot_be_are_one_line(script, tmp_path, name):
    with pytest.raises(DataError, match=r"must be|slices") as caught:
        script.main(script.PrepareData(name, tmp_path))
    assert str(caught.value).isprintable() and not list(tmp_path.iterdir())


def test_a_version_that_is_not_prepared_is_asked_of_tfds(script, tmp_path):
    prepare(TinyPrepared, tmp_path)
    with pytest.raises(ValueError, match=r"TFDS could not prepare tiny_prepared:2.0.0: .*2.0.0"):
        script.main(script.PrepareData("tiny_prepared:2.0.0", tmp_path))


def test_what_can_go_wrong_while_preparing(script, tmp_path):
    with pytest.raises(ValueError, match=r"TFDS knows no data set 'tiny_prepare' \(tiny_prepared"):
        script.main(script.PrepareData("tiny_prepare", tmp_path))
    with pytest.raises(ValueError, match="TFDS could not prepare tiny_manual: AssertionError: put the archive"):
        script.main(script.PrepareData("tiny_manual", tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_without_tensorflow_the_extra_is_named(script, tmp_path):
    with pytest.raises(ValueError, match=r"needs the module tensorflow: pip install -e .\[prepare\]"):
        script.main(script.PrepareData("tiny_arrays", tmp_path))


def test_a_wrong_name_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, str(SCRIPT), "no_such_set", "--data-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith("prepare_data.py: error: TFDS knows no data set 'no_such_set'")
    )
    assert "Traceback" not in result.stderr


def test_the_pipelines_speed_is_measured_beside_plain_pillow(tmp_path):
    write_folder(tmp_path, side=40)
    result = measure(tmp_path, 0.1, image_size=16, batch_size=4, workers=0)
    assert result["turns"] >= 1 and result["pipeline"] > 0 and result["pillow"] > 0
    assert 0.01 < result["ratio"] < 100
    for options in (dict(seconds=0), dict(seconds=float("inf")), dict(workers=-1), dict(image_size=0.5)):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            measure(tmp_path, **options)
