"""What peers are made of, by NumPy: attention, re-parameterised convolutions, patches, firing rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_peers import BATCH, evaluated, firing_variables

from ge2mst_jax.energy import connections_per_spike
from ge2mst_jax.models.meta_spikeformer import RepConv
from ge2mst_jax.models.spikingresformer import FiringRate, PatchSynapse
from ge2mst_jax.nn import Signal, Wire
from ge2mst_jax.spiking import SpikeCode

# --- attention --------------------------------------------------------------------------------------------------------


def heads_of(made, heads=2):
    """Levels `[T, B, N, h, d]` of a neuron layer, its two heads apart; of one pass `T = 1`."""
    levels = np.asarray(made.levels, np.float64)
    return levels.reshape(-1, BATCH, np.prod(levels.shape[-3:-1]), heads, levels.shape[-1] // heads)


@pytest.mark.parametrize(
    ("name", "block", "worth"),
    [
        ("spikformer_4_384", "attention_0", 1 / 8),
        ("qkformer_4_384", "attention_2_0", 1 / 8),
        ("e_spikeformer_s", "attention_a3_0", 2 / np.sqrt(8) / 4**3),
    ],
)
def test_attention_multiplies_queries_keys_and_values(name, block, worth):
    aux = evaluated(name)[3]
    q, k, v = (heads_of(aux[f"{block}/neuron_{key}"]) for key in "qkv")
    assert v.shape[-1] == 8 * (4 if name.startswith("e_") else 1) and q.any() and k.any() and v.any()
    expected = worth * np.einsum("tbnhd,tbmhd,tbmhe->tbnhe", q, k, v)
    current = np.asarray(aux[f"{block}/neuron_attention"].current)
    np.testing.assert_allclose(current.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "block", "masked", "axis"),
    [("sdt_2_512", "attention_0", "q", 2), ("qkformer_4_384", "attention_0_0", "k", 4)],
)
def test_attention_that_masks_counts_and_lets_through(name, block, masked, axis):
    """Spike-driven Transformer sums `k ⊙ v` over tokens, QKFormer `q` over a head's channels."""
    aux = evaluated(name)[3]
    sent = {key: heads_of(aux[f"{block}/neuron_{key}"]) for key in "qkv" if f"{block}/neuron_{key}" in aux}
    counted = sent["k"] * sent["v"] if axis == 2 else sent["q"]
    sums, gate = counted.sum(axis, keepdims=True), aux[f"{block}/neuron_gate"]
    np.testing.assert_array_equal(np.asarray(gate.current).reshape(sums.shape), sums)
    opened = np.asarray(gate.levels, np.float64).reshape(sums.shape)
    assert 0.01 < opened.mean() < 0.99
    passed = opened * sent[masked]
    np.testing.assert_array_equal(heads_of(aux[f"{block}/masked"]), passed)
    np.testing.assert_array_equal(aux[f"{block}/masked"].spikes.sum((1, 2)), passed.sum((0, 2, 3, 4)))


def test_attention_of_patches_scales_by_the_rates_that_it_saw():
    """SpikingResformer: `c₁ y₁ᵀ s` fires, `c₂ y₂ A` goes on; 16 patches of 2x2, heads of 12."""
    variables, _, _, aux = evaluated("spikingresformer_cifar")
    params, stats = (variables[key]["attention_1_0"] for key in ("params", "batch_stats"))
    sent = np.asarray(aux["attention_1_0/neuron"].levels, np.float64)  # [T, B, 8, 8, 24]
    patches = sent.reshape(4, BATCH, 4, 2, 4, 2, 24)
    y = np.einsum("tbipjqc,pqco->tbijo", patches, params["patches"]["kernel"])
    norm = params["patches"]["norm"] | stats["patches"]["norm"]
    y = (y - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
    of_keys, of_values = np.moveaxis(y.reshape(4, BATCH, 16, 2, 2, 12), 4, 0)  # [T, B, n, h, d]
    scales = [1 / np.sqrt(stats[key]["rate"] * terms)[:, None] for key, terms in (("rate", 12), ("rate_attention", 16))]
    pairs = np.einsum("tbnhd,tbmhd->tbmhn", of_keys, heads_of(aux["attention_1_0/neuron"])) * scales[0]
    made = aux["attention_1_0/neuron_attention"]
    np.testing.assert_allclose(np.asarray(made.current).reshape(pairs.shape), pairs, rtol=1e-3, atol=1e-3)
    values = np.einsum("tbmhn,tbnhd->tbmhd", heads_of(made), of_values) * scales[1]
    current = np.asarray(aux["attention_1_0/neuron_out"].current)
    np.testing.assert_allclose(current.reshape(values.shape), values, rtol=1e-3, atol=1e-3)


# --- synapses and rates -----------------------------------------------------------------------------------------------

WIRE = Wire(SpikeCode(2, 1), "lif")


def spikes_of(shape, seed=0, rate=0.4):
    data = np.float32(np.random.default_rng(seed).random(shape) < rate)
    return Signal(jnp.asarray(data), None, None, "steps", "sender")


@pytest.fixture(scope="module")
def rep_conv():
    """`(variables, apply)` of a re-parameterised convolution of 3 to 5 channels on 6x5."""
    module, signal = RepConv(WIRE, 5), spikes_of((2, 2, 6, 5, 3))

    class Shell:  # what `firing_variables` asks a network for
        init = staticmethod(lambda key, images: module.init(key, signal, False))

    variables = firing_variables(Shell, (1, 1, 1))
    return variables, jax.jit(lambda v, s: module.apply(v, s, False)), module


def test_a_reparameterised_convolution_is_one_3x3_of_spikes_padded_with_0(rep_conv):
    """Its kernel is read off a single spike; what it makes of others, at the borders too, follows by NumPy."""
    variables, apply, _ = rep_conv
    single = np.zeros((2, 2, 6, 5, 3), np.float32)
    quiet = np.asarray(apply(variables, spikes_of(single.shape).replace(data=jnp.asarray(single)))[0].value)
    np.testing.assert_allclose(quiet, np.broadcast_to(quiet[:1, :1, :1, :1], quiet.shape), atol=1e-4)  # a bias alone
    kernel = np.zeros((3, 3, 3, 5))
    for channel in range(3):
        single[:] = 0
        single[0, 0, 2, 2, channel] = 1
        made = np.asarray(apply(variables, spikes_of(single.shape).replace(data=jnp.asarray(single)))[0].value)
        kernel[:, :, channel] = (made - quiet)[0, 0, 1:4, 1:4][::-1, ::-1]
    signal = spikes_of((2, 2, 6, 5, 3), seed=3)
    padded = np.pad(np.asarray(signal.data, np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    expected = quiet + sum(padded[:, :, i : i + 6, j : j + 5] @ kernel[i, j] for i in range(3) for j in range(3))
    current, aux = apply(variables, signal)
    np.testing.assert_allclose(current.value, expected, atol=1e-3)
    (record,) = aux.values()
    assert (record.kernel, record.stride, record.groups, record.out_shape) == (3, 1, 1, (6, 5, 5))


def test_all_of_a_reparameterised_convolution_learns(rep_conv):
    variables, _, module = rep_conv
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2, 6, 5, 5)), jnp.float32)

    def loss(params):
        (current, _), _ = module.apply(
            variables | {"params": params}, spikes_of((2, 2, 6, 5, 3)), True, mutable=["batch_stats"]
        )
        return jnp.sum(current.value * weights)

    found = jax.jit(jax.grad(loss))(variables["params"])
    assert found.keys() == {"kernel", "kernel_mix", "kernel_out", "norm_in", "norm_out", "norm"}
    for path, gradient in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(gradient).all(), path
        # a norm takes off whatever shift, and scales away whatever gain, stands before it
        idle = jax.tree_util.keystr(path) in ("['norm_out']['bias']", "['norm_out']['scale']")
        assert idle or np.abs(gradient).max() > 1e-3, path


def test_patches_are_maps_of_what_is_in_them():
    module, signal = PatchSynapse(WIRE, 4, 2), spikes_of((2, 2, 6, 4, 3))
    variables = module.init(jax.random.key(0), signal, False)
    current, aux = module.apply(variables, signal, False)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    data = np.asarray(signal.data, np.float64)
    for i, j in np.ndindex(3, 2):
        patch = data[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        expected = np.einsum("tbpqc,pqco->tbo", patch, kernel) / np.sqrt(1 + 1e-5)
        np.testing.assert_allclose(current.value[:, :, i, j], expected, atol=1e-5)
    (record,) = aux.values()
    np.testing.assert_array_equal(connections_per_spike(record), np.full((6, 4), 4))
    with pytest.raises(ValueError, match="patches of 5x5 do not divide a grid of 6x4"):
        PatchSynapse(WIRE, 4, 5).init(jax.random.key(0), signal, False)


def test_firing_rates_start_with_the_first_batch_and_follow_slowly():
    spikes = [jnp.asarray(np.random.default_rng(i).random((4, 6, 2, 3)) < (0.2, 0.7)[i], jnp.float32) for i in (0, 1)]
    means = [np.asarray(x).mean((0, 1, 3)) for x in spikes]
    module, start = FiringRate(), {"batch_stats": {"rate": jnp.zeros(2)}}
    np.testing.assert_array_equal(module.apply(start, spikes[0], False), [1, 1])  # none was seen
    first, seen = module.apply(start, spikes[0], True, mutable=["batch_stats"])
    np.testing.assert_allclose(first, means[0], rtol=1e-6)
    second, seen = module.apply(seen, spikes[1], True, mutable=["batch_stats"])
    np.testing.assert_allclose(second, 0.999 * means[0] + 0.001 * means[1], rtol=1e-5)
    np.testing.assert_array_equal(module.apply(seen, spikes[0], False), second)
    np.testing.assert_array_equal(seen["batch_stats"]["rate"], second)
