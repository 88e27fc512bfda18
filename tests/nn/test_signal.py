"""The wire and the synaptic layers: signals, currents, folded and unfolded synapses, the head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax.nn import Current, Head, Signal, Synapse, Wire, conv2d
from ge2mst_jax.spiking import SpikeCode

CODE = SpikeCode.parse("2x2")
THETA = jnp.float32(0.375)
LEVELS = np.random.default_rng(0).integers(0, 7, (2, 3, 4, 4)).astype(np.float32)


def integers(params, fraction_bits):
    """Folded numbers as the integers of a deployed network, each worth `2^-fraction_bits`."""
    return jax.tree.map(lambda a: np.rint(np.ldexp(np.asarray(a, np.float64), fraction_bits)).astype(np.int32), params)


def wire(execution="training", **changes):
    return Wire(CODE, execution=execution, **changes)


def levels_of(data=LEVELS, threshold=None):
    return Signal(jnp.asarray(data), threshold, CODE, "levels", "sender")


def train_of(data=LEVELS, code=CODE):
    return Signal(code.encode(jnp.asarray(data)), None, code, "train", "sender")


def steps_of(data):
    return Signal(jnp.asarray(data), None, None, "steps", "sender")


def fixed_point(*shape, seed=0):
    return (np.random.default_rng(seed).integers(-64, 65, shape) / 16).astype(np.float32)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["2x2", "1x4", "2x3/1", "4x1", "1x1", "1x8", "2x2+2,0"])
def test_spike_train_integrates_to_what_its_levels_do(code):
    code = SpikeCode.parse(code)
    levels = np.resize(np.array(code.levels, np.float32), (2, 1, 1, 8))
    weights = fixed_point(8, 3)
    expected = np.einsum("bhwi,io->bhwo", levels.astype(np.float64), weights)
    for signal in (Signal(jnp.asarray(levels), None, code, "levels", ""), train_of(levels, code)):
        found = signal.integrate(lambda x: jnp.einsum("bhwi,io->bhwo", x, weights))
        np.testing.assert_array_equal(found, expected)


def test_levels_are_mapped_once_and_trains_a_step_at_a_time():
    seen = []

    def linear_map(x):
        seen.append(x.shape)
        return x

    levels_of().integrate(linear_map)
    assert seen == [LEVELS.shape]
    seen.clear()
    train_of().integrate(linear_map)
    assert set(seen) == {LEVELS.shape}


def test_steps_integrate_to_a_current_a_step():
    steps = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 1, 1, 4)
    found = steps_of(steps).integrate(lambda x: x[..., :1] + 10 * x[..., 1:2])
    np.testing.assert_array_equal(found, steps[..., :1] + 10 * steps[..., 1:2])


def test_planes_merge_time_into_the_batch():
    steps = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 1, 1, 4)
    np.testing.assert_array_equal(steps_of(steps).planes, steps.reshape(6, 1, 1, 4))
    np.testing.assert_array_equal(levels_of().planes, LEVELS)


def test_spikes_are_counted_over_all_steps_or_at_each():
    steps = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 1, 1, 4) % 2
    np.testing.assert_array_equal(steps_of(steps).spikes, steps.reshape(6, 1, 1, 4))
    sent = train_of()
    counted = np.asarray(sent.data, int).sum(0)
    assert counted.max() > 1
    np.testing.assert_array_equal(sent.spikes, counted)
    np.testing.assert_array_equal(levels_of().spikes, counted)


def test_weights_are_times_the_value_of_a_level_until_that_is_folded():
    kernel = jnp.array([[1.0, -2.0]])
    np.testing.assert_array_equal(levels_of(threshold=THETA).weigh(kernel), [[0.375, -0.75]])
    assert levels_of().weigh(kernel) is kernel


def test_image_shape_leaves_out_time_and_batch():
    assert levels_of().image_shape == train_of().image_shape == (3, 4, 4)


# --- currents ---------------------------------------------------------------------------------------------------------


def test_sums_of_currents_name_all_their_parts_in_order():
    made = (
        Current(jnp.ones((1, 2)), ("a", "b")) + Current(jnp.full((1, 2), 2.0), ("c",)) + Current(jnp.ones((1, 2)), ())
    )
    assert made.parts == ("a", "b", "c")
    assert not made.steps
    np.testing.assert_array_equal(made.value, [[4.0, 4.0]])


def test_current_of_one_pass_joins_every_step_of_another():
    once = Current(jnp.array([[1.0], [2.0]]), ("a",))
    steps = Current(jnp.array([[[10.0], [20.0]], [[30.0], [40.0]], [[50.0], [60.0]]]), ("b",), True)
    expected = [[[11.0], [22.0]], [[31.0], [42.0]], [[51.0], [62.0]]]
    for made, parts in ((once + steps, ("a", "b")), (steps + once, ("b", "a"))):
        assert made.steps
        assert made.parts == parts
        np.testing.assert_array_equal(made.value, expected)
    np.testing.assert_array_equal((steps + steps).value, 2 * steps.value)


# --- synapses ---------------------------------------------------------------------------------------------------------


def normalised(features, seed=5):
    """BatchNorm's variables, gains of both signs, and what they do to a sum."""
    random = np.random.default_rng(seed)
    params = {
        "scale": np.float32(random.choice([-1, 1], features) * random.uniform(0.5, 1.5, features)),
        "bias": np.float32(random.normal(size=features)),
    }
    stats = {"mean": np.float32(random.normal(size=features)), "var": np.float32(random.uniform(0.5, 2, features))}

    def apply(x):
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]

    return params, stats, apply


GROUPS = [(None, 4), (2, 2), (1, 1)]


@pytest.mark.parametrize(("group_width", "fan_in"), GROUPS)
def test_training_synapse_is_the_normalised_convolution_of_levels(group_width, fan_in):
    """The value of a level is no factor: BatchNorm divides by the scale of what it gets."""
    kernel = fixed_point(3, 3, fan_in, 4)
    norm, stats, normalise = normalised(4)
    variables = {"params": {"kernel": kernel, "norm": norm}, "batch_stats": {"norm": stats}}
    layer = Synapse(wire(), 4, 3, 2, group_width)
    current, _ = layer.apply(variables, levels_of(threshold=THETA), False)
    expected = normalise(np.asarray(conv2d(LEVELS, kernel, 2), np.float64))
    np.testing.assert_allclose(current.value, expected, rtol=1e-5, atol=1e-5)
    assert current.value.dtype == jnp.float32


def test_training_synapse_normalises_over_the_batch_and_moves_its_statistics():
    layer = Synapse(wire(), 4, 1)
    kernel = np.eye(4, dtype=np.float32)[None, None]
    variables = {
        "params": {"kernel": kernel, "norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}},
        "batch_stats": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}},
    }
    (current, _), updates = layer.apply(variables, levels_of(), True, mutable=["batch_stats"])
    mean, var = LEVELS.mean((0, 1, 2)), LEVELS.var((0, 1, 2))
    np.testing.assert_allclose(current.value, (LEVELS - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["norm"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["norm"]["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_training_synapse_keeps_the_steps_of_spikes_that_have_some():
    steps = np.float32(np.random.default_rng(1).random((3, 2, 3, 4, 4)) < 0.5)
    norm, stats, normalise = normalised(4)
    kernel = fixed_point(1, 1, 4, 4)
    variables = {"params": {"kernel": kernel, "norm": norm}, "batch_stats": {"norm": stats}}
    current, _ = Synapse(wire(neuron="lif"), 4).apply(variables, steps_of(steps), False)
    assert current.steps
    np.testing.assert_allclose(current.value, normalise(steps @ kernel[0, 0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("group_width", "fan_in"), GROUPS)
def test_deployed_synapse_is_the_convolution_of_levels_and_a_bias_in_both_executions(group_width, fan_in):
    folded = {"kernel": fixed_point(3, 3, fan_in, 4), "bias": fixed_point(4, seed=1)}
    params = integers(folded, 4)
    expected = 16 * (np.asarray(conv2d(LEVELS, folded["kernel"], 2), np.float64) + folded["bias"])
    for execution, signal in (("dense", levels_of()), ("spiking", train_of())):
        current, _ = Synapse(wire(execution), 4, 3, 2, group_width).apply({"params": params}, signal, False)
        assert current.value.dtype == jnp.int32
        np.testing.assert_array_equal(current.value, expected)


def test_folded_synapse_is_the_training_synapse():
    """With `unit`, the folded numbers count in units: times the unit they give the training current back."""
    kernel, unit = fixed_point(3, 3, 4, 4), jnp.array([0.5, 2.0, 0.25, 3.0])
    norm, stats, _ = normalised(4)
    variables = {"params": {"kernel": kernel, "norm": norm}, "batch_stats": {"norm": stats}}
    layer, signal = Synapse(wire(), 4, 3), levels_of(threshold=THETA)
    trained, _ = layer.apply(variables, signal, False)
    for scale in (None, unit):
        _, made = layer.apply(variables, signal, False, scale, mutable=["deployed"])
        assert set(made["deployed"]) == {"kernel", "bias"}
        params = integers(made["deployed"], 20)
        folded, _ = Synapse(wire("dense"), 4, 3).apply({"params": params}, levels_of(), False)
        value = folded.value / 2**20
        value = value if scale is None else value * scale[None, None, None]
        np.testing.assert_allclose(value, trained.value, rtol=1e-5, atol=1e-4)


def test_training_writes_nothing_folded_unless_asked():
    layer = Synapse(wire(), 4)
    variables = layer.init(jnp.zeros(2, jnp.uint32), levels_of(), False)
    assert set(variables) == {"params", "batch_stats"}


def test_synapse_leaves_what_its_counts_need():
    params = integers({"kernel": fixed_point(3, 3, 2, 6), "bias": fixed_point(6)}, 4)
    current, aux = Synapse(wire("dense"), 6, 3, 2, 2, role="stem").apply({"params": params}, levels_of(), False)
    (name,) = aux
    record = aux[name]
    assert current.parts == (name,)
    assert (record.role, record.source, record.in_shape, record.out_shape) == ("stem", "sender", (3, 4, 4), (2, 2, 6))
    assert (record.kernel, record.stride, record.groups, record.max_level) == (3, 2, 2, 6)


@pytest.mark.parametrize(
    ("group_width", "features", "message"),
    [
        (3, 4, "groups of 3 channels do not divide 4 input and 4 output channels"),
        (2, 3, "groups of 2 channels do not divide 4 input and 3 output channels"),
        (1, 6, "groups of 1 channels do not divide 4 input and 6 output channels"),
        (8, 8, "groups of 8 channels do not divide 4 input and 8 output channels"),
    ],
)
def test_groups_that_do_not_divide_the_channels_are_refused(group_width, features, message):
    with pytest.raises(ValueError, match=message):
        Synapse(wire(), features, 3, 1, group_width).init(jnp.zeros(2, jnp.uint32), levels_of(), False)


# --- head -------------------------------------------------------------------------------------------------------------

HEAD = {"kernel": fixed_point(4, 5, seed=7), "bias": fixed_point(5, seed=8)}
COUNTS = LEVELS.astype(np.float64).sum((1, 2))  # [B, C]


def test_training_head_is_the_mean_of_values_through_the_classifier():
    logits, _ = Head(wire(), 5).apply({"params": HEAD}, levels_of(threshold=THETA))
    expected = (COUNTS / 12 * 0.375) @ HEAD["kernel"] + HEAD["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_deployed_head_is_one_linear_map_of_spike_counts_in_both_executions():
    for execution, signal in (("dense", levels_of()), ("spiking", train_of())):
        sums, _ = Head(wire(execution), 5).apply({"params": integers(HEAD, 4)}, signal)
        assert sums.dtype == jnp.int32
        np.testing.assert_array_equal(sums, 16 * (COUNTS @ HEAD["kernel"] + HEAD["bias"]))


def test_folded_head_divided_by_its_tokens_is_the_training_head():
    signal = levels_of(threshold=THETA)
    (logits, _), made = Head(wire(), 5).apply({"params": HEAD}, signal, mutable=["deployed"])
    np.testing.assert_array_equal(made["deployed"]["bias"], 12 * HEAD["bias"])
    sums, _ = Head(wire("dense"), 5).apply({"params": integers(made["deployed"], 20)}, levels_of())
    np.testing.assert_allclose(sums / 2**20 / 12, logits, rtol=1e-5)


def test_head_averages_neurons_that_fire_at_every_step_over_their_steps():
    steps = np.float32(np.random.default_rng(1).random((3, 2, 3, 4, 4)) < 0.5)
    logits, _ = Head(wire(neuron="lif"), 5).apply({"params": HEAD}, steps_of(steps))
    expected = steps.astype(np.float64).sum((2, 3)).mean(0) / 12 @ HEAD["kernel"] + HEAD["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_head_leaves_one_output_position_of_its_classes():
    _, aux = Head(wire("dense"), 5).apply({"params": integers(HEAD, 4)}, levels_of())
    (record,) = aux.values()
    assert (record.role, record.in_shape, record.out_shape, record.groups) == ("head", (3, 4, 4), (1, 1, 5), 1)
