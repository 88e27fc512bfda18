"""Fine-tuning: what a run takes over from another, what it refuses, what stays frozen, and steps after a run's last."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image
from rich.console import Console
from short_runs import STEPS, lines_of, short
from tiny_networks import random_images, tiny_model

from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.train import TrainConfig, as_json, init_state, learning_rate, make_optimizer, train, train_step
from ge2mst_jax.train.from_ann import neuron_layers, of_other_codes
from ge2mst_jax.train.loop import check_config
from ge2mst_jax.train.start import STEM, fit_channels, fit_to, others
from ge2mst_jax.train.step import decayed, trained

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ABOUT = {"classes": ["a", "b"], "config": {"model": "ge2mst_nano", "neuron": "expg", "data": "folder:a"}}


def network(fill, classes=2, channels=1, **more):
    """Variables, as far as `fit_to` looks at them."""
    flat = {
        STEM: np.full((3, 3, channels, 4), fill, np.float32),
        "params/block/kernel": np.full((1, 1, 4, 4), fill, np.float32),
        "params/neuron/raw": np.full((), fill, np.float32),
        "params/head/kernel": np.full((4, classes), fill, np.float32),
        "params/head/bias": np.full((classes,), fill, np.float32),
        "batch_stats/block/mean": np.full((4,), fill, np.float32),
    }
    return traverse_util.unflatten_dict(flat | more, sep="/")


def fitted(given, initial, classes=("a", "b"), from_ann=False):
    said = []
    anew = others(ABOUT, list(classes), "folder:b")
    made = fit_to(given, initial, ABOUT, anew, "runs/other", from_ann, said.append)
    return traverse_util.flatten_dict(made, sep="/"), said


def test_everything_is_copied_where_nothing_differs():
    made, said = fitted(network(1.0), network(2.0))
    assert {float(array.mean()) for array in made.values()} == {1.0} and not said


@pytest.mark.parametrize("classes", ["abc", "bc", "ba"])
def test_the_head_starts_anew_where_classes_are_others(classes):
    made, said = fitted(network(1.0), network(2.0, len(classes)), classes)
    assert {name for name, array in made.items() if array.mean() == 2} == {"params/head/kernel", "params/head/bias"}
    assert said == ["the head starts anew: the 2 classes of runs/other are others"]


def test_a_stem_is_fitted_to_colour_and_back():
    made, said = fitted(network(1.0), network(2.0, channels=3))
    np.testing.assert_allclose(made[STEM], np.full((3, 3, 3, 4), 1 / 3), rtol=1e-6)
    assert said == ["the stem's kernel: 1 channels of runs/other made 3"]
    kernel = np.arange(3 * 3 * 3 * 2, dtype=np.float32).reshape(3, 3, 3, 2)
    grey = np.random.default_rng(0).random((4, 3, 3, 1), np.float32)
    currents = [
        np.einsum("bijc,ijcd->bd", image, np.asarray(k))
        for image, k in ((np.repeat(grey, 3, -1), kernel), (grey, fit_channels(kernel, 1)))
    ]
    np.testing.assert_allclose(*currents, rtol=1e-5)


def test_what_else_differs_is_refused_by_name_and_shape():
    other = network(2.0, **{"params/block/kernel": np.zeros((1, 1, 4, 8))})
    says = r"runs/other \(ge2mst_nano, expg\) does not fit: params/block/kernel is \(1, 1, 4, 4\) there, \(1, 1, 4, 8\)"
    with pytest.raises(ValueError, match=says):
        fitted(network(1.0), other)
    with pytest.raises(ValueError, match="params/more is there and not here"):
        fitted(network(1.0, **{"params/more": np.zeros(1)}), other)
    with pytest.raises(ValueError, match="stem/synapse/kernel is"):
        fitted(network(1.0, channels=2), network(2.0, channels=3))
    many = {f"params/more_{i}": np.zeros(1) for i in range(7)}
    with pytest.raises(ValueError, match=r"\(and 4 more\)"):
        fitted(network(1.0, **many), network(2.0))


def test_an_ann_has_no_thresholds_to_copy():
    ann = network(1.0)
    del ann["params"]["neuron"]
    made, _ = fitted(ann, network(2.0), from_ann=True)
    assert "params/neuron/raw" not in made
    with pytest.raises(ValueError, match="params/neuron/raw is absent there"):
        fitted(ann, network(2.0))


def test_thresholds_keep_their_largest_value_under_another_code():
    before, model = (tiny_model(code, stages=(("attention", 16, 1),)) for code in ("1x4", "2x2"))
    images = [jnp.asarray(random_images(8, (4, 4, 2), seed)) for seed in (1, 2)]
    variables = jax.jit(before.init, compiler_options=FAST_COMPILE)(jax.random.key(0), images[0])
    made = of_other_codes(before, variables, model, images)
    raws = [traverse_util.flatten_dict(v["params"], sep="/") for v in (variables, made)]
    layers = [neuron_layers(net, variables, images[0]) for net in (before, model)]
    assert len(layers[0]) == 9
    for name in layers[0]:
        tops = [
            np.logaddexp(0, raw[f"{name}/raw"]) * of[name][0].max_level for raw, of in zip(raws, layers, strict=True)
        ]
        np.testing.assert_allclose(*tops, rtol=1e-5)
    changed = np.logaddexp(0, raws[1]["neuron_head/raw"]) / np.logaddexp(0, raws[0]["neuron_head/raw"])
    assert changed == pytest.approx(15 / 6)
    means = [traverse_util.flatten_dict(v["batch_stats"], sep="/")["stem/synapse/norm/mean"] for v in (variables, made)]
    assert not means[0].any() and means[1].any()


CONFIG = TrainConfig(batch_size=8, epochs=2.0, warmup_epochs=0.0, weight_decay=0.5, augment=AugmentConfig())


@functools.cache
def stepped(freeze):
    """States before and after a step, and its metrics."""
    config = TrainConfig(**{**vars(CONFIG), "freeze": freeze})
    model, optimizer = tiny_model("2x1", stages=(("attention", 16, 1),)), make_optimizer(config, 64)
    images, labels = random_images(8, (4, 4, 2)), np.arange(8, dtype=np.int32) % 5

    def run(seed):
        state = init_state(model, optimizer, (4, 4, 2), seed)
        step = functools.partial(
            train_step, model=model, optimizer=optimizer, schedule=learning_rate(config, 64), config=config
        )
        return state, *step(state, {"image": images, "label": labels}, jax.random.key(1))

    return jax.jit(run, compiler_options=FAST_COMPILE)(0)


def test_frozen_parameters_stay_and_the_others_do_not():
    before, after, metrics = stepped("^stage_0/|stem")
    same = {
        name: np.array_equal(array, traverse_util.flatten_dict(after.params, sep="/")[name])
        for name, array in traverse_util.flatten_dict(before.params, sep="/").items()
    }
    assert {name for name in same if same[name]} == {name for name in same if name.startswith(("stage_0/", "stem"))}
    assert float(metrics["gradient_norm"]) < float(stepped(None)[2]["gradient_norm"])
    assert not np.array_equal(*(s.batch_stats["stem"]["synapse"]["norm"]["mean"] for s in (before, after)))


@pytest.mark.parametrize(
    ("freeze", "says"),
    [
        ("(", "no regular expression"),
        ("a{99999999999}", "no regular expression"),
        ("stage_9", "found in no parameter's path"),
        (".", "nothing is left to train"),
    ],
)
def test_an_expression_that_freezes_nothing_or_all_is_refused(freeze, says):
    params = {"stage_0": {"kernel": 1}, "head": {"bias": 2}}
    with pytest.raises(ValueError, match=says):
        trained(params, freeze)
    with pytest.raises(ValueError, match=says):
        decayed(params, freeze)


def test_the_rate_stays_at_its_last_after_the_schedule():
    config = TrainConfig(batch_size=8, epochs=2.0, warmup_epochs=0.5, extra_steps=100)
    rate = learning_rate(config, 64)
    assert config.num_steps(64) == 16
    np.testing.assert_allclose([rate(16), rate(17), rate(115)], [config.final_learning_rate * config.learning_rate] * 3)


def test_extra_steps_that_would_train_nothing_are_refused():
    with pytest.raises(ValueError, match="extra_steps: final_learning_rate is 0"):
        TrainConfig(extra_steps=1, final_learning_rate=0.0)
    with pytest.raises(ValueError, match="steps is 4 and extra_steps 2147483647: that is 2147483651 steps, more"):
        TrainConfig(steps=4, extra_steps=2**31 - 1).num_steps(10)


@pytest.mark.parametrize(
    ("before", "now", "other"),
    [
        ("digits", "digits", False),
        ("folder:a", "folder:b", True),
        ("folder:a/../b", "folder:./b/", False),
        ("tfds:mnist", "tfds:mnist:3.0.1", False),
        ("tfds:mnist", "tfds:fashion_mnist", True),
    ],
)
def test_numbers_are_the_same_classes_in_one_data_set_alone(before, now, other):
    about = {"classes": ["0", "1"], "config": {"data": before}}
    assert others(about, ["0", "1"], now) == other
    assert not others(about | {"classes": ["cat", "dog"]}, ["cat", "dog"], now)


def test_a_run_of_before_a_field_is_gone_on_with(tmp_path):
    train_config = TrainConfig()
    before = {name: value for name, value in as_json(train_config).items() if name not in ("freeze", "extra_steps")}
    (tmp_path / "config.json").write_text(json.dumps(before))
    check_config(tmp_path, train_config)
    with pytest.raises(ValueError, match='freeze null, not "head"'):
        check_config(tmp_path, TrainConfig(freeze="head"))


@pytest.mark.slow
def test_a_finished_run_goes_on_as_one_that_had_the_steps_from_the_start(tmp_path, capsys):
    assert train(short(), tmp_path / "a").complete
    extended = train(short(extra_steps=3), tmp_path / "a")
    at_once = train(short(extra_steps=3), tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, extended.state, at_once.state)
    assert int(extended.state.step) == STEPS + 3
    assert lines_of(tmp_path / "a") == lines_of(tmp_path / "b")
    assert json.loads((tmp_path / "a/config.json").read_text())["extra_steps"] == 3
    shortened = train(short(init_from=tmp_path / "b"), tmp_path / "a", Console())  # done already
    assert int(shortened.state.step) == STEPS + 3
    assert "the run is at step 15, past the 12 that are asked for" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "a/config.json").read_text())["init_from"] is None  # it started from its seed


@pytest.mark.slow
def test_a_run_takes_over_another_of_other_classes_codes_and_colours(tmp_path, capsys):
    train(short(batch_size=30, mesh_data=1), tmp_path / "a")  # 8 devices could not share its batches
    colour = tmp_path / "colour"
    for split in ("train", "val"):
        for label in ("x", "y", "z"):
            (colour / split / label).mkdir(parents=True)
            for i in range(16):
                write_image(colour / split / label / f"{i}.png", i)
    config = short(
        init_from=tmp_path / "a", data=f"folder:{colour}", code="2x2", steps=2, freeze="^stage_0/", spike_budget=None
    )
    made = train(config, tmp_path / "b", Console())
    says = " ".join(capsys.readouterr().out.split())
    for part in ("the head starts anew: the 10 classes", "1 channels of", "other code", "resume order 2 of 3"):
        assert part in says
    assert made.state.params["head"]["kernel"].shape == (48, 3)


def write_image(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
