"""A network that learns from another run's: the distance, what the teacher sees, the runs."""

import functools
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.data.augment import augment
from ge2mst_jax.train import TrainConfig, read_about, read_metrics, train
from ge2mst_jax.train.step import TEMPERATURE, distance, gradients_of, init_state, make_optimizer, teach

SHAPE = (4, 4, 2)
CONFIG = TrainConfig(
    batch_size=8, distill_from="teacher", distill_weight=0.25, label_smoothing=0.0, augment=AugmentConfig(flip=True)
)
BATCH = {"image": jnp.asarray(random_images(8, SHAPE)), "label": jnp.arange(8, dtype=jnp.int32) % 5}


def test_distance_is_the_divergence_at_the_temperature():
    random = np.random.default_rng(0)
    logits, taught = random.normal(0, 3, (2, 6, 4))
    p, q = (np.exp(x / TEMPERATURE) / np.exp(x / TEMPERATURE).sum(1, keepdims=True) for x in (taught, logits))
    expected = TEMPERATURE**2 * np.mean((p * np.log(p / q)).sum(1))
    assert expected > 0.1
    assert float(distance(jnp.float32(logits), jnp.float32(taught))) == pytest.approx(expected, rel=1e-5)
    assert float(distance(jnp.float32(logits), jnp.float32(logits) + 3)) == pytest.approx(0, abs=1e-5)


def test_teacher_sees_the_images_that_the_step_trains_on():
    teacher, key, step = tiny_model("2x2", stages=(("conv", 8, 1),)), jax.random.key(5), jnp.int32(3)
    variables = random_variables(teacher, SHAPE)
    found = teach(variables, step, BATCH, key, model=teacher, config=CONFIG)
    # As `train_step` draws its randomness.
    images, _ = augment(
        jax.random.split(jax.random.fold_in(key, step))[0], BATCH["image"], BATCH["label"], 5, CONFIG.augment
    )
    assert np.any(np.asarray(images) != np.asarray(BATCH["image"]))
    np.testing.assert_allclose(found, teacher.apply(variables, images)[0], rtol=1e-5)


def test_loss_is_the_mean_of_the_labels_and_the_teachers():
    model, taught = (
        tiny_model("2x1", stages=(("conv", 8, 1),)),
        jnp.float32(np.random.default_rng(1).normal(0, 2, (8, 5))),
    )
    state = init_state(model, make_optimizer(CONFIG, 64), SHAPE, 0)
    targets = jax.nn.one_hot(BATCH["label"], 5)
    losses = {}
    for weight in (0.0, 0.25, 1.0):
        config = TrainConfig(**(vars(CONFIG) | {"distill_weight": weight}))
        call = functools.partial(gradients_of, model=model, config=config)
        losses[weight] = float(call(state, BATCH["image"], targets, taught, jax.random.key(0))[1][1]["loss"])
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    logits = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats}, BATCH["image"], train=True, mutable=["batch_stats"]
    )[0][0]
    assert losses[1.0] == pytest.approx(float(distance(logits, taught)), rel=1e-4)


SHORT = dict(steps=4, batch_size=32, warmup_epochs=0.0, eval_every_epochs=100.0)


@pytest.mark.slow
def test_a_run_learns_from_another(tmp_path):
    train(TrainConfig(neuron="relu", **SHORT), tmp_path / "ann")
    taught = dict(distill_from=tmp_path / "ann", accumulate=2, **SHORT)
    runs = {
        name: train(TrainConfig(**taught, distill_weight=weight), tmp_path / name)
        for name, weight in (("one", 0.5), ("two", 0.5), ("labels", 0.0))
    }
    losses = {name: [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
              for name in runs}  # fmt: skip
    assert losses["one"] == losses["two"] != losses["labels"]
    longer = SHORT | dict(eval_every_epochs=1e-6, extra_steps=12, keep=20)
    train(TrainConfig(neuron="relu", **longer), tmp_path / "ann")
    assert read_about(tmp_path / "ann")[1]["step"] != 4  # another is its best now, and the student keeps to its own
    student = TrainConfig(**taught, distill_weight=0.5, extra_steps=1)
    assert train(student, tmp_path / "two").complete
    shutil.rmtree(tmp_path / "ann" / "checkpoints" / "4")
    with pytest.raises(ValueError, match=r"no checkpoint of step 4 in \S+ann: there are \d"):
        train(student, tmp_path / "one")
    with pytest.raises(ValueError, match=re.escape("the run in this folder has distill_weight 0.5, not 0.0")):
        train(TrainConfig(**taught, distill_weight=0.0), tmp_path / "one")


def test_teachers_of_other_classes_or_none_are_refused(tmp_path, monkeypatch):
    train(TrainConfig(neuron="relu", **SHORT), tmp_path / "ann")
    with pytest.raises(ValueError, match="no checkpoint of a run in"):
        train(TrainConfig(distill_from=tmp_path / "nobody", **SHORT), tmp_path / "a")
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    monkeypatch.setattr("ge2mst_jax.train.start.load_averaged", other_classes)
    with pytest.raises(ValueError, match=r"knows classes \['cat'\], not \['0', '1',"):
        train(TrainConfig(distill_from=tmp_path / "ann", **SHORT), tmp_path / "b")


def other_classes(run_dir, which, mesh):
    return None, None, {"image_shape": [8, 8, 1], "classes": ["cat"], "step": 1}
