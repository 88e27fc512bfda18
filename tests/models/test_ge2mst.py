"""The network: every neuron trains, both deployed executions are a plain numpy network, whatever runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax.convert import deploy
from ge2mst_jax.nn import NEURONS, AttentionRecord, NeuronRecord
from ge2mst_jax.spiking import SpikeCode

IMAGES = random_images(8)
#: Tests of the training network compare whole programs, not bits: those may compile fast and run slowly.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def small_model(code="1x2", **changes):
    """Stem, a strided synapse and one attention block with both orders of products (4 and 16 tokens, width 8)."""
    fields = dict(stages=(("conv", 8, 0), ("attention", 16, 1)), scales=("block2", "grid4"))
    return tiny_model(code, **(fields | changes))


@pytest.fixture(scope="module")
def net():
    model = small_model()
    return deploy(model, random_variables(model), SHAPE)


@pytest.fixture(scope="module")
def results(net):
    """Everything that each execution computed for `IMAGES`, compiled, on one device."""
    return {execution: everything(*net(IMAGES, execution, "levels")) for execution in ("dense", "spiking")}


def everything(logits, aux):
    """All arrays of a forward pass by name, images along the first axis."""
    found = {"logits": np.asarray(logits)}
    for name, record in aux.items():
        if isinstance(record, AttentionRecord):
            found[f"{name}/synops"] = np.asarray(record.synops)
        if isinstance(record, NeuronRecord):
            for key in ("spikes", "activity", "levels", "train", "current"):
                if getattr(record, key) is not None:
                    array = np.asarray(getattr(record, key))
                    found[f"{name}/{key}"] = array.swapaxes(0, 1) if array.ndim == 5 else array  # [T, B, ...]
    return found


def assert_all_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def rows(arrays, index):
    return {name: array[index] for name, array in arrays.items()}


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "neuron", [n if n in ("expg", "plif") else pytest.param(n, marks=pytest.mark.slow) for n in NEURONS]
)
def test_every_neuron_has_a_forward_pass_and_finite_gradients_for_every_parameter(neuron):
    model = tiny_model("2x1", neuron=neuron, stages=(("attention", 16, 1),))
    variables, images = random_variables(model, (4, 4, 2)), random_images(4, (4, 4, 2))
    towards = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)

    def loss(params):
        (logits, aux), updates = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(towards * logits), (logits, aux, updates)

    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
    gradients, (logits, aux, updates) = step(variables["params"])
    assert np.isfinite(logits).all()
    assert len(np.unique(logits)) == 20
    for path, gradient in traverse_util.flatten_dict(gradients, sep="/").items():
        assert np.isfinite(gradient).all(), path
        # Thresholds and leaks each on their own: one a layer, one a head.
        assert np.all(gradient != 0) if path.endswith(("raw", "raw_leak")) else np.any(gradient != 0), path
    thresholds = [path for path in traverse_util.flatten_dict(gradients) if path[-1].startswith("raw")]
    assert len(thresholds) == {"expg": 9, "qcfs": 9, "plif": 9}.get(neuron, 0)
    before = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    for path, after in traverse_util.flatten_dict(updates["batch_stats"], sep="/").items():
        assert np.isfinite(after).all() and np.all(after != before[path]), path
    spikes = [record.spikes.sum() for record in aux.values() if isinstance(record, NeuronRecord)]
    assert len(spikes) == 10
    # What relu sends are real numbers, no spikes: only the image has some.
    assert all((count > 0) == (neuron != "relu" or i == 0) for i, count in enumerate(spikes))


@pytest.mark.parametrize("neuron", ["expg", "lif"])
def test_evaluated_image_does_not_depend_on_its_batch_mates(neuron):
    model = tiny_model("2x1", neuron=neuron, stages=(("attention", 16, 1),), capture="levels")
    variables, images = random_variables(model, (4, 4, 2)), random_images(5, (4, 4, 2))
    apply = jax.jit(lambda x: model.apply(variables, x), compiler_options=FAST_COMPILE)
    together = everything(*apply(images))
    order = np.array([3, 0, 4, 1, 2])
    for found, index in ((everything(*apply(images[order])), order), (everything(*apply(images[2:3])), [2])):
        for name, array in rows(together, index).items():
            # Currents are float sums, whose order may follow the batch; what they are compared to is not close to any.
            exact = not name.endswith(("current", "logits"))
            np.testing.assert_allclose(found[name], array, rtol=0, atol=0 if exact else 2e-5, err_msg=name)


def test_bfloat16_operands_keep_currents_and_logits_float32():
    model = tiny_model("2x1", stages=(("attention", 16, 1),), dtype="bfloat16", capture="levels")
    images = jax.ShapeDtypeStruct((2, 4, 4, 2), jnp.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits, aux = jax.eval_shape(model.apply, variables, images)
    assert logits.dtype == jnp.float32
    assert all(array.dtype == jnp.float32 for array in jax.tree.leaves(variables))
    records = {name: r for name, r in aux.items() if isinstance(r, NeuronRecord) and r.parts}
    assert len(records) == 9
    for name, record in records.items():
        assert record.current.dtype == jnp.float32, name
        assert record.levels.dtype == jnp.bfloat16, name


# --- aux --------------------------------------------------------------------------------------------------------------


def test_aux_is_in_the_order_of_the_network_and_survives_jit(net):
    _, aux = net(IMAGES, "dense", "levels")
    attention, feed_forward = "stage_1/block_0/attention", "stage_1/block_0/feed_forward"
    expected = ["stem/synapse", "stem/image", "stage_1/down/neuron", "stage_1/down/synapse", f"{attention}/neuron"]
    expected += [f"{attention}/{name}" for key in "qkv" for name in (key, f"neuron_{key}")]
    expected += [f"{attention}/{name}" for name in ("attention", "local", "neuron_out", "out")]
    expected += [f"{feed_forward}/{name}" for key in ("up", "group", "down") for name in (f"neuron_{key}", key)]
    assert list(aux) == [*expected, "neuron_head", "head"]


def test_capture_decides_what_aux_holds(net):
    for execution in ("dense", "spiking"):
        apply = net.executed(execution).apply
        _, aux = jax.eval_shape(apply, {"params": net.params}, IMAGES)
        counts = [r for r in aux.values() if isinstance(r, NeuronRecord)]
        assert len(counts) == 11
        assert all(r.levels is r.train is r.current is None for r in counts)
        for name, record in net(IMAGES, execution, "levels")[1].items():
            if not isinstance(record, NeuronRecord):
                continue
            assert record.levels.shape == (8, *record.shape), name
            assert record.spikes.dtype == jnp.int32
            np.testing.assert_array_equal(
                record.spikes, np.array(record.code.spike_counts)[np.asarray(record.levels, int)].sum(-1), name
            )
            if execution == "spiking":
                assert record.train.dtype == jnp.bool_
                np.testing.assert_array_equal(record.code.decode(record.train), record.levels, name)
            else:
                assert record.train is None


# --- the deployed network against numpy -------------------------------------------------------------------------------


def convolve(x, kernel, stride):
    """Grouped convolution, tap by tap, in float64."""
    size, _, fan_in, features = kernel.shape
    groups, pad = x.shape[-1] // fan_in, size // 2
    rows_, columns = ((side + 2 * pad - size) // stride + 1 for side in x.shape[1:3])
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = np.zeros((len(x), rows_, columns, features))
    for g in range(groups):
        inputs, outputs = (
            slice(g * fan_in, (g + 1) * fan_in),
            slice(g * features // groups, (g + 1) * features // groups),
        )
        for dy in range(size):
            for dx in range(size):
                window = padded[
                    :, dy : dy + (rows_ - 1) * stride + 1 : stride, dx : dx + (columns - 1) * stride + 1 : stride
                ]
                out[..., outputs] += window[..., inputs] @ kernel[dy, dx, :, outputs]
    return out


def attend(q, k, v, head_width, same_group):
    """`Σ_j (q_i·k_j) v_j` over the tokens of one group; `same_group` is one `[N, N]` mask a head."""
    shape = v.shape
    q, k, v = (x.reshape(shape[0], -1, shape[-1] // head_width, head_width) for x in (q, k, v))
    counts = np.einsum("bnhd,bmhd->bhnm", q, k) * np.stack(same_group)
    return np.einsum("bhnm,bmhd->bnhd", counts, v).reshape(shape)


def blocks_of(height, width, window):
    y, x = np.divmod(np.arange(height * width), width)
    group = (y // window) * width + x // window
    return group[:, None] == group


def grids_of(height, width, window):
    y, x = np.divmod(np.arange(height * width), width)
    group = (y % (height // window)) * width + x % (width // window)
    return group[:, None] == group


def reference(params, images, code):
    """The default tiny network: currents by neuron, and the head's sums, from its folded numbers alone."""
    params = {path: np.asarray(a, np.float64) for path, a in traverse_util.flatten_dict(params, sep="/").items()}
    currents = {}

    def fire(name, current, most=code.max_level):
        currents[name] = current
        theta = params[f"{name}/threshold"]
        return np.clip(np.floor((current + theta / 2) / theta), 0, most)

    def synapse(name, x, stride=1):
        whole = convolve(x, params[f"{name}/kernel"], stride) / 2.0 ** params[f"{name}/guard"]
        return np.floor(whole + 0.5) + params[f"{name}/bias"]

    stream = synapse("stem/synapse", images.astype(np.float64))
    block = "stage_0/block_0"
    inner = synapse(f"{block}/conv_0", fire(f"{block}/neuron_0", stream))
    stream = stream + synapse(f"{block}/conv_1", fire(f"{block}/neuron_1", inner))
    stream = synapse("stage_1/down/synapse", fire("stage_1/down/neuron", stream), 2)
    block = "stage_1/block_0/attention"
    x = fire(f"{block}/neuron", stream)
    tops = {"q": 3, "k": 3, "v": 6}
    q, k, v = (fire(f"{block}/neuron_{key}", synapse(f"{block}/{key}", x), top) for key, top in tops.items())
    counts = attend(q, k, v, 8, [blocks_of(4, 4, 2), grids_of(4, 4, 2)])
    mixed = 2.0 ** params[f"{block}/attention/shift"] * counts + synapse(f"{block}/local", v)
    stream = stream + synapse(f"{block}/out", fire(f"{block}/neuron_out", mixed))
    block = "stage_1/block_0/feed_forward"
    up = synapse(f"{block}/up", fire(f"{block}/neuron_up", stream))
    grouped = up + synapse(f"{block}/group", fire(f"{block}/neuron_group", up))
    stream = stream + synapse(f"{block}/down", fire(f"{block}/neuron_down", grouped))
    n = fire("neuron_head", stream)
    return currents, n.sum((1, 2)) @ params["head/kernel"] + params["head/bias"]


def test_deployed_network_is_the_one_that_the_design_describes():
    model = tiny_model("2x2", qk_code="1x2")
    net = deploy(model, random_variables(model), SHAPE)
    logits, aux = net(IMAGES, "dense", "levels")
    currents, sums = reference(net.params, IMAGES, SpikeCode.parse("2x2"))
    neurons = {name: record for name, record in aux.items() if isinstance(record, NeuronRecord) and record.parts}
    assert currents.keys() == neurons.keys()
    for name, record in neurons.items():
        np.testing.assert_array_equal(record.current, currents[name], name)
        assert 0.02 < np.mean(np.asarray(record.levels) > 0) < 0.98, name
    found = jax.jit(net.executed("dense").apply)({"params": net.params}, IMAGES)[0]
    np.testing.assert_array_equal(found, sums)
    fraction_bits = next(f.fraction_bits for f in net.formats if "head" in f.parts)
    np.testing.assert_allclose(logits, sums / 16 / 2.0**fraction_bits, rtol=2e-7)


# --- whatever runs it -------------------------------------------------------------------------------------------------


def test_executions_agree_under_jit(results):
    dense, spiking = results["dense"], results["spiking"]
    assert {name for name in spiking if name not in dense} == {
        name.replace("levels", "train") for name in dense if name.endswith("levels")
    }
    assert_all_equal({name: spiking[name] for name in dense}, dense)


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_image_does_not_depend_on_its_batch_mates(net, results, execution):
    expected = results[execution]
    assert len(np.unique(expected["logits"], axis=0)) == 8
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    assert_all_equal(everything(*net(IMAGES[order], execution, "levels")), rows(expected, order))
    mates = IMAGES.copy()
    mates[1:] = random_images(7, seed=1)
    assert_all_equal(rows(everything(*net(mates, execution, "levels")), [0]), rows(expected, [0]))
    assert_all_equal(everything(*net(IMAGES[3:4], execution, "levels")), rows(expected, [3]))


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_executions_are_equal_without_jit(net, results, execution):
    with jax.disable_jit():
        found = everything(*net(IMAGES[:2], execution, "levels"))
    assert_all_equal(found, rows(results[execution], slice(2)))


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_eight_devices_are_equal_to_one(net, results, execution):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    model = net.executed(execution, "levels")
    apply = jax.jit(
        lambda params, images: model.apply({"params": params}, images),
        in_shardings=(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))),
    )
    sums, aux = apply(net.params, IMAGES)
    assert len(sums.sharding.device_set) == 8
    assert [shard.data.shape for shard in aux["neuron_head"].levels.addressable_shards] == [(1, 4, 4, 16)] * 8
    assert_all_equal(everything(net.logits(sums), aux), results[execution])
