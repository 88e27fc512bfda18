"""Evaluation counts every example once, exactly, on any mesh, and no more than it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.data import DecodeConfig
from ge2mst_jax.data.source import MemorySource
from ge2mst_jax.train import batch_sharding, evaluate, make_mesh
from ge2mst_jax.train.scores import Scores, confused, place, tally

IMAGES, CLASSES = 43, 7


def many_ties(examples, classes, seed=0):
    """`(logits, labels, mask)`, the logits of few values."""
    random = np.random.default_rng(seed)
    logits = random.integers(0, 4, (examples, classes)).astype(np.float32)
    return logits, random.integers(0, classes, examples), (random.random(examples) < 0.8).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 5, 6, 40])
def test_counts_are_those_of_a_stable_sort(classes):
    logits, labels, mask = many_ties(64, classes)
    order, seen = np.argsort(-logits, 1, kind="stable"), mask > 0
    found = tally(logits, labels, mask, confusion=True)
    assert found["count"] == seen.sum()
    assert found["top1"] == (order[:, 0] == labels)[seen].sum()
    assert ("top5" in found) == (classes > 5)
    if classes > 5:
        assert found["top5"] == (order[:, :5] == labels[:, None]).any(1)[seen].sum()
    expected = np.zeros((classes, classes), int)
    np.add.at(expected, (labels[seen], logits[seen].argmax(1)), 1)
    np.testing.assert_array_equal(found["confusion"], expected)
    assert "confusion" not in tally(logits, labels, mask)


def test_nothing_is_right_by_a_logit_that_is_no_number():
    nan = np.nan
    logits = jnp.array([[nan, nan, nan], [nan, 9, 1], [1, nan, 9], [1, 9, nan]])
    assert place(logits, jnp.array([0, 1, 1, 2])).tolist() == [3, 1, 3, 3]
    assert place(jnp.array([[7, 7, 8]]), jnp.array([1])).tolist() == [2]  # whole numbers too


def test_eight_devices_count_as_one_does():
    logits, labels, mask = many_ties(64, 10)
    one = tally(logits, labels, mask, confusion=True)
    cut = jax.device_put((logits, labels, mask), batch_sharding(make_mesh()))
    assert len(cut[0].sharding.device_set) == 8
    for name, value in tally(*cut, confusion=True).items():
        np.testing.assert_array_equal(value, one[name])


def test_no_array_is_larger_than_the_logits_or_the_matrix():
    examples, classes = 1024, 1000
    shapes = jax.ShapeDtypeStruct((examples, classes), jnp.float32), *[jax.ShapeDtypeStruct((examples,), jnp.int32)] * 2

    def largest(jaxpr):
        inner = [largest(getattr(p, "jaxpr", p)) for e in jaxpr.eqns for p in e.params.values() if hasattr(p, "eqns")]
        return max([v.aval.size for e in jaxpr.eqns for v in e.outvars] + inner)

    assert largest(jax.make_jaxpr(lambda *a: tally(*a, confusion=True))(*shapes).jaxpr) == examples * classes


def test_sums_of_batches_are_shares_of_all_examples():
    logits, labels, mask = many_ties(60, 8)
    scores = Scores()
    for part in (slice(0, 17), slice(17, 60)):
        scores.add(tally(logits[part], labels[part], mask[part], confusion=True))
    whole = tally(logits, labels, mask, confusion=True)
    assert scores.images == whole["count"]
    assert scores.shares == {
        name: int(whole[key]) / int(mask.sum()) for name, key in (("accuracy", "top1"), ("top5", "top5"))
    }
    np.testing.assert_array_equal(scores.confusion, whole["confusion"])
    assert scores.total("skipped") == 0


def test_confused_pairs_come_by_their_images():
    assert confused(np.eye(3, dtype=int)) == []
    assert confused([[9, 1, 0], [4, 9, 4], [1, 0, 9]], 3) == [(1, 0, 4), (1, 2, 4), (0, 1, 1)]


@pytest.fixture(scope="module")
def network():
    """One that does not give every image the same class."""
    model = tiny_model(stages=(("conv", 8, 1),), num_classes=CLASSES)
    variables = random_variables(model, (8, 8, 1))
    logits = np.asarray(model.apply(variables, jnp.asarray(random_images(IMAGES, (8, 8, 1))))[0])
    variables["params"]["head"]["bias"] -= logits.mean(0)
    return model, variables


@pytest.fixture(scope="module")
def source():
    """Images of which two cannot be decoded, the last one among them."""
    labels = np.random.default_rng(1).integers(0, CLASSES, IMAGES)
    corrupt = {3: "image 3", IMAGES - 1: "the last one"}
    return MemorySource("set", "test", random_images(IMAGES, (8, 8, 1)), labels, tuple("abcdefg"), "skip", corrupt)


def evaluated(network, source, devices, **options):
    return evaluate(*network, source, 16, batch_sharding(make_mesh(devices, 1)), DecodeConfig(8), **options)


def test_every_example_once_whatever_the_mesh(network, source):
    seen = []
    one, eight = (
        evaluated(network, source, 1, confusion=True),
        evaluated(network, source, 8, confusion=True, progress=seen.append),
    )
    model, variables = network
    read = [index for index in range(IMAGES) if index not in source.corrupt]
    logits = np.asarray(model.apply(variables, jnp.asarray(source.images[read]))[0])
    labels = source.labels[read]
    assert one["examples"] == eight["examples"] == len(read) == 41 and one["skipped"] == eight["skipped"] == 2
    assert seen == [16, 32, 43]
    order = np.argsort(-logits, 1, kind="stable")
    for found in (one, eight):
        assert found["accuracy"] == (order[:, 0] == labels).sum() / 41
        assert found["top5"] == (order[:, :5] == labels[:, None]).any(1).sum() / 41
        np.testing.assert_allclose(found["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_array_equal(one["confusion"], eight["confusion"])
    assert one["confusion"].sum() == 41 and (one["confusion"].sum(0) > 0).sum() > 3


def test_the_matrix_is_counted_where_asked_for_alone(network, source):
    found = evaluated(network, source, 8)
    assert set(found) == {"examples", "skipped", "accuracy", "top5", "loss", "spikes_per_neuron"}
    assert all(isinstance(value, int | float) for value in found.values())


def test_source_without_one_readable_image_is_refused(network):
    images, corrupt = random_images(3, (8, 8, 1)), dict.fromkeys(range(3), "damaged")
    empty = MemorySource("set", "test", images, np.zeros(3, int), tuple("abcdefg"), "skip", corrupt)
    with pytest.raises(ValueError, match="not one image of the test split of set can be decoded"):
        evaluated(network, empty, 8)
