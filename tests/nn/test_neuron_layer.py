"""Neuron layers of every kind, what they leave in `aux`, and the stem that presents the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax.nn import NEURONS, Current, Neuron, Stem, Wire, pixels
from ge2mst_jax.spiking import LIFSettings, SpikeCode

CODE = SpikeCode.parse("2x2")  # weights 2 1 2 1
BINARY = SpikeCode.parse("1x1")
SPIKES = np.array([0, 1, 1, 2, 3, 3, 4])  # of the levels 0..6
VALUES = np.array([-1.0, 0.24, 0.25, 0.8, 1.74, 1.75, 2.9, 99.0], np.float32)
LEVELS = np.array([0, 0, 1, 2, 3, 4, 6, 6])  # of VALUES where θ = 0.5: a tie rounds up, the top is 6


def raw_of(theta):
    return jnp.asarray(np.log(np.expm1(theta)), jnp.float32)


def current(values=VALUES, steps=False):
    """One image (or `[T, 1]` of them) of one position."""
    values = np.asarray(values, np.float32)
    return Current(jnp.asarray(values.reshape(*values.shape[:-1], 1, 1, 1, values.shape[-1])), ("synapse",), steps)


def fire(neuron, made, params=None, wire=(), **fields):
    """The signal and the record of one layer."""
    agreed = Wire(**{"code": CODE, "neuron": neuron, "capture": "levels", **dict(wire)})
    signal, aux = jax.jit(Neuron(agreed, **fields).apply)({"params": params or {}}, made)
    (record,) = aux.values()
    return signal, record


def test_every_neuron_has_a_name_and_a_word():
    assert set(NEURONS) == {"expg", "qcfs", "sfa", "relu", "if", "lif", "plif"}
    assert all(NEURONS.values())


# --- training ---------------------------------------------------------------------------------------------------------


def test_expg_sends_levels_of_its_learned_threshold():
    signal, record = fire("expg", current(), {"raw": jnp.float32(raw_of(0.5))})
    np.testing.assert_array_equal(signal.data[0, 0, 0], LEVELS)
    np.testing.assert_allclose(signal.threshold, 0.5, rtol=1e-6)
    assert (signal.form, signal.code) == ("levels", CODE)
    np.testing.assert_array_equal(record.levels, signal.data)


def test_expg_of_a_code_with_gaps_sends_levels_that_it_can_reach():
    values = [3.0, 3.5, 4.0, 9.0]
    signal, _ = fire("expg", current(values), {"raw": raw_of(0.5)}, {"code": SpikeCode.parse("2x3/1")})
    np.testing.assert_array_equal(signal.data[0, 0, 0], [6, 6, 8, 8])


def test_first_threshold_lets_the_top_level_stand_for_two_deviations():
    for code, theta in (("2x2", 2 / 6), ("4x1", 2 / 4), ("1x1", 2.0), ("1x8", 0.25)):
        variables = Neuron(Wire(SpikeCode.parse(code))).init(jax.random.key(0), current())
        np.testing.assert_allclose(jax.nn.softplus(variables["params"]["raw"]), theta, rtol=1e-5)
        assert variables["params"]["raw"].shape == ()


def test_heads_have_thresholds_of_their_own_over_contiguous_channels():
    params = {"raw": jnp.stack([raw_of(0.5), raw_of(2.0)])}
    values = [0.9, 1.1, 0.2, 0.3, 0.9, 1.1, 0.2, 0.3]
    signal, _ = fire("expg", current(values), params, code=BINARY, heads=2)
    np.testing.assert_array_equal(signal.data[0, 0, 0], [1, 1, 0, 1, 0, 1, 0, 0])
    np.testing.assert_allclose(signal.threshold, [0.5, 2.0], rtol=1e-6)


def test_layer_may_have_another_code_than_its_wire():
    signal, record = fire("expg", current(), {"raw": raw_of(0.5)}, code=BINARY)
    np.testing.assert_array_equal(signal.data[0, 0, 0], np.minimum(LEVELS, 1))
    assert signal.code == record.code == BINARY


def test_qcfs_sends_the_nearest_level_of_a_rate_code():
    signal, record = fire("qcfs", current(), {"raw": raw_of(0.5)}, {"code": SpikeCode.parse("4x1")})
    np.testing.assert_array_equal(signal.data[0, 0, 0], np.minimum(LEVELS, 4))
    np.testing.assert_allclose(signal.threshold, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(record.spikes[0, 0, 0], np.minimum(LEVELS, 4).sum())


def test_sfa_rounds_its_current_and_learns_no_threshold():
    made = current([-1.0, 0.4, 0.6, 2.4, 3.7, 9.0])
    wire = Wire(SpikeCode.parse("4x1"), "sfa")
    assert "params" not in Neuron(wire).init(jax.random.key(0), made)
    signal, _ = fire("sfa", made, wire={"code": wire.code})
    np.testing.assert_array_equal(signal.data[0, 0, 0], [0, 0, 1, 2, 4, 4])
    assert float(signal.threshold) == 0.25


def test_relu_sends_its_positive_currents_as_real_numbers():
    signal, record = fire("relu", current([-1.5, 0.0, 0.75, 9.0]))
    np.testing.assert_array_equal(signal.data[0, 0, 0], [0, 0, 0.75, 9.0])
    assert (signal.code, signal.threshold, signal.form) == (None, None, "levels")
    np.testing.assert_array_equal(record.spikes, [[[0]]])  # no number of them is a spike


@pytest.mark.parametrize("code", ["2x2", "2x3/1"])
def test_gradient_of_expg_passes_inside_and_moves_the_threshold_where_saturated(code):
    """Of the value `θn` that is received: `∂/∂I` is 1 inside [0, θL] and 0 outside, `∂/∂θ` is L above and 0 below."""
    code, towards = SpikeCode.parse(code), np.array([1.0, 2.0, -3.0, 4.0, 5.0, -7.0], np.float32)
    value = jnp.array([-0.4, 0.3, 1.1, 2.6, 4.5, 99.0]).reshape(1, 1, 1, 6)
    inside, above = np.array([0, 1, 1, 1, 0, 0]), np.array([0, 0, 0, 0, 1, 1])

    def received(value, raw):
        signal, _ = fire("expg", Current(value, ("a",)), {"raw": raw}, {"code": code})
        return jnp.sum(signal.integrate(lambda n: n * signal.weigh(jnp.asarray(towards))[None, None, None]))

    to_value, to_raw = jax.grad(received, (0, 1))(value, raw_of(0.5))
    np.testing.assert_allclose(to_value[0, 0, 0], towards * inside, rtol=1e-5)
    slope = 1 - np.exp(-0.5)  # of softplus at θ = 0.5
    np.testing.assert_allclose(to_raw, np.sum(towards * above) * code.max_level * slope, rtol=1e-5)


def slow_lif(currents, leak, gain, reset="hard", threshold=1.0):
    """`V ← leak·V + gain·x`, a spike at `θ`, then `V ← V - θ` or `V ← 0`, step by step."""
    membrane, spikes = np.zeros(currents.shape[1:]), []
    for arriving in currents:
        membrane = leak * membrane + gain * arriving
        spikes.append(membrane >= threshold)
        membrane = membrane - threshold * spikes[-1] if reset == "soft" else membrane * ~spikes[-1]
    return np.array(spikes)


STEPPED = [("if", {}, 1.0, 1.0), ("lif", {}, 0.5, 0.5), ("plif", {"raw_leak": np.float32(np.log(3.0))}, 0.25, 0.75)]


@pytest.mark.parametrize("settings", [{}, {"reset": "soft"}, {"threshold": 0.5}], ids=str)
@pytest.mark.parametrize(("neuron", "params", "leak", "gain"), STEPPED)
def test_stepped_neurons_fire_at_every_step(neuron, params, leak, gain, settings):
    currents = np.random.default_rng(0).uniform(0, 3, (4, 8))
    signal, record = fire(neuron, current(currents, steps=True), params, {"lif": LIFSettings(**settings)})
    expected = slow_lif(np.float32(currents), leak, gain, **settings)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(signal.data[:, 0, 0, 0], expected)
    assert (signal.form, signal.code, signal.threshold) == ("steps", None, None)
    np.testing.assert_array_equal(record.train[:, 0, 0, 0], expected)
    assert record.train.dtype == jnp.bool_
    np.testing.assert_array_equal(record.spikes, [[[expected.sum()]]])


@pytest.mark.parametrize(("neuron", "params", "leak", "gain"), STEPPED)
def test_current_without_steps_arrives_at_every_step(neuron, params, leak, gain):
    signal, _ = fire(neuron, current(), params, {"code": SpikeCode.parse("2x3")})
    expected = slow_lif(np.broadcast_to(VALUES, (6, 8)), leak, gain)
    np.testing.assert_array_equal(signal.data[:, 0, 0, 0], expected)


@pytest.mark.parametrize(("neuron", "params", "leak", "gain"), STEPPED)
def test_gradients_reach_the_current_of_every_step(neuron, params, leak, gain):
    made = current(np.full((3, 2), 0.9), steps=True)

    def spikes(value):
        return jnp.sum(fire(neuron, made.replace(value=value), params, {"code": SpikeCode.parse("3x1")})[0].data)

    assert (np.asarray(jax.grad(spikes)(made.value)) > 0).all()


def test_settings_reach_the_neuron_and_its_gradient():
    """One step: `V = x/τ`, so a spike's gradient is the surrogate at `x/τ - θ`, times `1/τ`."""

    def gradient(**settings):
        wire, made = {"code": BINARY, "lif": LIFSettings(**settings)}, current([1.5])
        return jax.grad(lambda x: jnp.sum(fire("lif", made.replace(value=x), wire=wire)[0].data))(made.value).item()

    before = dict(reset="soft", surrogate="triangle")
    np.testing.assert_allclose(gradient(**before), 0.75 / 2)  # V = 0.75, θ = 1
    np.testing.assert_allclose(gradient(**before, width=2.0), (1 - 0.125) / 2 / 2)
    np.testing.assert_allclose(gradient(**before, tau=3.0, threshold=0.75), 0.75 / 3, rtol=1e-6)
    # SpikingJelly's ATan, α/2 / (1 + (π/2·αx)²), of α = 2, and its Sigmoid, α·σ(αx)·(1 - σ(αx)), of α = 4.
    np.testing.assert_allclose(gradient(), 0.5 / (1 + (np.pi * 0.25) ** 2), rtol=1e-6)
    s = 1 / (1 + np.exp(4 * 0.25))
    np.testing.assert_allclose(gradient(surrogate="sigmoid"), 0.5 * 4 * s * (1 - s), rtol=1e-6)


@pytest.mark.parametrize("tau", [1.25, 2.0, 4.0])
def test_plif_starts_from_the_time_constant_of_its_settings(tau):
    layer = Neuron(Wire(CODE, "plif", lif=LIFSettings(tau=tau)))
    raw = layer.init(jax.random.key(0), current())["params"]["raw_leak"]
    np.testing.assert_allclose(jax.nn.sigmoid(raw), 1 / tau, rtol=1e-6)


# --- rate-coded -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["4x1", "1x2"])
def test_constant_currents_fire_the_twins_level_in_as_many_steps_as_there_are_levels(code):
    """Off the ties, where a sum over steps may round to either side; each head has a threshold of its own."""
    code = SpikeCode.parse(code)
    top = code.max_level
    made = current(np.tile((np.arange(-8, 8 * top + 8) + 0.3) / 16, 2))
    params, wire = {"raw": jnp.stack([raw_of(0.5), raw_of(0.25)])}, {"code": code}
    twin, _ = fire("qcfs", made, params, wire, heads=2)
    signal, record = fire("qcfs", made, params, wire | {"rate_steps": top}, heads=2)
    assert set(np.unique(signal.data)) == {0, 1} and set(np.unique(twin.data)) == set(range(top + 1))
    np.testing.assert_array_equal(signal.data.sum(0), twin.data)
    np.testing.assert_array_equal(record.spikes, jnp.sum(twin.data, -1))
    # A spike stands for all levels of the code, and so does its value.
    assert (signal.form, signal.code, signal.worth, record.steps) == ("steps", None, top, top)
    np.testing.assert_allclose(signal.threshold, top * twin.threshold, rtol=1e-6)


def test_rate_coded_neuron_is_charged_to_half_and_keeps_what_is_above_its_threshold():
    """λ = 4·0.5 = 2, from V = 1 on, by hand; more steps than the code has levels."""
    currents = [[0.8, 2.6, -1.0], [0.8, 2.6, 3.5], [0.8, 0.0, 0.8], [0.8, 0.0, 0.0], [0.8, -4.0, 0.0]]
    wire = {"code": SpikeCode.parse("4x1"), "rate_steps": 5}
    signal, record = fire("qcfs", current(currents, steps=True), {"raw": raw_of(0.5)}, wire)
    # V: 1.8, 2.6→0.6, 1.4, 2.2→0.2, 1.0;  3.6→1.6, 4.2→2.2, 2.2→0.2, 0.2, -3.8;  0, 3.5→1.5, 2.3→0.3, 0.3, 0.3.
    np.testing.assert_array_equal(signal.data[:, 0, 0, 0].T, [[0, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(record.spikes, [[[7]]])
    assert float(record.activity[0]) == 7


# --- what it leaves in aux --------------------------------------------------------------------------------------------


def test_record_counts_spikes_of_each_image_and_position_over_channels_and_steps():
    levels = np.random.default_rng(0).integers(0, 7, (2, 3, 2, 5))
    made = Current(jnp.asarray(levels, jnp.float32) * 0.5, ("a", "b"))
    _, record = fire("expg", made, {"raw": raw_of(0.5)})
    np.testing.assert_array_equal(record.spikes, SPIKES[levels].sum(-1))
    assert record.spikes.dtype == jnp.int32
    np.testing.assert_array_equal(record.activity, SPIKES[levels].sum((1, 2, 3)))
    assert (record.code, record.shape, record.parts) == (CODE, (3, 2, 5), ("a", "b"))


def test_capture_of_counts_holds_no_levels_and_capture_of_levels_all_of_them():
    for execution, params in (("training", {"raw": raw_of(0.5)}), ("dense", {"threshold": jnp.float32(0.5)})):
        _, record = fire("expg", current(), params, {"execution": execution, "capture": "counts"})
        assert (record.levels, record.train, record.current) == (None, None, None)
        _, record = fire("expg", current(), params, {"execution": execution})
        np.testing.assert_array_equal(record.levels[0, 0, 0], LEVELS)
        np.testing.assert_array_equal(record.current[0, 0, 0], VALUES)
        assert record.train is None
    _, record = fire("expg", current(), {"threshold": jnp.float32(0.5)}, {"execution": "spiking"})
    np.testing.assert_array_equal(record.levels[0, 0, 0], LEVELS)
    np.testing.assert_array_equal(record.train[:, 0, 0, 0].T, CODE.codebook[LEVELS])
    assert record.train.dtype == jnp.bool_


def test_activity_has_a_gradient_that_steers_spikes():
    def activity(value, raw):
        return fire("expg", Current(value, ("a",)), {"raw": raw})[1].activity.sum()

    # θ = 0.5. At level 0 the next costs a spike more; at 1 none and at 2 one, the level below the other way: half a
    # spike each. Beyond the top nothing.
    value = jnp.array([0.2, 0.7, 1.2, 9.0]).reshape(1, 1, 1, 4)
    to_value, to_raw = jax.grad(activity, (0, 1))(value, raw_of(0.5))
    np.testing.assert_allclose(to_value[0, 0, 0], [2.0, 1.0, 1.0, 0.0], rtol=1e-5)
    assert to_raw < 0


@pytest.mark.parametrize("neuron", ["expg", "qcfs", "sfa", "if", "lif", "plif"])
def test_activity_of_every_spiking_neuron_counts_its_spikes_and_has_a_gradient(neuron):
    params = {"expg": {"raw": raw_of(0.5)}, "qcfs": {"raw": raw_of(0.5)}, "plif": {"raw_leak": jnp.float32(0.5)}}
    wire = {"code": SpikeCode.parse("4x1")}

    def activity(value):
        return fire(neuron, Current(value, ("a",)), params.get(neuron), wire)[1].activity.sum()

    value = jnp.array([0.2, 0.7, 1.2, 1.9]).reshape(1, 1, 1, 4)
    _, record = fire(neuron, Current(value, ("a",)), params.get(neuron), wire)
    assert 0 < float(record.activity[0]) == int(record.spikes.sum())
    gradient = jax.grad(activity)(value)
    assert (gradient >= 0).all()
    assert (gradient > 0).sum() >= 2


def test_operands_may_be_bfloat16_but_currents_are_float32():
    for neuron, params in (("expg", {"raw": raw_of(0.5)}), ("relu", {}), ("lif", {})):
        signal, record = fire(neuron, current(), params, {"dtype": jnp.bfloat16})
        assert signal.data.dtype == jnp.bfloat16
        assert record.current.dtype == jnp.float32
    # A current rounded to bfloat16 would be 0.25 and fire.
    signal, _ = fire("expg", current([0.24999]), {"raw": raw_of(0.5)}, {"dtype": jnp.bfloat16})
    assert float(signal.data[0, 0, 0, 0]) == 0


# --- deployed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, [0.5, 0.25, 0.5, 1.0, 0.5, 2.0, 0.5, 0.5]], ids=["layer", "channel"])
@pytest.mark.parametrize("code", ["2x2", "2x3/1"])
def test_deployed_executions_send_the_same_levels(threshold, code):
    code = SpikeCode.parse(code)
    values = VALUES.clip(-8, 8)
    n = np.clip(np.floor(values / np.array(threshold) + 0.5), 0, code.max_level).astype(int)
    expected = np.array(code.projection)[n]
    found = {}
    for execution in ("dense", "spiking"):
        wire = {"execution": execution, "code": code}
        params = {"threshold": jnp.asarray(threshold, jnp.float32)}
        found[execution], record = fire("expg", current(values), params, wire)
        np.testing.assert_array_equal(record.levels[0, 0, 0], expected)
        np.testing.assert_array_equal(record.spikes, [[[code.codebook[expected].sum()]]])
    assert (found["dense"].form, found["spiking"].form) == ("levels", "train")
    np.testing.assert_array_equal(found["spiking"].data[:, 0, 0, 0].T, code.codebook[expected])
    assert found["dense"].threshold is None is found["spiking"].threshold


def test_folded_threshold_counts_in_the_units_of_its_current():
    layer, variables = Neuron(Wire(CODE)), {"params": {"raw": raw_of(0.5)}}
    _, made = layer.apply(variables, current(), mutable=["deployed"])
    np.testing.assert_allclose(made["deployed"]["threshold"], 0.5, rtol=1e-6)
    _, made = layer.apply(variables, current(), jnp.full(8, 0.125), mutable=["deployed"])
    np.testing.assert_allclose(made["deployed"]["threshold"], np.full(8, 4.0), rtol=1e-6)


# --- the image --------------------------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 2), np.uint8)


def test_pixels_are_the_nearest_of_256_whole_numbers():
    np.testing.assert_array_equal(pixels(jnp.asarray(IMAGES)), IMAGES)
    np.testing.assert_array_equal(pixels(jnp.arange(256, dtype=jnp.uint8)), np.arange(256))
    np.testing.assert_array_equal(pixels(jnp.arange(256) / np.float32(255)), np.arange(256))
    np.testing.assert_array_equal(pixels(jnp.array([-0.001, 0.2, 0.503, 1.0, 1.001])), [0, 51, 128, 255, 255])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (jnp.array([-0.1, 0.5]), "float images must be finite and in"),
        (jnp.array([0.5, 200.0]), "these reach from 0.5 to 200"),
        (jnp.array([0.5, jnp.nan]), "float images must be finite"),
        (jnp.array([1, 2]), "images of dtype int32: they must be uint8, or float"),
        (jnp.array([True]), "images of dtype bool"),
        (jnp.array([1], jnp.uint16), "images of dtype uint16"),
        (jnp.array([1j]), "images of dtype complex64"),
    ],
)
def test_numbers_that_are_no_pixels_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        pixels(made)


@pytest.mark.parametrize("input_code", ["1x8", "direct"])
def test_deployed_stem_takes_whole_pixels_to_the_same_current(input_code):
    kernel = np.random.default_rng(1).integers(-64, 65, (3, 3, 2, 3)).astype(np.int32)
    params = {"synapse": {"kernel": kernel, "bias": jnp.array([8, -16, 32])}}
    window = np.pad(IMAGES.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))[:, 2:5, 2:5]  # around (2, 2)
    expected = np.einsum("bhwi,hwio->bo", window, kernel) + np.array([[8, -16, 32]])
    for execution in ("dense", "spiking"):
        stem = Stem(Wire(CODE, execution=execution), 3, input_code=input_code)
        made, _ = stem.apply({"params": params}, jnp.asarray(IMAGES), False)
        np.testing.assert_array_equal(made.value[:, 2, 2], expected)


def test_coded_image_leaves_the_bits_of_its_pixels_as_spikes():
    params = {"synapse": {"kernel": jnp.ones((3, 3, 2, 3), jnp.int32), "bias": jnp.zeros(3, jnp.int32)}}
    bits = np.unpackbits(IMAGES.reshape(2, 3, 4, 2, 1), axis=-1)  # [B, H, W, C, 8], the heaviest first
    for execution in ("training", "dense", "spiking"):
        wire = Wire(CODE, execution=execution, capture="levels")
        stem = Stem(wire, 3, input_code="1x8")
        variables = {"params": params} if execution != "training" else stem.init(jax.random.key(0), IMAGES, False)
        _, aux = stem.apply(variables, jnp.asarray(IMAGES), False)
        record = aux["image"]
        np.testing.assert_array_equal(record.spikes, bits.sum((3, 4)))
        np.testing.assert_array_equal(record.levels, IMAGES)
        assert (str(record.code), record.parts, record.current) == ("1x8", (), None)
        if execution == "spiking":
            np.testing.assert_array_equal(record.train, np.moveaxis(bits, -1, 0))


def test_image_that_is_presented_directly_has_no_spikes():
    params = {"synapse": {"kernel": jnp.ones((3, 3, 2, 3), jnp.int32), "bias": jnp.zeros(3, jnp.int32)}}
    for execution in ("dense", "spiking"):
        stem = Stem(Wire(CODE, execution=execution), 3, input_code="direct")
        _, aux = stem.apply({"params": params}, jnp.asarray(IMAGES), False)
        assert [type(record).__name__ for record in aux.values()] == ["SynapseRecord"]


def test_stem_of_the_training_network_sees_whole_pixels():
    kernel = np.zeros((3, 3, 2, 1), np.float32)
    kernel[1, 1, 0, 0] = 1
    norm = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1) - 1e-5}
    variables = {
        "params": {"synapse": {"kernel": kernel, "norm": norm}},
        "batch_stats": {"synapse": {"norm": stats}},
    }
    made, _ = Stem(Wire(CODE), 1).apply(variables, jnp.asarray(IMAGES), False)
    np.testing.assert_allclose(made.value[..., 0], IMAGES[..., 0], rtol=1e-6)
