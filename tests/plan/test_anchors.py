"""Anchors: as large as the networks that they are named after, and trained as those are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plans import POD

from ge2mst_jax.plan import ANCHORS, check_anchors, lower_anchor
from ge2mst_jax.plan.anchors import Bottlenecks, ResNet, ViT, adamw, anchor_step, init_anchor, sgd
from ge2mst_jax.train import TrainConfig


@pytest.mark.parametrize(("name", "count"), [("ResNet-50", 25_557_032), ("ViT-S/16", 22_050_664)])
def test_anchors_have_the_parameters_of_their_name(name, count):
    anchor = ANCHORS[name]
    state = jax.eval_shape(lambda: init_anchor(anchor.model(1000), anchor.optimizer(), (224, 224, 3)))
    leaves = jax.tree.leaves(state["params"])
    assert sum(leaf.size for leaf in leaves) == count
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}


def test_grids_of_the_resnet():
    def grid(x):
        return Bottlenecks(8, 2, 2).init_with_output(jax.random.key(0), x, True)[0]

    assert jax.eval_shape(grid, jnp.zeros((2, 8, 8, 4))).shape == (2, 4, 4, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer"), [(ResNet(3, (1, 1)), sgd()), (ViT(3, 4, 16, 2, 2), adamw())])
def test_anchors_learn_one_batch(model, optimizer):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(6) % 3}
    state = init_anchor(model, optimizer, (16, 16, 3))
    before = jax.tree.leaves(state["others"])
    step = jax.jit(functools.partial(anchor_step, model=model, optimizer=optimizer))
    losses = []
    for _ in range(8):
        state, loss = step(state, batch)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    after = jax.tree.leaves(state["others"])
    assert all((a != b).any() for a, b in zip(before, after, strict=True))  # BatchNorm's averages move


def test_biases_and_gains_of_anchors_get_no_weight_decay():
    params = {"norm": {"scale": jnp.ones(2)}, "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for optimizer in (sgd(), adamw()):
        moved = optax.apply_updates(params, optimizer.update(zeros, optimizer.init(params), params)[0])
        assert (moved["norm"]["scale"] == 1).all()
        assert (moved["head"]["bias"] == 1).all()
        assert (moved["head"]["kernel"] < 1).all()


def test_anchor_is_sharded_over_the_pod():
    lowered = lower_anchor("ViT-S/16", TrainConfig(batch_size=16, accumulate=2), POD.devices, (32, 32, 3), 10)
    state, batch = lowered.in_avals[0]
    assert batch["image"].shape == (16, 32, 32, 3)
    assert state["params"]["stage_0"]["qkv_0"]["kernel"].shape == (384, 3, 6, 64)
    assert 'sharding<@mesh, [{"data"}, {}, {}, {}]>' in lowered.as_text() or "devices=[8,1,1,1]" in lowered.as_text()


def test_anchors_refuse_what_they_cannot_be_given():
    check_anchors((48, 32, 1))
    with pytest.raises(ValueError, match="patches of 16x16: images of 32x40"):
        check_anchors((32, 40, 3))
    with pytest.raises(ValueError, match="need a multiple of 8"):
        lower_anchor("ResNet-50", TrainConfig(batch_size=12), POD.devices, (32, 32, 3), 10)
