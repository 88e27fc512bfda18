"""A spiking network that starts from an ANN: its thresholds, its statistics, how near it comes, and runs that do it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ge2mst_jax import create_model
from ge2mst_jax.train import TrainConfig, train
from ge2mst_jax.train.from_ann import CANDIDATES, neuron_layers, spiking_start

CONVOLUTIONS = (("conv", 8, 1), ("conv", 16, 1))
ATTENTION = (("conv", 8, 1), ("attention", 48, 1))


@pytest.fixture(scope="module")
def batches():
    random = np.random.default_rng(0)
    return [jnp.asarray(random.integers(0, 256, (16, 8, 8, 1), np.uint8)) for _ in range(3)]


def ann_of(stages, batches, **changes):
    """A network of relu neurons whose statistics are those of the batches."""
    ann = create_model("ge2mst_nano", neuron="relu", stages=stages, **changes)
    variables = dict(jax.jit(ann.init)(jax.random.key(0), batches[0]))
    step = jax.jit(lambda v, x: v | ann.apply(v, x, train=True, mutable=["batch_stats"])[1])
    for images in batches * 10:
        variables = step(variables, images)
    return ann, variables


def started(ann, variables, batches, code, **changes):
    model = create_model("ge2mst_nano", code=code, **{"stages": ann.stages} | changes)
    initial = jax.jit(model.init)(jax.random.key(1), batches[0])
    return model, initial, spiking_start(ann, variables, model, initial, batches)


@pytest.fixture(scope="module")
def convolutions(batches):
    return ann_of(CONVOLUTIONS, batches)


@pytest.mark.parametrize(("code", "nearness"), [("1x8", 0.995), ("2x2", 0.97)])
def test_what_is_made_computes_nearly_what_the_ann_does(convolutions, batches, code, nearness):
    ann, variables = convolutions
    model, _, made = started(ann, variables, batches, code)
    logits = [np.asarray(net.apply(v, batches[0])[0]).ravel() for net, v in ((ann, variables), (model, made))]
    assert np.corrcoef(logits)[0, 1] > nearness
    assert np.abs(logits[0] - logits[1]).max() < (0.3 if code == "1x8" else 0.7) * logits[0].std()


@pytest.mark.parametrize(
    ("code", "levels"), [pytest.param("2x2", range(7), marks=pytest.mark.slow), ("1x3/1", (0, 1, 2, 4))]
)
def test_thresholds_are_those_of_least_error(batches, code, levels):
    """Of every layer, of every head of q and k, of a code with a gap too, against a search in NumPy."""
    ann, variables = ann_of(ATTENTION, batches)
    model, initial, made = started(ann, variables, batches, code)
    layers = neuron_layers(model, initial, batches[0])
    heads = {name: n for name, (_, n) in layers.items() if n > 1}
    assert len(layers) == 12 and set(heads.values()) == {2}
    assert {name.rpartition("_")[2] for name in heads} == {"q", "k"}
    aux = ann.clone(capture="levels").apply(variables, jnp.concatenate(batches))[1]
    flat = traverse_util.flatten_dict(made["params"], sep="/")
    for name, (code, n) in layers.items():
        current = np.asarray(aux[name].current, np.float64)
        found = np.logaddexp(np.asarray(flat[f"{name}/raw"], np.float64), 0).reshape(n)  # softplus
        for head, part in enumerate(np.split(current, n, -1)):
            reached = np.array(range(4) if name[-2:] in ("_q", "_k") else levels)

            def error(theta, part=part, reached=reached):
                level = np.clip(np.floor(part / theta + 0.5), 0, reached[-1])
                level = reached[np.searchsorted(reached, level, "right") - 1]  # the largest that is reached
                return np.mean((np.maximum(part, 0) - theta * level) ** 2)

            tried = part.max() / code.max_level * np.arange(1, CANDIDATES + 1) / CANDIDATES
            assert error(found[head]) <= 1.01 * min(map(error, tried)), (name, head)


def test_statistics_are_the_mean_of_the_batches_own(convolutions, batches):
    ann, variables = convolutions
    model, _, made = started(ann, variables, batches, "2x2")
    zeros = jax.tree.map(jnp.zeros_like, made["batch_stats"])
    each = [
        model.apply(made | {"batch_stats": zeros}, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]
        for images in batches
    ]
    mean = jax.tree.map(lambda *parts: np.mean(parts, 0) / 0.1, *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), made["batch_stats"], mean)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stages": (("conv", 8, 1), ("conv", 24, 1))}, r"the ANN's \S+ is \(.*\), but this network's \(.*\)"),
        ({"stages": (("conv", 8, 1), ("conv", 16, 2))}, r"the ANN's \S+ is absent, but this network's"),
        (
            {"stages": (("conv", 8, 0), ("conv", 16, 1))},
            r"the ANN holds stage_0/block_0/\S+, which this network has not",
        ),
    ],
)
def test_an_ann_of_another_shape_is_refused(convolutions, batches, changes, says):
    with pytest.raises(ValueError, match=says):
        started(*convolutions, batches, "2x2", **changes)


CONFIG = dict(steps=4, batch_size=32, warmup_epochs=0.0, eval_every_epochs=100.0)


@pytest.mark.slow
def test_a_run_starts_from_a_run_of_relu_neurons(tmp_path, capsys):
    train(TrainConfig(neuron="relu", **CONFIG), tmp_path / "ann")
    config = TrainConfig(init_from=tmp_path / "ann", **CONFIG)
    first = train(config, tmp_path / "one")
    again = train(config, tmp_path / "two")
    for a, b in zip(*(jax.tree.leaves(t.state.params) for t in (first, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    scratch = train(TrainConfig(**CONFIG), tmp_path / "three")
    raw = [np.asarray(t.state.params["neuron_head"]["raw"]) for t in (first, scratch)]
    assert abs(raw[0] - raw[1]) > 1e-3


def test_neurons_that_learn_no_threshold_do_not_start_from_an_ann(tmp_path):
    train(TrainConfig(neuron="relu", **CONFIG), tmp_path / "ann")
    for neuron in ("sfa", "lif"):
        with pytest.raises(ValueError, match=f"gives? thresholds to expg and qcfs neurons, not to {neuron}"):
            train(TrainConfig(neuron=neuron, init_from=tmp_path / "ann", code="4x1", **CONFIG), tmp_path / "b")


@pytest.mark.slow
def test_thresholds_and_statistics_are_whole_where_the_model_axis_cuts_arrays(tmp_path):
    train(TrainConfig(neuron="relu", **CONFIG), tmp_path / "ann")
    sharded = dict(mesh_data=2, mesh_model=2, fsdp_min_elements=1) | CONFIG
    states = [
        train(TrainConfig(init_from=tmp_path / "ann", **given), tmp_path / str(i)).state
        for i, given in enumerate((CONFIG | {"mesh_data": 1}, sharded))
    ]
    raw = [np.asarray(state.params["stage_1"]["block_0"]["attention"]["neuron_q"]["raw"]) for state in states]
    np.testing.assert_allclose(*raw, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdsa_v1", "qk_token"])
def test_gates_keep_the_threshold_that_those_of_the_ann_have(batches, attention):
    ann, variables = ann_of(ATTENTION, batches, attention=attention)
    model, initial, made = started(ann, variables, batches, "1x8", qk_code="1x8", attention=attention)
    raw = [v["params"]["stage_1"]["block_0"]["attention"]["neuron_gate"]["raw"] for v in (initial, made)]
    np.testing.assert_allclose(np.logaddexp(raw, 0), 2, rtol=1e-6)
    name = "stage_1/block_0/attention/neuron_gate"
    assert name not in neuron_layers(model, initial, batches[0])
    opened, logits = [], []
    for net, v in ((ann, variables), (model, made)):
        out, aux = net.clone(capture="levels").apply(v, batches[0])
        opened.append(np.asarray(aux[name].levels) > 0)
        logits.append(np.asarray(out).ravel())
    assert 0.1 < opened[0].mean() < 0.9 and (opened[0] == opened[1]).mean() > 0.93
    assert np.corrcoef(logits)[0, 1] > 0.97


def test_an_ann_of_other_groups_is_a_start(batches):
    """Groups have no parameters: the ANN is looked at in this network's groups, its own may not fit the grid."""
    ann, variables = ann_of(ATTENTION, batches)
    expected = started(ann, variables, batches, "2x2", scales=("block1", "grid4"))[2]
    found = started(ann.clone(scales=ann.scales[:1] * 2), variables, batches, "2x2", scales=("block1", "grid4"))[2]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
