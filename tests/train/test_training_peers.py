"""The trainer trains peers: their step on a mesh, what a config may change of them, and losses that fall."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_peers import TINY, evaluated, shrink, tiny_names

from ge2mst_jax.data import AugmentConfig
from ge2mst_jax.energy import SpikeCounter
from ge2mst_jax.models import PEERS, create_model
from ge2mst_jax.spiking import LIFSettings
from ge2mst_jax.train import TrainConfig, read_metrics, set_up, train
from ge2mst_jax.train.budget import spike_rate
from ge2mst_jax.train.setup import build_model
from ge2mst_jax.train.start import fit_to
from ge2mst_jax.train.step import decayed

DIGITS = ((8, 8, 1), 10, 1437)


@pytest.mark.parametrize("name", tiny_names("spikingresformer_cifar"))
def test_train_step_builds_on_eight_devices(name, monkeypatch, key):
    shrink(monkeypatch, name, 8)
    setup = set_up(TrainConfig(model=name), *DIGITS)
    assert dict(setup.mesh.shape) == {"data": 8, "model": 1}
    flat = {jax.tree_util.keystr(p): a for p, a in jax.tree_util.tree_leaves_with_path(setup.abstract_state.params)}
    for path, array in flat.items():  # a kernel is one whatever its name
        cut = "['kernel" in path and "head" not in path
        assert array.sharding.spec == (PartitionSpec(None, None, None, "model") if cut else PartitionSpec()), path
    state, metrics = jax.eval_shape(setup.step, setup.abstract_state, setup.abstract_batch(), key)
    assert metrics.keys() == {"loss", "accuracy", "gradient_norm", "learning_rate"}
    assert all(made.shape == () and made.dtype == jnp.float32 for made in metrics.values())
    for found, before in zip(jax.tree.leaves(state), jax.tree.leaves(setup.abstract_state), strict=True):
        assert (found.shape, found.dtype) == (before.shape, before.dtype)


def test_a_spike_budget_is_that_of_neurons_and_not_of_relays():
    aux, counter = evaluated("spikformer_4_384")[3], SpikeCounter()
    counter.add(aux)
    np.testing.assert_allclose(spike_rate(aux), counter.spikes_per_neuron, rtol=1e-5)


def test_kernels_of_every_name_are_decayed():
    shapes = {"q": {"kernel": 0, "kernel_mix": 0, "kernel_out": 0, "norm_in": {"scale": 0}}, "head": {"bias": 0}}
    assert decayed(shapes) == {
        "q": {"kernel": True, "kernel_mix": True, "kernel_out": True, "norm_in": {"scale": False}},
        "head": {"bias": False},
    }


@pytest.mark.parametrize("name", PEERS)
def test_a_config_that_changes_nothing_leaves_a_peer_as_it_was_published(name):
    assert build_model(TrainConfig(model=name), 7) == create_model(name, num_classes=7)


def test_a_config_changes_what_a_peer_has():
    lif = LIFSettings(tau=3.0)
    config = TrainConfig(model="sdt_2_512", neuron="plif", code="6x1", lif=lif, remat="dots_saveable", dtype="bfloat16")
    model = build_model(config, 10)
    changed = dict(neuron="plif", code="6x1", lif=lif, remat="dots_saveable", dtype="bfloat16")
    assert model == create_model("sdt_2_512", **changed) and model.num_steps == 6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(attention="ssa"), "unknown field 'attention' of spikformer_4_384: known are num_classes, "),
        (dict(local=False), "unknown field 'local' of spikformer_4_384: "),
        (dict(drop_path=0.1), "unknown field 'drop_path' of spikformer_4_384: "),
        (dict(input_code="direct"), "unknown field 'input_code' of spikformer_4_384: "),
        (dict(qk_code="1x1"), "unknown field 'qk_code' of spikformer_4_384: "),
        (dict(scales=("block2",)), "unknown field 'scales' of spikformer_4_384: "),
        (dict(neuron="sfa"), "unknown neuron of this network 'sfa': known are lif, plif, if"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_config_that_changes_what_a_peer_has_not_is_refused_by_name(changes, says):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        build_model(TrainConfig(model="spikformer_4_384", **changes), 10)


#: Of networks that halve the digits' grid four times: more channels than the tiny ones have.
WIDER = {name: dict(dims=(16, 32, 32, 32)) for name in ("meta_spikeformer_8_256", "e_spikeformer_s")}
#: Of the deepest network of LIF neurons: at a threshold of 1 few of the last spikes would arrive.
LIVELY = {"meta_spikeformer_8_256": dict(lif=LIFSettings(threshold=0.5, surrogate="sigmoid"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_loss_falls_on_the_digits(name, monkeypatch, tmp_path):
    """Four passes over the digits, 89 steps, of networks with some ten thousand parameters."""
    shrink(monkeypatch, name, 8, **WIDER.get(name, {}))
    config = TrainConfig(
        model=name, epochs=4.0, base_learning_rate=0.08, mesh_data=1, eval_every_epochs=4.0, warmup_epochs=0.5,
        ema_decay=0.9, augment=AugmentConfig(), **LIVELY.get(name, {}),
    )  # fmt: skip
    trained = train(config, tmp_path)
    losses = np.array([line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line])
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    assert trained.evaluation["accuracy"] > 0.4


def test_a_peer_of_another_run_is_taken_array_by_array():
    """Its images are shifted: a kernel for grey ones cannot be made of one for colours."""

    def variables(channels, fill):
        params = {
            "stem": {"conv_0": {"kernel": np.full((3, 3, channels, 2), fill)}},
            "head": {"bias": np.full(2, fill)},
        }
        return {"params": params, "batch_stats": {"norm": {"mean": np.full(2, fill)}}}

    def fitted(channels, anew):
        about = dict(classes=["a", "b"], config=dict(model="sdt_2_512", neuron="expg"))
        return fit_to(variables(3, 1.0), variables(channels, 0.0), about, anew, "runs/a", False, lambda line: None)

    made = fitted(3, True)
    assert made["params"]["head"]["bias"].tolist() == [0, 0]  # the classes are others
    assert made["params"]["stem"]["conv_0"]["kernel"].all() and made["batch_stats"]["norm"]["mean"].all()
    says = r"of runs/a \(sdt_2_512\) does not fit: params/stem/conv_0/kernel is \(3, 3, 3, 2\) there, \(3, 3, 1, 2"
    with pytest.raises(ValueError, match=says):
        fitted(1, False)


@pytest.mark.slow
def test_a_run_starts_from_another_whatever_its_steps(monkeypatch, tmp_path):
    """Weights of a peer are what they are at any `T`: nothing is measured anew, as ours is at another code."""
    shrink(monkeypatch, "sdt_2_512", 8)
    short = dict(model="sdt_2_512", steps=2, mesh_data=1, warmup_epochs=0.0, augment=AugmentConfig())
    first = train(TrainConfig(**short, base_learning_rate=0.1), tmp_path / "first").state
    still = dict(base_learning_rate=1e-12, code="2x1", init_from=tmp_path / "first")
    second = train(TrainConfig(**(short | {"steps": 1}), **still), tmp_path / "second").state
    for path, array in jax.tree_util.tree_leaves_with_path(first.ema["params"]):
        found = functools.reduce(lambda tree, key: tree[key.key], path, second.params)
        np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)
