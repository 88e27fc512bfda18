"""A run's network as it was trained: read, called, and refused where it is none; peers are not deployed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluate import Evaluate
from tiny_networks import random_images, random_variables, tiny_model
from tiny_peers import CLASSES, evaluated, firing_variables, shape_of, shrink, tiny_peer

from ge2mst_jax.convert import ConversionError, deploy, save_net
from ge2mst_jax.data import DecodeConfig
from ge2mst_jax.train import TrainConfig, as_json, make_mesh, set_up
from ge2mst_jax.train.checkpoints import CheckpointError, Checkpoints
from ge2mst_jax.train.deployed import TrainedNet, load_deployed, load_network

NAME = "spikformer_4_384"
SHAPE = shape_of(NAME)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Of a run whose averaged network holds `evaluated(NAME)`'s variables."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, NAME, SHAPE[0])
        yield written(tmp_path_factory.mktemp("run"))


def written(folder):
    config = TrainConfig(model=NAME, steps=1, data="folder:photos", decode=DecodeConfig(image_size=SHAPE[0]))
    setup = set_up(config, SHAPE, CLASSES, 1, make_mesh(1, 1, jax.devices()[:1]))
    state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), setup.abstract_state)
    about = dict(config=as_json(config), image_shape=SHAPE, classes=list("abcde"), examples=1, data=None)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, state.replace(ema=evaluated(NAME)[0]), about)
    return folder


def test_network_of_a_run_says_what_it_said_in_training(run_dir):
    _, images, logits, aux = evaluated(NAME)
    net = load_network(run_dir, "trained", 3)
    assert isinstance(net, TrainedNet) and net.model == tiny_peer(NAME) and net.image_shape == SHAPE
    assert net.about["data"] == "folder:photos" and net.about["classes"] == list("abcde")
    assert net.about["decode"]["image_size"] == SHAPE[0] and net.digest is None
    found, counted = net(images)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)
    assert counted.keys() == aux.keys()
    np.testing.assert_array_equal(counted["attention_0/joined"].spikes, aux["attention_0/joined"].spikes)
    with pytest.raises(ValueError, match="unknown execution of a network as it was trained 'spiking': known are train"):
        net(images, execution="spiking")
    with pytest.raises(ValueError, match=r"images of shape \(2, 8, 8, 3\): this network takes \[B, 16, 16, 3\]"):
        net(random_images(2, (8, 8, 3)))


def test_what_is_not_captured_is_not_counted():
    variables, images, *_ = evaluated(NAME)
    net = TrainedNet(tiny_peer(NAME), variables, SHAPE, {})
    for capture, counts in (("none", False), ("counts", True)):
        _, aux = jax.eval_shape(functools.partial(net, capture=capture), images)
        assert (aux["attention_0/neuron_q"].spikes is not None) == counts


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_a_peer_is_not_deployed_and_the_way_out_is_named(run_dir, execution):
    says = "a network of 'lif' neurons cannot be converted: only .* are lossless \\(--execution trained runs it as it"
    with pytest.raises(ConversionError, match=says):
        load_network(run_dir, execution)


def test_a_peer_of_lossless_neurons_is_not_deployed_either():
    model, shape = tiny_peer("e_spikeformer_s"), shape_of("e_spikeformer_s")
    says = "^ESpikeFormer cannot be converted: only Ge2mST can$"
    with pytest.raises(ConversionError, match=says):
        deploy(model, firing_variables(model, shape), shape)


def test_a_deployed_network_is_not_run_as_it_was_trained(tmp_path):
    model = tiny_model(stages=(("conv", 8, 1),))
    save_net(tmp_path / "deployed", deploy(model, random_variables(model), (8, 8, 2)), "ge2mst_nano")
    with pytest.raises(ValueError, match=r"^execution is 'trained': .*deployed is no run, which alone"):
        load_network(tmp_path / "deployed", "trained")
    assert load_network(tmp_path / "deployed", "dense").digest == load_deployed(tmp_path / "deployed").digest


@pytest.mark.parametrize("execution", ["trained", "spiking"])
def test_a_folder_that_is_none_is_said(tmp_path, execution):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_network(tmp_path / "gone", execution)


def test_a_step_that_the_run_does_not_have_is_said(run_dir):
    with pytest.raises(CheckpointError, match="7"):
        load_network(run_dir, "trained", 7)


def test_what_is_not_deployed_is_not_certified():
    with pytest.raises(ValueError, match=r"^certify: what is certified is a deployed network, not one as it"):
        Evaluate("run", execution="trained", certify=3)
    assert Evaluate("run", execution="trained").certify == 0
