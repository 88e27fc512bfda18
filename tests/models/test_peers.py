"""The peers: their published sizes, what their neurons do at every step, their counts, what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images
from tiny_peers import BATCH, QUICK, TINY, applied, evaluated, shape_of, tiny_names, tiny_peer

from ge2mst_jax import create_model
from ge2mst_jax.energy import CONVENTIONS, SpikeCounter, connections_per_spike, energy
from ge2mst_jax.models import PEERS, model_class, model_fields, parameter_counts
from ge2mst_jax.models.peer import SIGMOID_LIF
from ge2mst_jax.nn import Current, Neuron, NeuronRecord
from ge2mst_jax.spiking import LIFSettings, SpikeCode

# --- sizes ------------------------------------------------------------------------------------------------------------

#: Quickly; MetaSpikeFormer's share what E-SpikeFormer's are made of.
COUNTED = (
    "spikformer_4_384", "sdt_2_512", "qkformer_4_384", "maxformer_4_384", "spikingresformer_ti",
)  # fmt: skip


def test_every_family_has_a_tiny_network():
    families = {size.family for size in PEERS.values()}
    assert len(PEERS) == 31 and len(families) == len(TINY) == 7
    assert {model_class(name) for name in TINY} == families


@pytest.mark.parametrize(
    "name", [name if name in COUNTED else pytest.param(name, marks=pytest.mark.slow) for name in PEERS]
)
def test_parameters_are_those_that_were_published(name):
    """To 0.01 M, or to the one decimal that was published."""
    counts, published = parameter_counts(name), PEERS[name].published
    assert 0 < counts.norms < counts.ours and counts.biases >= 0
    millions = counts.counted / 1e6
    if published is None:
        assert 1 < millions < 70
    elif len(str(published).partition(".")[2]) == 1:
        assert round(millions, 1) == published
    else:
        assert abs(millions - published) <= 0.01


def test_parameters_of_a_network_that_is_no_peer_are_not_counted():
    with pytest.raises(ValueError, match=r"^unknown peer 'ge2mst_s': known are spikformer_8_384, "):
        parameter_counts("ge2mst_s")


@pytest.mark.parametrize("name", PEERS)
def test_fields_as_json_make_the_network_again(name):
    model = create_model(name, num_classes=7, remat="dots_saveable", dtype="bfloat16", lif={"tau": 3.0})
    assert create_model(name, **json.loads(json.dumps(model_fields(model)))) == model
    assert type(model) is PEERS[name].family and model != create_model(name)


def test_neurons_are_set_as_their_authors_set_them():
    for name in TINY:
        model = create_model(name)
        assert (model.neuron, model.num_steps) == ("sfa" if name.startswith("e_") else "lif", 4)
        assert model.lif == (LIFSettings() if name.startswith("spikingres") else SIGMOID_LIF)


# --- what a network makes of images -----------------------------------------------------------------------------------


def neurons_of(aux):
    return {name: made for name, made in aux.items() if isinstance(made, NeuronRecord) and made.parts}


def fired(current, threshold):
    """`(spikes, near)`, `[T, ...]`: `V ← V + (x - V)/2`, fires where `V ≥ θ`, then 0; near: where rounding decides."""
    v, spikes, near = np.zeros(current.shape[1:]), [], np.zeros(current.shape[1:], bool)
    for x in current.astype(np.float64):
        v = v + (x - v) / 2
        near |= (np.abs(v - threshold) < 1e-4) & (v != threshold)  # whole numbers over powers of two are not rounded
        spikes.append(v >= threshold)
        v = np.where(spikes[-1], 0, v)
    return np.stack(spikes), near


@pytest.mark.parametrize("name", tiny_names(*QUICK))
def test_every_neuron_fires_step_by_step_as_is_documented(name):
    _, _, _, aux = evaluated(name)
    for layer, made in neurons_of(aux).items():
        current = np.asarray(made.current)
        if made.code is not None:  # E-SpikeFormer's: integers up to D, in one pass
            near = np.abs(current - np.floor(current) - 0.5) < 1e-4
            expected = np.clip(np.floor(current + 0.5), 0, 4)
        else:
            half = layer.endswith(("neuron_attention", "neuron_gate")) and not name.startswith("spikingres")
            steps = np.broadcast_to(current, made.levels.shape)  # the image's current is the same at each
            expected, near = fired(steps, 0.5 if half else 1.0)
        assert near.mean() < 0.01
        np.testing.assert_array_equal(made.levels * ~near, expected * ~near, layer)
        assert 0.01 < np.mean(made.levels) / (4 if made.code else 1) < 0.99, layer


def test_e_spikeformers_neurons_take_halves_to_the_even_level():
    """As its authors' code rounds; the other networks' `sfa` neurons take them up, as a ladder of thresholds does."""
    current = Current(jnp.float32([0.5, 1.5, 2.5, 3.5]).reshape(1, 1, 1, 4), ("a",))
    for model, levels in ((create_model("e_spikeformer_t"), [0, 2, 2, 4]), (create_model("ge2mst_nano"), [1, 2, 3, 4])):
        wire = dataclasses.replace(model.wire, neuron="sfa", code=SpikeCode(4, 1))
        (signal, _), _ = Neuron(wire).init_with_output(jax.random.key(0), current)
        assert signal.data.ravel().tolist() == levels


@pytest.mark.parametrize("pool_currents", [False, True])
def test_spikformer_pools_spikes_as_published_or_currents_as_spikingjelly_does(pool_currents):
    model = tiny_peer("spikformer_4_384", pool_currents=pool_currents)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint8)
    (_, aux), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    sides = [aux[f"stem/neuron_{i}"].shape[0] for i in range(4)]
    assert sides == ([16, 16, 8, 4] if pool_currents else [16, 16, 16, 8])
    assert ("stem/pool_3" in aux) != pool_currents


@pytest.mark.parametrize("name", tiny_names(*QUICK))
def test_logits_are_the_mean_of_tokens_and_steps_through_the_classifier(name):
    variables, _, logits, aux = evaluated(name)
    sent, head = aux[aux["head"].source], variables["params"]["head"]
    values = np.asarray(sent.levels, np.float64) / (4 if sent.code else 1)
    expected = values.reshape(-1, BATCH, *values.shape[-3:]).mean((0, 2, 3)) @ head["kernel"] + head.get("bias", 0)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(logits, 0).max() > 1e-3 and ("bias" in head) == (not name.startswith("spikingres"))
    assert sent.real == name.startswith("spikingres")


@pytest.mark.parametrize("name", tiny_names(*QUICK))
def test_an_image_does_not_depend_on_its_batch_mates(name):
    variables, images, logits, aux = evaluated(name)
    mates = random_images(BATCH, shape_of(name), seed=7)
    mates[2] = images[2]
    others, with_others = jax.device_get(applied(name)(variables, mates))
    np.testing.assert_array_equal(others[2], logits[2])
    assert not np.array_equal(others[1], logits[1])
    for layer, made in neurons_of(aux).items():
        again = with_others[layer]
        for a, b in ((made.levels, again.levels), (made.current, again.current)):
            assert np.array_equal(np.moveaxis(a, -4, 0)[2], np.moveaxis(b, -4, 0)[2]), layer
        np.testing.assert_array_equal(made.spikes[2], again.spikes[2])


def loss_of(model, params, variables, images):
    (logits, aux), new = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
    labels = jnp.arange(BATCH)
    return -jnp.mean(jax.nn.log_softmax(logits)[labels, labels]), (aux, new["batch_stats"])


def gradients(name, **changes):
    """Gradients of a batch's cross-entropy in training, what the layers left, and new statistics."""
    model, (variables, images, *_) = tiny_peer(name, **changes), evaluated(name)
    step = jax.jit(jax.grad(lambda p, v, x: loss_of(model, p, v, x), has_aux=True))
    return jax.device_get(step(variables["params"], variables, images))


@pytest.mark.parametrize("name", tiny_names("spikformer_4_384"))
def test_every_parameter_and_statistic_learns(name):
    # At its own threshold the tiny network's attention is silent, and what reads no spikes learns nothing.
    lively = {"lif": LIFSettings(threshold=0.2, surrogate="sigmoid")} if name == "meta_spikeformer_8_256" else {}
    found, (_, stats) = gradients(name, **lively)
    for path, gradient in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(path)
    before = evaluated(name)[0]["batch_stats"]
    assert jax.tree.structure(stats) == jax.tree.structure(before)
    for new, old in zip(jax.tree.leaves(stats), jax.tree.leaves(before), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(new, old)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qkformer_4_384", "meta_spikeformer_8_256"])
def test_what_is_computed_anew_gives_the_same_gradients(name):
    kept, anew = (jax.tree.leaves(gradients(name, remat=remat)[0]) for remat in ("none", "nothing_saveable"))
    for a, b in zip(kept, anew, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", tiny_names("spikformer_4_384"))
def test_bfloat16_stays_close(name):
    """Currents are float32 whatever the operands. Of the first neurons less than a hundredth change what they send;
    with random weights thresholds make more of it from layer to layer."""
    variables, images, logits, aux = evaluated(name)
    model = tiny_peer(name, dtype="bfloat16", capture="levels")
    found, made = jax.device_get(jax.jit(model.apply)(variables, images))
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert np.corrcoef(found.ravel(), logits.ravel())[0, 1] > 0.85
    same = []
    for layer, record in neurons_of(aux).items():
        assert made[layer].current.dtype == np.float32 and made[layer].levels.dtype == jnp.bfloat16
        same.append(np.mean(made[layer].levels == record.levels))
    assert same[0] > 0.99 and np.mean(same) > 0.75


# --- counts -----------------------------------------------------------------------------------------------------------


def counted(name):
    counter, aux = SpikeCounter(), evaluated(name)[3]
    counter.add(aux)
    return counter, aux


def test_joined_spikes_cause_a_synop_each_at_every_connection():
    """Spikformer's shortcuts join spikes: where two meet, two are sent on."""
    counter, aux = counted("spikformer_4_384")
    joined = aux["attention_0/joined"]
    assert np.max(joined.levels) > 1  # spikes of three layers
    sent = np.asarray(joined.levels, np.int64).sum((0, 1, -1))
    for layer, connections in (("feed_forward_0/up", np.full((4, 4), 64)), ("head", np.full((4, 4), 5))):
        source = "feed_forward_0/joined" if layer == "head" else "attention_0/joined"
        assert aux[layer].source == source
        sent = np.asarray(aux[source].levels, np.int64).sum((0, 1, -1))
        np.testing.assert_array_equal(connections_per_spike(aux[layer]), connections)
        assert counter.layers[layer].synops == (sent * connections).sum() > 0 and not counter.layers[layer].real
    reached = np.outer((2, 3, 3, 2), (2, 3, 3, 2)) * 16  # of a 3x3 on 4x4, 16 channels
    pooled = np.asarray(aux["stem/pool_3"].levels, np.int64).sum((0, 1, -1))
    assert counter.layers["stem/position"].synops == (pooled * reached).sum()


def test_relays_are_no_neurons():
    counter, aux = counted("spikformer_4_384")
    neurons = neurons_of(aux)
    assert all(name.rpartition("/")[2].startswith("neuron") for name in neurons)
    spikes = sum(made.levels.sum(dtype=np.float64) for made in neurons.values())
    assert counter.spikes_per_neuron == spikes / BATCH / sum(np.prod(made.shape) for made in neurons.values())


@pytest.mark.parametrize(
    ("name", "layer", "macs"),
    [
        ("spikformer_4_384", "stem/conv_0", 46 * 46 * 3 * 2),  # the image, once: 46 = 16 + 2*15 taps along a side
        pytest.param("meta_spikeformer_8_256", "mix_c0_0/down", 4 * 24 * 24 * 4 * 2, marks=pytest.mark.slow),
        ("spikingresformer_cifar", "head", 4 * 16 * 5),  # at each of 4 steps
    ],
)
def test_real_numbers_are_multiplied_each_time_that_they_are_sent(name, layer, macs):
    counter, aux = counted(name)
    count = counter.layers[layer]
    assert count.real and count.synops == 0 and count.macs == BATCH * macs
    found = {made["name"]: made for made in energy(counter, CONVENTIONS["exact"], 4)["layers"]}
    assert (found[layer]["macs"], found[layer]["synops"]) == (macs, 0)
    assert found[layer]["mj"] == pytest.approx(4.6e-9 * macs)
    real = {name for name, made in counter.layers.items() if made.real}
    assert real == {"meta_spikeformer_8_256": {n for n in aux if n.startswith("mix_") and n.endswith("/down")} | {
        "down_c0/synapse"}, "spikingresformer_cifar": {"stem", "head"}}.get(name, {"stem/conv_0"})  # fmt: skip


def test_a_patch_is_reached_once_by_each_spike_and_a_product_adds_a_row():
    """SpikingResformer's attention, by hand: 2 heads of 12 on a grid of 8x8 in patches of 2x2, 16 of them."""
    counter, aux = counted("spikingresformer_cifar")
    sent = int(aux["attention_1_0/neuron"].levels.sum(dtype=np.float64))
    attended = int(aux["attention_1_0/neuron_attention"].levels.sum(dtype=np.float64))
    found = {name: counter.layers[f"attention_1_0/{name}"].synops for name in ("patches", "attention", "values")}
    assert found == {"patches": 48 * sent, "attention": 16 * sent, "values": 12 * attended}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("spikformer_8_384", {"neuron": "expg"}, "unknown neuron of this network 'expg': known are lif, plif, if"),
        ("e_spikeformer_t", {"neuron": "lif"}, "unknown neuron of this network 'lif': known are sfa"),
        ("sdt_2_512", {"execution": "dense"}, "unknown execution of this network 'dense': known are training"),
        ("sdt_2_512", {"normalize": "mnist"}, "unknown normalize 'mnist': known are none, imagenet, cifar10, cifar100"),
        ("sdt_2_512", {"remat": "all"}, "unknown remat 'all': known are none, nothing_saveable"),
        ("sdt_2_512", {"attention": "ssa"}, "unknown field 'attention' of sdt_2_512: known are num_classes, code, "),
        ("sdt_2_512", {"num_classes": 0}, "num_classes is 0: it must be a whole number, 1 to 1048576"),
        ("sdt_2_512", {"dim": 8.0}, "dim is 8.0: it must be a whole number, 1 to 65536"),
        ("sdt_2_512", {"pools": "11"}, "pools is '11': it must be 4 digits, each 0 or 1"),
        ("spikformer_8_384", {"pools": "0012"}, "pools is '0012': it must be 4 digits, each 0 or 1"),
        ("spikformer_8_384", {"pool_currents": 1}, "pool_currents is 1: it must be True or False"),
        ("qkformer_4_384", {"small": "no"}, "small is 'no': it must be True or False"),
        ("qkformer_4_384", {"heads": 8}, "heads is 8: it must be 3 whole numbers"),
        ("qkformer_4_384", {"depths": (1, 2)}, "depths is (1, 2): it must be 3 whole numbers"),
        ("maxformer_4_384", {"heads": (8,)}, "heads is (8,): it must be a whole number, 1 to 65536"),
        ("maxformer_4_384", {"kernels": (-1, 3)}, "kernels is -1: it must be a whole number, 0 to 65536"),
        ("spikingresformer_s", {"patches": (4, 2, 0)}, "patches is 0: it must be a whole number, 1 to 65536"),
        ("meta_spikeformer_8_256", {"dims": [8, 8]}, "dims is (8, 8): it must be 4 whole numbers"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_field_that_does_not_fit_is_refused_by_name(name, changes, says):
    with pytest.raises(ValueError) as refused:
        create_model(name, **changes)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "changes", "shape", "says"),
    [
        ("spikformer_4_384", {"heads": 3}, None, "3 heads cannot share 16 channels equally"),
        ("sdt_2_512", {"heads": 3}, None, "3 heads cannot share 16 channels equally"),
        ("qkformer_4_384", {"heads": (3, 2, 2)}, None, "3 heads cannot share 4 channels equally"),
        ("maxformer_4_384", {"heads": 5}, None, "5 heads cannot share 16 channels equally"),
        ("meta_spikeformer_8_256", {"heads": 3}, None, "3 heads cannot share 16 channels equally"),
        ("e_spikeformer_s", {"heads": 3}, None, "3 heads cannot share 16 channels equally"),
        ("spikingresformer_cifar", {"heads": (1, 5, 2)}, None, "5 heads cannot share 24 channels equally"),
        (
            "spikingresformer_cifar", {}, (10, 10, 3),
            "attention_1_0/patches: patches of 2x2 do not divide a grid of 5x5",
        ),
        (
            "spikingresformer_cifar", {"group_width": 5}, None,
            "feed_forward_1_0/group: groups of 5 channels do not divide 96 input and 96 output channels",
        ),
        ("maxformer_4_384", {"kernels": (0, 4)}, None, "kernel is 4: its side must be odd"),
        ("spikformer_4_384", {}, (8, 8), "images of shape (1, 8, 8): this network takes [B, H, W, C]"),
    ],
)  # fmt: skip
def test_images_and_heads_that_do_not_fit_are_refused_in_one_line(name, changes, shape, says):
    model, shape = tiny_peer(name, **changes), shape or shape_of(name)
    with pytest.raises(ValueError) as refused:
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.uint8))
    assert str(refused.value) == says


def test_images_out_of_range_have_no_logits():
    """Under `jit` no error can be raised."""
    variables, images, *_ = evaluated("sdt_2_512")
    wrong = jnp.asarray(images / 255, jnp.float32).at[1, 0, 0, 0].set(2.0)
    logits, _ = jax.jit(tiny_peer("sdt_2_512", capture="none").apply)(variables, wrong)
    np.testing.assert_array_equal(np.isnan(logits).any(1), [False, True, False, False])
