"""Exact counts: by hand, one connection at a time, equal in both executions, and never rounded or wrapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax import create_model
from ge2mst_jax.convert import deploy
from ge2mst_jax.energy import SpikeCounter, connections_per_spike
from ge2mst_jax.grouping import REAL, Scale
from ge2mst_jax.nn import ATTENTION_RATES, AttentionRecord, Current, NeuronRecord, SelfAttention, SynapseRecord, Wire
from ge2mst_jax.spiking import SpikeCode

CODE = SpikeCode.parse("2x2")  # weights 2 1 2 1; levels 0..6 take 0 1 1 2 3 3 4 spikes


def count(*auxes):
    counter = SpikeCounter()
    for aux in auxes:
        counter.add(aux)
    return counter


def synops_of(counter):
    return {name: layer.synops for name, layer in counter.layers.items()}


# --- by hand ----------------------------------------------------------------------------------------------------------


def hand_model(execution="dense", input_code="1x8"):
    """Stem 1 -> 2 channels on 4x4, strided 3x3 2 -> 3 channels to 2x2, head of 4 classes."""
    return create_model(
        "ge2mst_nano",
        stages=(("conv", 2, 0), ("conv", 3, 0)),
        code=CODE,
        num_classes=4,
        execution=execution,
        input_code=input_code,
    )


def centre(weights):
    kernel = np.zeros((3, 3, *np.shape(weights)), np.int32)
    kernel[1, 1] = weights
    return kernel


#: The stem's channels are the pixel and twice the pixel; a level is worth 32. The third channel of the second synapse
#: hears its bias alone.
HAND_PARAMS = {
    "stem": {"synapse": {"kernel": centre([[1, 2]]), "bias": jnp.zeros(2, jnp.int32)}},
    "stage_1": {
        "down": {
            "neuron": {"threshold": jnp.int32(32)},
            "synapse": {"kernel": centre([[1, 0, 0], [0, 1, 0]]), "bias": jnp.array([0, 0, 4])},
        }
    },
    "neuron_head": {"threshold": jnp.int32(2)},
    "head": {"kernel": jnp.ones((3, 4), jnp.int32), "bias": jnp.zeros(4, jnp.int32)},
}
HAND_IMAGES = np.zeros((2, 4, 4, 1), np.uint8)  # the second image is black
HAND_IMAGES[0, :, :, 0] = [[0, 32, 0, 255], [0, 0, 0, 0], [64, 0, 0, 1], [0, 0, 96, 0]]


@functools.cache
def hand_count(execution, input_code="1x8"):
    model = hand_model(execution, input_code)
    return count(model.apply({"params": HAND_PARAMS}, jnp.asarray(HAND_IMAGES))[1])


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_synops_of_two_layers_and_a_head_are_those_counted_by_hand(execution):
    counter = hand_count(execution)
    # Bits of the pixels 32, 255, 64, 1, 96 times the 3x3 windows that see them (4 at a corner, 6 at an edge),
    # times 2 channels.
    stem = (1 * 6 + 8 * 4 + 1 * 6 + 1 * 6 + 2 * 6) * 2
    # Levels 1, 6, 2, 0, 3 of the pixels and 2, 6, 4, 0, 6 of their doubles take 1 + 1, 4 + 4, 1 + 3, 0, 2 + 4 spikes.
    # With stride 2 the windows stand at rows and columns 0 and 2, so both see row or column 1: the pixel 32, at (0, 1),
    # is seen by 1·2 windows and the others by one. Times 3 channels.
    down = (2 * 2 + 8 * 1 + 4 * 1 + 6 * 1) * 3
    # Of the 2x2 positions only (1, 0) has its centre on a pixel, 64: levels 2 and 4 arrive, 1 and 2 leave. The third
    # channel sends level 2, one spike, from all 4 positions of both images. Times 4 classes.
    head = (1 + 1 + 4 + 4) * 4
    assert synops_of(counter) == {"stem/synapse": stem, "stage_1/down/synapse": down, "head": head}
    assert (stem, down, head) == (124, 66, 40)
    assert {name: n.spikes for name, n in counter.neurons.items()} == {
        "stem/image": 13,
        "stage_1/down/neuron": 20,
        "neuron_head": 10,
    }
    assert {name: layer.role for name, layer in counter.layers.items()} == {
        "stem/synapse": "stem",
        "stage_1/down/synapse": "hidden",
        "head": "head",
    }


def test_macs_are_the_connections_of_one_dense_pass():
    counter = hand_count("dense")
    # Along a side of 4 the windows see 2 + 3 + 3 + 2 positions, strided ones 1 + 2 + 1 + 1.
    expected = {"stem/synapse": 10 * 10 * 1 * 2, "stage_1/down/synapse": 5 * 5 * 2 * 3, "head": 4 * 3 * 4}
    assert {name: layer.macs for name, layer in counter.layers.items()} == {n: 2 * m for n, m in expected.items()}


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_image_that_is_presented_directly_costs_macs_and_no_synops(execution):
    direct, coded = hand_count(execution, "direct"), hand_count(execution)
    assert "stem/image" not in direct.neurons
    stem = direct.layers["stem/synapse"]
    assert (stem.synops, stem.macs, stem.real) == (0, 400, True)
    assert not coded.layers["stem/synapse"].real
    assert {**direct.layers, "stem/synapse": None} == {**coded.layers, "stem/synapse": None}


def test_spikes_per_neuron_is_the_mean_over_neurons_without_the_image():
    # 20 spikes of 4·4·2 neurons and 10 of 2·2·3, over 2 images.
    for input_code in ("1x8", "direct"):
        assert hand_count("dense", input_code).spikes_per_neuron == (20 + 10) / (2 * (32 + 12))


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        # k and v meet first (4 tokens, width 2): each token's 1 spike of k meets 2 of v; 8 spikes of q add rows of 2.
        ((2, 2), 4 * 1 * 2 + 8 * 2),
        # q and k meet first (1 token): it coincides with itself in 1 of 2 channels; 8 spikes of v reach 1 token.
        ((1, 1), 4 * 1 + 8 * 1),
        # Pairs: 2 spikes of q meet 2 of k in the one channel, in each of 2 groups; 8 spikes of v reach 2 tokens.
        ((1, 2), 2 * 2 * 2 + 8 * 2),
    ],
    ids=str,
)
def test_synops_of_attention_are_those_counted_by_hand(window, expected):
    """2x2 tokens, one head of width 2: q fires everywhere, k in its first channel, v sends level 3, 2 spikes, there."""

    def hears_its_bias(bias, kernel=(1, 1, 2)):
        return {"kernel": jnp.zeros((*kernel, 2), jnp.int32), "bias": jnp.array(bias)}

    params = {f"neuron{key}": {"threshold": jnp.int32(1)} for key in ("", "_q", "_k", "_v", "_out")}
    params |= {"q": hears_its_bias([1, 1]), "k": hears_its_bias([1, 0]), "v": hears_its_bias([3, 0])}
    params |= {"local": hears_its_bias([0, 0], (3, 3, 1)), "out": hears_its_bias([0, 0])}
    params["attention"] = {"shift": jnp.int32(0)}
    wire = Wire(CODE, execution="spiking", attention_rates=REAL)
    block = SelfAttention(wire, 1, (Scale("block", window),))
    _, aux = block.apply({"params": params}, Current(jnp.full((1, 2, 2, 2), 6), ("stem",)), False)
    counter = count(aux)
    assert counter.layers["attention"].synops == expected
    assert counter.layers["attention"].role == "attention"
    assert counter.layers["q"].synops == 4 * 2 * 4 * 2  # level 6 takes 4 spikes
    assert counter.layers["local"].synops == 8 * 4  # every token reaches all 4, and its own channel alone


# --- one connection at a time -----------------------------------------------------------------------------------------


def brute_synapse(record, spikes):
    """`spikes [B, H, W, C]` times the connections that are there: for each output, each weight that it reads."""
    height, width, channels = record.in_shape
    rows, columns, features = record.out_shape
    fan_in, per_group = channels // record.groups, features // record.groups
    total = 0
    for row, column, output in np.ndindex(rows, columns, features):
        for dy, dx in np.ndindex(record.kernel, record.kernel):
            y, x = (at * record.stride + d - record.kernel // 2 for at, d in ((row, dy), (column, dx)))
            if 0 <= y < height and 0 <= x < width:
                first = output // per_group * fan_in
                total += int(spikes[:, y, x, first : first + fan_in].sum())
    return total


def same_group(scale, height, width):
    """`[N, N]`: whether two tokens attend to each other."""
    y, x = np.divmod(np.arange(height * width), width)
    rows, columns = scale.window
    if scale.partition == "block":
        group = (y // rows) * width + x // columns
    else:
        group = (y % (height // rows)) * width + x % (width // columns)
    return group[:, None] == group


def brute_attention(trains, scales, head_width, rates=ATTENTION_RATES):
    """Accumulates of the trains of `q`, `k`, `v`, `[T, B, H, W, C]` each, from pairs of tokens."""
    height, width, channels = trains[0].shape[2:]
    heads = channels // head_width
    q, k, v = (x.reshape(*x.shape[:2], -1, heads, head_width).sum(0, dtype=np.int64) for x in trains)
    total = 0
    for head in range(heads):
        scale = scales[head * len(scales) // heads]
        qh, kh, vh = q[:, :, head], k[:, :, head], v[:, :, head]
        of_q, of_k, of_v = rates
        if head_width * (of_k * of_v + of_q) < scale.tokens * (of_q * of_k + of_v):
            total += np.einsum("bma,bme->", kh, vh) + head_width * qh.sum()
        else:
            mask = same_group(scale, height, width).astype(np.int64)
            total += np.einsum("bnd,bmd,nm->", qh, kh, mask) + np.einsum("bme,nm->", vh, mask)
    return int(total)


def attention_of(record, trains, scales, head_width, steps=False):
    """Of one layer; `steps`: of neurons that fire at every step."""
    of_record = [trains[source] for source in record.sources]
    if not steps:
        return brute_attention(of_record, scales, head_width)
    steps = zip(*of_record, strict=True)  # every step is an attention of its own
    return sum(brute_attention([x[None] for x in step], scales, head_width, (1, 1, 1)) for step in steps)


def brute_synops(aux, trains, scales, head_width, steps=False):
    """Synops of every layer from the spike trains `[T, B, H, W, C]` of every neuron layer."""
    found = {}
    for name, record in aux.items():
        if isinstance(record, SynapseRecord):
            spikes = trains[record.source].sum(0, dtype=np.int64)
            if record.role == "head":
                found[name] = int(spikes.sum()) * record.out_shape[-1]
            else:
                found[name] = brute_synapse(record, spikes)
        elif isinstance(record, AttentionRecord):
            found[name] = attention_of(record, trains, scales, head_width, steps)
    return found


SCALES = (Scale("block", (1, 2)), Scale("grid", 4))  # 2 tokens of width 8, then 16: both orders of products


@pytest.fixture(scope="module")
def deployed():
    """The network of tests/models: a strided synapse and one attention block, with `aux` of both executions."""
    model = tiny_model(
        "1x2", qk_code="2x2", stages=(("conv", 8, 0), ("attention", 16, 1)), scales=("block1x2", "grid4")
    )
    net = deploy(model, random_variables(model), SHAPE)
    return {execution: net(random_images(8), execution, "levels")[1] for execution in ("dense", "spiking")}


def test_counts_are_spikes_times_the_connections_that_are_there(deployed):
    aux = deployed["spiking"]
    trains = {name: np.asarray(r.train) for name, r in aux.items() if isinstance(r, NeuronRecord)}
    expected = brute_synops(aux, trains, SCALES, 8)
    assert len(expected) == 12
    assert all(n > 0 for n in expected.values())
    assert synops_of(count(aux)) == expected
    counter = count(aux)
    assert {name: n.spikes for name, n in counter.neurons.items()} == {n: t.sum() for n, t in trains.items()}
    neurons = {name: train[0, 0].size for name, train in trains.items() if name != "stem/image"}
    assert {name: n.neurons for name, n in counter.neurons.items() if not n.is_image} == neurons
    mean = sum(trains[name].sum() for name in neurons) / (8 * sum(neurons.values()))
    assert counter.spikes_per_neuron == pytest.approx(mean, rel=1e-12)


def test_synops_of_attention_are_those_of_each_image(deployed):
    for aux in deployed.values():
        record = aux["stage_1/block_0/attention/attention"]
        trains = {name: np.asarray(deployed["spiking"][name].train) for name in record.sources}
        expected = [attention_of(record, {n: t[:, i : i + 1] for n, t in trains.items()}, SCALES, 8) for i in range(8)]
        np.testing.assert_array_equal(record.synops, expected)
        assert len(set(expected)) > 4


def test_both_executions_cost_the_same_synops(deployed):
    dense, spiking = (count(deployed[execution]) for execution in ("dense", "spiking"))
    assert dense.layers == spiking.layers
    assert dense.neurons == spiking.neurons


@pytest.mark.parametrize(("fields", "steps"), [({"neuron": "lif"}, 2), ({"neuron": "qcfs", "rate_steps": 3}, 3)])
def test_neurons_that_fire_at_every_step_are_counted_step_by_step(fields, steps):
    fields |= dict(stages=(("attention", 16, 1),), scales=("block2", "grid4"), capture="levels")
    model = tiny_model("2x1", **fields)
    scales = (Scale("block", 2), Scale("grid", 4))  # 4 tokens of width 8: queries first, as of equal rates
    variables, images = random_variables(model, (4, 4, 2)), random_images(3, (4, 4, 2))
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    _, aux = jax.jit(model.apply, compiler_options=options)(variables, images)
    pixels = np.moveaxis(np.unpackbits(images[..., None], axis=-1), -1, 0)
    trains = {name: np.asarray(r.train) for name, r in aux.items() if isinstance(r, NeuronRecord) and r.parts}
    assert {name: (len(t), t.any()) for name, t in trains.items()} == dict.fromkeys(trains, (steps, True))
    assert synops_of(count(aux)) == brute_synops(aux, trains | {"stem/image": pixels}, scales, 8, steps=True)
    record = aux["stage_0/block_0/attention/attention"]
    images_of = [{name: train[:, i : i + 1] for name, train in trains.items()} for i in range(3)]
    expected = [attention_of(record, image, scales, 8, steps=True) for image in images_of]
    np.testing.assert_array_equal(record.synops, expected)


# --- adding up --------------------------------------------------------------------------------------------------------


def neuron_record(spikes, parts=("synapse",), shape=None):
    spikes = np.asarray(spikes, np.int32)
    return NeuronRecord(
        spikes=spikes,
        activity=spikes.sum((1, 2)),
        levels=None,
        train=None,
        current=None,
        code=CODE,
        steps=CODE.num_steps,
        shape=shape or (*spikes.shape[1:], 1),
        parts=parts,
    )


def synapse_record(source, in_shape, out_shape, **fields):
    made = dict(role="hidden", kernel=1, stride=1, groups=1, max_level=6)
    return SynapseRecord(source=source, in_shape=in_shape, out_shape=out_shape, **(made | fields))


def attention_record(synops):
    return AttentionRecord(synops=np.asarray(synops, np.int32), sources=(), products=(), bound=1, out_shape=(1, 1, 1))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(in_shape=(2, 2, 3), out_shape=(2, 2, 5)), [[5, 5], [5, 5]]),
        (dict(in_shape=(2, 2, 4), out_shape=(2, 2, 8), groups=4), [[2, 2], [2, 2]]),
        (dict(in_shape=(3, 3, 2), out_shape=(3, 3, 2), groups=2, kernel=3), [[4, 6, 4], [6, 9, 6], [4, 6, 4]]),
        (dict(in_shape=(3, 2, 1), out_shape=(2, 1, 1), kernel=3, stride=2), [[1, 1], [2, 2], [1, 1]]),
        (dict(in_shape=(1, 3, 7), out_shape=(1, 1, 10), role="head"), [[10, 10, 10]]),
    ],
    ids=["1x1", "groups", "depth-wise", "strided", "head"],
)
def test_connections_of_a_spike_are_borders_strides_and_groups(fields, expected):
    found = connections_per_spike(synapse_record("n", **fields))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_counts_go_beyond_32_bits_and_beyond_what_floats_count():
    spikes = neuron_record(np.full((2, 1, 2), 2**30 + 1))
    aux = {
        "n": spikes,
        "synapse": synapse_record("n", (1, 2, 1), (1, 2, 1000)),
        "attention": attention_record([2**31 - 1, 2**24 + 1]),
    }
    counter = count(aux, aux, aux)
    assert counter.images == 6
    assert counter.neurons["n"].spikes == 3 * 4 * (2**30 + 1)
    assert counter.layers["synapse"].synops == 3 * 4 * (2**30 + 1) * 1000
    assert counter.layers["attention"].synops == 3 * (2**31 + 2**24)


def test_macs_go_beyond_32_bits():
    aux = {"n": neuron_record(np.zeros((8, 64, 64))), "s": synapse_record("n", (64, 64, 512), (64, 64, 512), kernel=7)}
    along = 58 * 7 + 2 * (4 + 5 + 6)  # windows of 7 along a side of 64: three positions at each end are seen by fewer
    assert count(aux).layers["s"].macs == 8 * along**2 * 512**2 > 2**32


def test_batches_add_up_to_the_whole(deployed):
    whole = count(deployed["dense"])

    def half(part):
        def cut(record):
            return record if isinstance(record, SynapseRecord) else jax.tree.map(lambda a: a[part], record)

        return {name: cut(record) for name, record in deployed["dense"].items()}

    halves = count(half(slice(0, 3)), half(slice(3, 8)))
    assert (halves.layers, halves.neurons, halves.images) == (whole.layers, whole.neurons, 8)


def test_spikes_per_neuron_weighs_layers_by_their_neurons():
    aux = {
        "image": neuron_record([[[100]], [[100]]], parts=()),
        "small": neuron_record([[[3]], [[1]]], shape=(1, 1, 2)),
        "large": neuron_record([[[5]], [[1]]], shape=(1, 1, 8)),
    }
    assert count(aux).spikes_per_neuron == (3 + 1 + 5 + 1) / (2 * (2 + 8))
