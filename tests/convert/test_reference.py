"""The reference: every part against numbers worked out by hand and a second, slower writing of the same sum."""

import ast
import copy
import dataclasses
import inspect
import sys
import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax.convert import deploy
from ge2mst_jax.convert.reference import attend, convolve, fire, inside, pixels, reference, step_weights, token_groups
from ge2mst_jax.grouping import Scale, partition
from ge2mst_jax.nn import NeuronRecord
from ge2mst_jax.nn.images import pixels as pixels_of_both
from ge2mst_jax.nn.maps import views
from ge2mst_jax.nn.planes import Sums, cut

#: code: (weights of its groups, spikes a group, levels that it reaches), DESIGN.md §3.1.
CODES = {
    "1x4": ([[8, 4, 2, 1]], 4, list(range(16))),
    "2x2": ([[2, 1], [2, 1]], 2, list(range(7))),
    "4x1": ([[1], [1], [1], [1]], 1, list(range(5))),
    "2x3/1": ([[4, 2, 1], [4, 2, 1]], 1, [0, 1, 2, 3, 4, 5, 6, 8]),
    "1x1": ([[1]], 1, [0, 1]),
    "1x8": ([[128, 64, 32, 16, 8, 4, 2, 1]], 8, list(range(256))),
    "2x2+1,0": ([[4, 2], [2, 1]], 2, list(range(10))),
    "2x2+2,0": ([[8, 4], [2, 1]], 2, list(range(16))),
    "2x2/1+1,0": ([[4, 2], [2, 1]], 1, [0, 1, 2, 3, 4, 5, 6]),
}


@pytest.mark.parametrize("code", CODES)
def test_code_has_the_weights_of_the_table(code):
    assert step_weights(code) == CODES[code][:2]


@pytest.mark.parametrize(
    "code, threshold, current, level, train",
    [
        ("1x4", 4, 21, 5, [0, 1, 0, 1]),
        ("1x4", 4, 10, 3, [0, 0, 1, 1]),  # 2.5 levels: a tie fires
        ("1x4", 4, 9, 2, [0, 0, 1, 0]),
        ("1x4", 4, -2, 0, [0, 0, 0, 0]),  # a membrane of 0
        ("1x4", 4, 2, 1, [0, 0, 0, 1]),
        ("1x4", 2, 10**9, 15, [1, 1, 1, 1]),
        ("1x4", 2, -(10**9), 0, [0, 0, 0, 0]),
        ("2x2", 2, 8, 4, [1, 1, 0, 1]),
        ("2x2", 2, 10, 5, [1, 1, 1, 0]),
        ("4x1", 6, 15, 3, [1, 1, 1, 0]),
        ("2x2+1,0", 2, 14, 7, [1, 1, 0, 1]),
        ("2x3/1", 2, 14, 6, [1, 0, 0, 0, 1, 0]),  # 7 is no sum of two powers of two: the level below
        ("2x3/1", 2, 15, 8, [1, 0, 0, 1, 0, 0]),
        ("2x3/1", 2, 6, 3, [0, 1, 0, 0, 0, 1]),
        ("2x2/1+1,0", 2, 18, 6, [1, 0, 1, 0]),
        ("1x1", 100, 49, 0, [0]),
        ("1x1", 100, 50, 1, [1]),
    ],
)
def test_neuron_by_hand(code, threshold, current, level, train):
    levels, fired = fire("neuron", np.array([current]), np.array(threshold), code)
    assert levels.tolist() == [level]
    assert fired[:, 0].astype(int).tolist() == train


def test_neuron_with_a_threshold_a_channel():
    levels, train = fire("neuron", np.array([[5, 5], [-9, 9]]), np.array([2, 6]), "2x2")
    assert levels.tolist() == [[3, 1], [0, 2]]
    assert train.shape == (4, 2, 2)


@given(st.sampled_from(sorted(CODES)), st.integers(1, 2**20), st.lists(st.integers(-(2**30), 2**30), min_size=1))
def test_train_decodes_to_the_twins_level(code, half, currents):
    groups, _, reached = CODES[code]
    levels, train = fire("neuron", np.array(currents), np.array(2 * half), code)
    for current, level in zip(currents, levels.tolist(), strict=True):
        nearest = (current + half) // (2 * half)
        assert level == max(n for n in reached if n <= max(nearest, 0))
    assert (np.tensordot(np.concatenate(groups), train, 1) == levels).all()


@pytest.mark.parametrize("threshold", [0, -2, 3, [2, 5]])
def test_thresholds_that_are_none_are_refused(threshold):
    with pytest.raises(ValueError, match=r"a/neuron: a threshold is .*: it must be positive and even"):
        fire("a/neuron", np.zeros(2, np.int64), np.array(threshold), "2x2")


@pytest.mark.parametrize("current, threshold", [(2**31 - 2, 4), (0, 2**30)])
def test_membrane_stays_inside_int32(current, threshold):
    with pytest.raises(ValueError, match=r"a/neuron: a number reaches 21474836.*inside int32"):
        fire("a/neuron", np.array([current]), np.array(threshold), "2x2")


def test_convolution_by_hand():
    levels = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])[..., None]
    kernel = np.array([[1, 10, 0], [100, 1000, 0], [0, 0, 0]])[..., None, None]  # above left, above, left, itself
    assert convolve(levels, kernel, 1)[..., 0].tolist() == [
        [1000, 2100, 3200],
        [4010, 5421, 6532],
        [7040, 8754, 9865],
    ]
    assert convolve(levels, kernel, 2)[..., 0].tolist() == [[1000, 3200], [7040, 9865]]


def test_depthwise_and_grouped_convolution_by_hand():
    levels = np.array([[[1, 2, 3, 4]]])
    assert convolve(levels, np.array([5, 6, 7, 8]).reshape(1, 1, 1, 4), 1).ravel().tolist() == [5, 12, 21, 32]
    kernel = np.array([[1, 0, 10, 1], [0, 1, 1, -1]]).reshape(1, 1, 2, 4)
    assert convolve(levels, kernel, 1).ravel().tolist() == [1, 2, 34, -1]


def slow_convolution(levels, kernel, stride):
    height, width, channels = levels.shape
    size, _, senders, features = kernel.shape
    sums = np.zeros(((height - 1) // stride + 1, (width - 1) // stride + 1, features), np.int64)
    for i, j, c, a, b, s in np.ndindex(*sums.shape, size, size, senders):
        y, x = stride * i + a - size // 2, stride * j + b - size // 2
        if 0 <= y < height and 0 <= x < width:
            sender = c // (features * senders // channels) * senders + s
            sums[i, j, c] += levels[y, x, sender] * kernel[a, b, s, c]
    return sums


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2),
    st.sampled_from([1, 3, 5]), st.integers(1, 4), st.integers(0, 99),
)  # fmt: skip
def test_convolution_is_its_sum(height, width, groups, senders, receivers, size, stride, seed):
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, (height, width, groups * senders))
    kernel = random.integers(-1000, 1000, (size, size, senders, groups * receivers))
    assert (convolve(levels, kernel, stride) == slow_convolution(levels, kernel, stride)).all()


@pytest.mark.parametrize(
    "scale, first, last",
    [
        ("block2", [(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 4), (2, 5), (3, 4), (3, 5)]),
        ("grid2", [(0, 0), (0, 3), (2, 0), (2, 3)], [(1, 2), (1, 5), (3, 2), (3, 5)]),
        ("block1x3", [(0, 0), (0, 1), (0, 2)], [(3, 3), (3, 4), (3, 5)]),
        ("grid1x3", [(0, 0), (0, 2), (0, 4)], [(3, 1), (3, 3), (3, 5)]),
        ("grid4x1", [(0, 0), (1, 0), (2, 0), (3, 0)], [(0, 5), (1, 5), (2, 5), (3, 5)]),
    ],
)
def test_token_groups_by_hand(scale, first, last):
    groups = [list(zip(rows.tolist(), columns.tolist(), strict=True)) for rows, columns in token_groups(scale, 4, 6)]
    assert (groups[0], groups[-1]) == (first, last)
    assert sorted(token for group in groups for token in group) == list(np.ndindex(4, 6))


def test_one_attention_group_by_hand():
    q = np.array([[[1, 0], [1, 1]]])  # two tokens, a head of two channels
    k = np.array([[[0, 1], [1, 1]]])
    v = np.array([[[3, 1], [0, 5]]])
    # A = [[0, 1], [1, 2]]
    assert attend("attention", q, k, v, 2, ("block1x2",)).tolist() == [[[0, 5], [3, 11]]]
    # Heads of one channel: A = [[0, 1], [0, 1]] for the first, [[0, 0], [1, 1]] for the second, alone in its groups.
    assert attend("attention", q, k, v, 1, ("block1x2", "block1")).tolist() == [[[0, 0], [0, 5]]]


def slow_attention(q, k, v, width, scales):
    height, columns, channels = v.shape
    out = np.zeros_like(v)
    for y, x, c, b, a in np.ndindex(*v.shape, height, columns):
        partition, tall, wide = scales[c // (channels // len(scales))]
        if partition == "block":
            together = y // tall == b // tall and x // wide == a // wide
        else:
            together = (y - b) % (height // tall) == 0 and (x - a) % (columns // wide) == 0
        if together:
            head = slice(c // width * width, (c // width + 1) * width)
            out[y, x, c] += sum(q[y, x, head] * k[b, a, head]) * v[b, a, c]
    return out


@pytest.mark.parametrize(
    "scales",
    [
        [("block", 2, 2)],
        [("grid", 2, 3)],
        [("block", 1, 3), ("grid", 4, 2)],
        [("grid", 1, 1), ("block", 4, 6), ("grid", 1, 6), ("block", 2, 1)],
    ],
)
def test_attention_is_its_sum(scales):
    random = np.random.default_rng(1)
    q, k, v = (random.integers(0, high, (4, 6, 8)) for high in (2, 2, 7))
    texts = [f"{partition}{tall}x{wide}" for partition, tall, wide in scales]
    assert (attend("attention", q, k, v, 2, texts) == slow_attention(q, k, v, 2, scales)).all()


def test_pixels_are_whole():
    image = np.array([0.0, 0.49, 0.5, 0.51, 1.0]).reshape(1, 5, 1)
    assert pixels(image, (1, 5, 1)).ravel().tolist() == [0, 125, 128, 130, 255]
    assert pixels(np.array([[[7]]], np.uint8), (1, 1, 1)).tolist() == [[[7]]]


@pytest.mark.parametrize("image", [[[[1.1]]], [[[-0.1]]], [[[np.nan]]], [[0.5]], [[[0.5, 0.5]]]])
def test_images_that_are_none_are_refused(image):
    with pytest.raises(ValueError, match="stem/image: "):
        pixels(np.array(image), (1, 1, 1))


def test_numbers_end_where_int32_does():
    assert inside("a", np.array([1 - 2**31, 2**31 - 1])).size == 2
    for number in (-(2**31), 2**31):
        with pytest.raises(ValueError, match="a: a number reaches"):
            inside("a", np.array([number]))


def network(stages, image_shape, arrays, **fields):
    """A network of given integers: `{layer: {array: numbers}}`, nested as a deployed one's."""
    params = {}
    for path, layer in arrays.items():
        node = params
        for key in path.split("/"):
            node = node.setdefault(key, {})
        node.update({key: np.array(numbers, np.int32) for key, numbers in layer.items()})
    stages = tuple(types.SimpleNamespace(kind=kind, channels=channels, depth=depth) for kind, channels, depth in stages)
    fields = dict(
        stem_kernel=1, stem_stride=1, head_width=1, expand=2, group_width=8, qk_code="1x1", attention="gw_ssa",
        local=True,
    ) | fields  # fmt: skip
    return types.SimpleNamespace(
        model=types.SimpleNamespace(stages=stages, **fields), params=params, image_shape=image_shape
    )


def synapse(weights, bias, guard=0):
    """A 1×1 synapse; rows of `weights` are the channels that send."""
    return {"kernel": [[weights]], "bias": bias, "guard": guard}


def taps(bias, guard=0, **weights):
    """A 3×3 synapse between one channel and itself, from its taps."""
    kernel = np.zeros((3, 3, 1, 1), int)
    for name, weight in weights.items():
        kernel[{"middle": (1, 1), "left": (1, 0)}[name]] = weight
    return {"kernel": kernel, "bias": [bias], "guard": guard}


def convolution_network(image_shape, **fields):
    block = "stage_0/block_0/"
    layers = {
        "stem/synapse": synapse([[1]], [0]),
        block + "neuron_0": {"threshold": 4},
        block + "conv_0": taps(-3, guard=2, middle=7, left=4),  # 0, 21, 35, 76 quarters
        block + "neuron_1": {"threshold": 2},
        block + "conv_1": taps(0, middle=1),
        "neuron_head": {"threshold": 8},
        "head": {"kernel": [[3, -1]], "bias": [1, 4]},
    }
    return network([("conv", 1, 1)], image_shape, layers, code="1x4", num_classes=2, scales=(), **fields)


def attention_network():
    block = "stage_0/block_0/"
    attention, feed_forward = block + "attention/", block + "feed_forward/"
    group = np.zeros((3, 3, 2, 2), int)
    group[1, 1] = [[1, 0], [2, 1]]
    layers = {
        "stem/synapse": synapse([[1]], [0]),
        attention + "neuron": {"threshold": 2},
        attention + "q": synapse([[1]], [0]),
        attention + "neuron_q": {"threshold": 2},
        attention + "k": synapse([[1]], [0]),
        attention + "neuron_k": {"threshold": [2]},
        attention + "v": synapse([[2]], [-1]),
        attention + "neuron_v": {"threshold": 2},
        attention + "attention": {"shift": 2},
        attention + "local": taps(1, middle=1),
        attention + "neuron_out": {"threshold": 4},
        attention + "out": synapse([[-1]], [0]),
        feed_forward + "neuron_up": {"threshold": 2},
        feed_forward + "up": synapse([[1, -1]], [0, 5]),
        feed_forward + "neuron_group": {"threshold": 2},
        feed_forward + "group": {"kernel": group, "bias": [0, 0], "guard": 0},
        feed_forward + "neuron_down": {"threshold": [2, 4]},
        feed_forward + "down": synapse([[1], [1]], [0]),
        "neuron_head": {"threshold": 2},
        "head": {"kernel": [[2]], "bias": [1]},
    }
    return network([("attention", 1, 1)], (1, 1, 1), layers, code="2x2", num_classes=1, scales=("block1",))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_network_by_hand(stride):
    image = np.full((2 * stride, 2 * stride, 1), 99, np.uint8)
    image[::stride, ::stride, 0] = [[0, 10], [20, 30]]
    levels, sums = reference(convolution_network(image.shape, stem_stride=stride), image)
    assert (levels.pop("stem/image") == image).all()
    assert {name: n[..., 0].tolist() for name, n in levels.items()} == {
        "stage_0/block_0/neuron_0": [[0, 3], [5, 8]],  # of the pixels
        "stage_0/block_0/neuron_1": [[0, 1], [3, 8]],  # of -3, 2, 6, 16
        "neuron_head": [[0, 1], [3, 5]],  # of 0, 11, 23, 38
    }
    assert sums.tolist() == [28, -5]


def test_attention_network_by_hand():
    levels, sums = reference(attention_network(), np.array([[[6]]], np.uint8))
    assert {name.removeprefix("stage_0/block_0/"): n[0, 0].tolist() for name, n in levels.items()} == {
        "stem/image": [6],
        "attention/neuron": [3],
        "attention/neuron_q": [1],
        "attention/neuron_k": [1],
        "attention/neuron_v": [3],  # of 5
        "attention/neuron_out": [4],  # of 3·2^2 + 4
        "feed_forward/neuron_up": [1],  # of 6 - 4
        "feed_forward/neuron_group": [1, 2],  # of 1, 4
        "feed_forward/neuron_down": [3, 2],  # of 1 + 5, 4 + 2
        "neuron_head": [4],  # of 2 + 5
    }
    assert sums.tolist() == [9]
    assert list(levels)[-1] == "neuron_head"


def test_shares_no_code_with_what_it_is_held_against():
    tree = ast.parse(inspect.getsource(sys.modules[reference.__module__]))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert modules == {"re", "numpy", "flax", "ge2mst_jax.checks"}


BLOCK = "stage_0/block_0/"
rounded_of_both = Sums.rounded


@pytest.mark.parametrize(
    "layer, array, numbers, message",
    [
        ("stem/synapse", "kernel", np.ones((1, 1, 1, 1), np.float32), "stem/synapse: kernel is float32"),
        ("stem/synapse", "kernel", np.ones((3, 3, 1, 1), np.int32), "stem/synapse: kernel is .*of shape"),
        ("stem/synapse", "bias", None, "stem/synapse: bias is absent"),
        ("stem/synapse", "guard", np.int32(8), "stem/synapse: guard is 8: it must be 0 to 7"),
        ("stem/synapse", "guard", np.int32(-1), "stem/synapse: guard is -1: it must be 0 to 7"),
        ("stem/synapse", "bias", np.int32([2**31 - 3]), "stem/synapse: a number reaches 2147483651"),
        (BLOCK + "attention/neuron_q", "threshold", np.int32([2, 2]), "neuron_q: threshold is .*of shape"),
        (BLOCK + "attention/neuron_v", "threshold", np.int32(3), "neuron_v: a threshold is"),
        (BLOCK + "attention/attention", "shift", np.int32(31), "attention/attention: shift is 31"),
        (BLOCK + "attention/attention", "shift", np.int32(-1), "attention/attention: shift is -1"),
        (BLOCK + "attention/attention", "shift", np.int32(30), "attention/attention: a number reaches 3221225472"),
        (BLOCK + "feed_forward/group", "kernel", np.ones((3, 3, 1, 2), np.int32), "group: kernel is"),
        (BLOCK + "feed_forward/down", "bias", np.int32([2**31 - 7]), "stage_0/block_0: a number reaches 2147483648"),
        (BLOCK + "feed_forward/down", "bias", np.int32([2**31 - 8]), "neuron_head: a number reaches 2147483648"),
        (BLOCK + "feed_forward/down", "gain", np.int32([1]), "down/gain has no part in this network"),
        ("head", "bias", np.int32([2**31 - 7]), "head: a number reaches 2147483649"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_their_layer(layer, array, numbers, message):
    net = copy.deepcopy(attention_network())
    node = net.params
    for key in layer.split("/"):
        node = node[key]
    node[array] = numbers
    if numbers is None:
        del node[array]
    with pytest.raises(ValueError, match=message) as error:
        reference(net, np.array([[[6]]], np.uint8))
    assert "\n" not in str(error.value)


def executions(net, images):
    """`{name: levels}` with the head's sums under `"head"`, densely and as spikes; compiled here, faults included.

    The spikes of every train are those that its levels stand for.
    """
    models = [net.executed(execution, "levels") for execution in ("dense", "spiking")]
    run = jax.jit(lambda params, images: [model.apply({"params": params}, images) for model in models])
    found = []
    for sums, aux in jax.device_get(run(net.params, images)):
        neurons = {name: record for name, record in aux.items() if isinstance(record, NeuronRecord)}
        for name, record in neurons.items():
            if record.train is not None:
                _, train = fire(name, 2 * record.levels.astype(np.int64), np.array(2), str(record.code))
                assert (record.train == train).all(), name
        found.append({name: record.levels for name, record in neurons.items()} | {"head": sums})
    return found


def expected(net, images):
    """What `executions` gives, from the reference."""
    levels, sums = zip(*(reference(net, image) for image in images), strict=True)
    return {name: np.stack([n[name] for n in levels]) for name in levels[0]} | {"head": np.stack(sums)}


def differing(found, wanted):
    """Names of the layers, in the order of the network, whose levels differ."""
    assert found.keys() <= wanted.keys() <= found.keys() | {"stem/image"}
    return [name for name in wanted if name in found and not (found[name] == wanted[name]).all()]


ODD = dict(stem_kernel=5, stem_stride=3, scales=("block2x3", "grid1x3"), group_width=16, input_code="direct")


@pytest.mark.parametrize(
    "code, changes, shape, current_bits",
    [
        ("2x3/1", {"qk_code": "1x2"}, SHAPE, 31),
        pytest.param("2x2", {"qk_code": "2x3/1", "scales": ("block4", "grid1")}, SHAPE, 31, marks=pytest.mark.slow),
        pytest.param("1x4", {}, SHAPE, 31, marks=pytest.mark.slow),
        pytest.param("4x1", {}, SHAPE, 31, marks=pytest.mark.slow),
        pytest.param("1x1", {}, SHAPE, 31, marks=pytest.mark.slow),
        pytest.param("2x2+2,0", {}, SHAPE, 31, marks=pytest.mark.slow),
        pytest.param("2x3/1+1,0", {}, SHAPE, 24, marks=pytest.mark.slow),
        pytest.param("2x2", ODD, (23, 33, 3), 31, marks=pytest.mark.slow),
    ],
)
def test_both_executions_are_the_reference(code, changes, shape, current_bits):
    model = tiny_model(code, **changes)
    net = deploy(model, random_variables(model, shape), shape, current_bits=current_bits)
    images = np.concatenate([random_images(2, shape), np.full((1, *shape), 255, np.uint8)])
    wanted = expected(net, images)
    assert [differing(found, wanted) for found in executions(net, images)] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("signs", ["positive", "one a channel"])
def test_both_executions_are_the_reference_near_the_bound(net, monkeypatch, signs):
    # The bounds hold for weights of these signs as well, and these come near them.
    random, reached = np.random.default_rng(1), []
    monkeypatch.setattr(
        sys.modules[reference.__module__], "inside", lambda name, x: reached.append(np.abs(x).max()) or inside(name, x)
    )

    def signed(path, array):
        if path[-1].key not in ("kernel", "bias"):
            return array
        sign = 1 if signs == "positive" else random.choice([-1, 1], array.shape[-1])
        return (np.abs(np.asarray(array)) * sign).astype(np.int32)

    changed = dataclasses.replace(net, params=jax.tree_util.tree_map_with_path(signed, net.params))
    images = np.concatenate([random_images(3), np.full((1, *SHAPE), 255, np.uint8)])
    wanted = expected(changed, images)
    assert max(reached) > 2**30
    assert [differing(found, wanted) for found in executions(changed, images)] == [[], []]


def transposed_taps(x, size, stride):
    taps = list(views(x, size, stride))
    return [taps[column * size + row] for row in range(size) for column in range(size)]


def doubled(sums, guard=None):
    """A guard bit too few is dropped."""
    return rounded_of_both(sums, None if guard is None else guard - 1)


FAULTS = {  # what both executions share: (where it stands, what is put there, the first layer that shows it)
    "grid groups are blocks": (
        "ge2mst_jax.grouping.attention.partition",
        lambda tokens, scale: partition(tokens, Scale("block", scale.window)),
        "stage_1/block_0/attention/neuron_out",
    ),
    "the last bit of weights is lost": (
        "ge2mst_jax.nn.planes.cut",
        lambda weights, planes, bits: cut(weights & -2, planes, bits),
        "head",  # not one level differs on these images
    ),
    "a guard bit too few is dropped": (
        "ge2mst_jax.nn.planes.Sums.rounded",
        doubled,
        "stage_0/block_0/neuron_1",  # what the stem reaches on these images is 0 or the top level
    ),
    "a depth-wise kernel is transposed": (
        "ge2mst_jax.nn.maps.views",
        transposed_taps,
        "stage_1/block_0/attention/neuron_out",
    ),
    "pixels are halved": (
        "ge2mst_jax.nn.blocks.pixels",
        lambda images: pixels_of_both(images) // 2,
        "stem/image",
    ),
}


@pytest.mark.parametrize(
    "fault", [name if name.startswith("grid") else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_a_fault_that_both_executions_share_is_found(net, monkeypatch, fault):
    place, faulty, layer = FAULTS[fault]
    images = random_images(2)
    wanted = expected(net, images)
    monkeypatch.setattr(place, faulty)
    dense, spiking = executions(net, images)
    assert differing(dense, spiking) == []
    assert differing(dense, wanted)[0] == layer
