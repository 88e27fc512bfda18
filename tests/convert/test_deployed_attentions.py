"""Every attention deployed: two executions and the reference are equal, and what was stored before is `gw_ssa`."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax import create_model
from ge2mst_jax.checkpoint import METADATA, read_seal, seal
from ge2mst_jax.convert import certify, check_reference, deploy, digest_of, load_net, reference, save_net
from ge2mst_jax.nn import ATTENTIONS
from ge2mst_jax.report.figures import groups_figure

SHAPE = (4, 4, 2)


def network(attention, code="2x2", seed=4, **changes):
    fields = dict(stages=(("attention", 16, 1),), input_code="direct", attention=attention, qk_code="1x2")
    model = tiny_model(code, **(fields | changes))
    return deploy(model, random_variables(model, SHAPE, seed), SHAPE)  # which audits both executions


@pytest.mark.parametrize(
    "fields", [dict(attention="sdsa_v1"), dict(attention="qk_token", seed=0, local=False)], ids=str
)
def test_both_executions_are_the_reference(fields):
    net = network(**fields)
    block = net.params["stage_0"]["block_0"]["attention"]
    assert block["gate"].keys() == block["attention"].keys() == {"shift"}
    assert (block["neuron_gate"]["threshold"] % 2 == 0).all()
    images = random_images(3, SHAPE)
    levels = [reference(net, image)[0]["stage_0/block_0/attention/neuron_gate"] for image in images]
    assert 0.02 < np.mean(levels) < 0.98 and np.max(levels) == 1
    check_reference(net, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        dict(attention="sdsa_v1", code="2x2"),
        dict(attention="sdsa_v1", code="2x3/1", qk_code="1x1", local=False),
        dict(attention="qk_token", code="2x2+2,0", qk_code="1x1", head_width=4, seed=0),
        dict(attention="qk_token", code="1x2", qk_code="2x2", head_width=1, seed=0),
        dict(attention="sdsa", code="1x2", local=False),
        dict(attention="sdsa", code="2x3/1", input_code="1x8"),
        dict(attention="ssa", code="2x2"),
        dict(attention="gw_ssa", code="2x2", local=False),
    ],
    ids=str,
)
def test_every_attention_is_certified(fields):
    net = network(**fields)
    made = certify(net, random_images(6, SHAPE), batch_size=6, reference=2)
    assert (made.spikes_differing, made.levels_differing, made.logits_differing) == (0, 0, 0)
    layers = {layer.name.rpartition("/")[2]: layer for layer in made.layers}
    for name in {"neuron_q", "neuron_k", "neuron_gate", "neuron_out"} & layers.keys():
        assert 0.02 < layers[name].spikes_fired / layers[name].spikes_compared < 0.98, name
    assert ("neuron_gate" in layers) == bool(ATTENTIONS[fields["attention"]].masks)
    assert "neuron_gate" not in layers or layers["neuron_gate"].code == "1x1"


def test_digests_of_before_are_those_of_gw_ssa():
    """What `digest_of` said of this network before it had the fields."""
    found = {
        (attention, local): digest_of(create_model("ge2mst_nano", attention=attention, local=local), {}, (), (8, 8, 1))
        for attention in ATTENTIONS
        for local in (True, False)
    }
    assert found["gw_ssa", True] == "5625f08c163e61a0d5accddda245a4f47d547e0a1493198311795c54dc4dee35"
    assert len(set(found.values())) == 10


def test_network_that_was_stored_before_is_gw_ssa(net, tmp_path):
    save_net(tmp_path / "net", net, "ge2mst_nano")
    about = read_seal(tmp_path / "net")
    for name in ("attention", "local"):
        del about["model"]["fields"][name]
    file = tmp_path / "net" / METADATA
    file.write_text(json.dumps(json.loads(file.read_text()) | {"custom_metadata": seal(about)}))
    loaded = load_net(tmp_path / "net")
    assert loaded == net and (loaded.model.attention, loaded.model.local) == ("gw_ssa", True)


def test_attention_in_one_group_has_no_picture_of_groups(net):
    image = np.zeros((8, 8, 1), np.uint8)
    assert groups_figure(net, image) is not None
    assert groups_figure(dataclasses.replace(net, model=net.model.clone(attention="ssa")), image) is None
