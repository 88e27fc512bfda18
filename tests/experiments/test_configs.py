"""Every config builds as it stands: its network, state and train step, on a mesh of 8 devices, without any data."""

import dataclasses
import re
import shlex

import jax
import pytest
import tyro
from prepare_data import PrepareData
from train import CONFIGS, Launch, config_names, load_config

from ge2mst_jax.plan import shape_of
from ge2mst_jax.train.setup import set_up

#: Of each config's data: image shape, classes, training images.
DATA = {
    "digits": ((8, 8, 1), 10, 1437),
    "fashion_mnist": ((28, 28, 1), 10, 60_000),
    "cifar10": ((32, 32, 3), 10, 50_000),
    "cifar100": ((32, 32, 3), 100, 50_000),
    "imagenette": ((224, 224, 3), 10, 9469),
    "imagenet_s": ((224, 224, 3), 1000, 1_281_167),
    "imagenet_b": ((224, 224, 3), 1000, 1_281_167),
    "imagenet_l": ((224, 224, 3), 1000, 1_281_167),
    "imagenet_b_384": ((384, 384, 3), 1000, 1_281_167),
}
SLOW = ("cifar100", "imagenette", "imagenet_s", "imagenet_b", "imagenet_l", "imagenet_b_384")
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in DATA]


def docstring(name: str) -> str:
    source = (CONFIGS / f"{name}.py").read_text()
    return re.match(r'"""(.*?)"""', source, re.DOTALL)[1]


def commands(name: str) -> list[list[str]]:
    """What the docstring says to type: its indented lines; a deeper indent goes on with the line before."""
    text = re.sub(r"\n {8,}", " ", docstring(name))
    return [shlex.split(line) for line in re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)]


def test_every_config_is_in_the_table():
    assert config_names() == sorted(DATA)


@pytest.mark.parametrize("name", DATA)
def test_a_plan_knows_the_data_of_every_config(name):
    assert shape_of(load_config(name)) == DATA[name]


@pytest.mark.parametrize("name", DATA)
def test_docstring_says_command_hardware_and_what_to_expect(name):
    text = docstring(name)
    assert f"\n    python experiments/train.py {name}" in text
    assert re.search(r"^Hardware: .*Global batch \d+", text, re.MULTILINE | re.DOTALL)
    assert re.search(r"lr = \S+ · batch/256", text)
    expected = text.partition("\nExpected: ")[2]
    assert "not yet run" in expected or "docs/results.md" in expected


@pytest.mark.parametrize("name", DATA)
def test_commands_of_the_docstring_are_accepted(name):
    config = load_config(name)
    prepared = set()
    for python, script, *arguments in commands(name):
        assert python == "python"
        if script == "experiments/prepare_data.py":
            prepared.add(tyro.cli(PrepareData, args=arguments).name)
            continue
        assert (script, arguments[0]) == ("experiments/train.py", name)
        tyro.cli(Launch, args=arguments[1:], default=Launch(config), config=(tyro.conf.FlagConversionOff,))
    if config.data.startswith("tfds:"):
        assert prepared == {config.data.removeprefix("tfds:")}


@pytest.mark.parametrize("name", DATA)
def test_docstring_and_table_agree_with_the_config(name):
    config, (image_shape, _, _) = load_config(name), DATA[name]
    text = docstring(name)
    assert f"Global batch {config.batch_size}" in text
    rate = re.search(r"lr = (\S+) · batch/256", text)[1]
    assert float(rate) == config.base_learning_rate
    assert config.model in text
    if image_shape[0] >= 224:
        assert image_shape[:2] == (config.decode.image_size,) * 2
        assert not (config.augment.flip or config.augment.crop_padding)  # decoding has cropped and flipped


@pytest.mark.parametrize("name", CASES)
def test_train_step_lowers_for_cpu_and_tpu_with_large_arrays_sharded(name, key):
    config = dataclasses.replace(load_config(name), fsdp_min_elements=2**18)
    setup = set_up(config, *DATA[name])
    assert dict(setup.mesh.shape) == {"data": 8, "model": 1}
    large = [a for a in jax.tree.leaves(setup.abstract_state) if a.size >= config.fsdp_min_elements]
    assert all(not a.sharding.is_fully_replicated for a in large)
    assert bool(large) == (config.model != "ge2mst_nano")
    traced = setup.step.trace(setup.abstract_state, setup.abstract_batch(), key)
    for platform in ("cpu", "tpu"):
        assert "num_partitions = 8" in traced.lower(lowering_platforms=(platform,)).as_text()[:2000]


@pytest.mark.parametrize("name", ["imagenet_s", "imagenet_b", "imagenet_l"])
def test_no_array_is_cut_along_data_unless_asked(name):
    setup = set_up(load_config(name), *DATA[name])
    assert all(array.sharding.is_fully_replicated for array in jax.tree.leaves(setup.abstract_state))


def test_384_with_the_windows_of_224_is_refused_with_those_that_fit():
    config = dataclasses.replace(load_config("imagenet_b_384"), scales=())
    with pytest.raises(
        ValueError, match="scale block1x7 does not divide the 24x24 token grid: windows that fit are 1, 2"
    ):
        set_up(config, *DATA["imagenet_b_384"])
