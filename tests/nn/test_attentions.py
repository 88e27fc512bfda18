"""Every attention of the harness in training: what it computes, from the levels that it captured, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge2mst_jax import create_model
from ge2mst_jax.grouping import Scale
from ge2mst_jax.nn import ATTENTIONS, NEURONS, Current, SelfAttention, Wire
from ge2mst_jax.spiking import SpikeCode

HEADS, WIDTH = 4, 2
STREAM = Current(jnp.asarray(np.random.default_rng(0).normal(0.5, 1, (4, 4, 4, 8)), jnp.float32), ("stem",))
#: Kind and neuron; the others of each kind are slow.
QUICK = [("sdsa_v1", "expg"), ("qk_token", "relu"), ("sdsa", "relu")]


def block_of(attention, neuron="expg", local=True):
    wire = Wire(SpikeCode.parse("2x2"), neuron, capture="levels", attention=attention, local=local)
    return SelfAttention(wire, HEADS, (Scale("block", 2), Scale("grid", 4)))


def thetas_of(params, name):
    """Of each head."""
    raw = params[name]["raw"] if name in params else np.log(np.expm1(2.0))  # a gate of an ANN learns nothing
    return np.broadcast_to(np.log1p(np.exp(np.asarray(raw, np.float64))), (HEADS,))


def expected(attention, sent, theta):
    """`(gate's current or none, attention's current)` from the levels of `q`, `k`, `v` and thresholds of each head."""
    batch, height, width, _ = sent["k"].shape
    n, each = height * width, WIDTH
    split = {key: x.reshape(batch, n, HEADS, -1).astype(np.float64) for key, x in sent.items()}
    if attention in ("ssa", "sdsa"):
        counts = np.einsum("bmhd,bnhd,bnhe->bmhe", split["q"], split["k"], split["v"])
        return None, 16 / (n * each) * counts * (theta["q"] * theta["k"] * theta["v"])[:, None]
    if attention == "sdsa_v1":
        sums = (split["k"] * split["v"]).sum(1, keepdims=True)  # [B, 1, h, d]
        current, masked = 2**2.6 / n * sums * (theta["k"] * theta["v"])[:, None], "q"
    else:
        sums = split["q"].sum(-1, keepdims=True)  # [B, N, h, 1]
        current, masked = 2**1.3 / each * sums * theta["q"][:, None], "k"
    opened = current >= theta["gate"][:, None] / 2
    assert 0.02 < opened.mean() < 0.98
    return current, (theta[masked] * theta["gate"])[:, None] * np.where(opened, split[masked], 0)


@pytest.mark.parametrize(
    ("attention", "neuron"),
    [
        pytest.param(attention, neuron, marks=() if (attention, neuron) in QUICK else pytest.mark.slow)
        for attention in ATTENTIONS
        for neuron in NEURONS
    ],
)
def test_attention_is_its_equation_and_every_signal_learns(attention, neuron):
    block = block_of(attention, neuron, local=False)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=STREAM.value.shape), jnp.float32)
    variables = jax.jit(lambda key: block.init(key, STREAM, False))(jax.random.key(1))
    params = variables["params"]

    def loss(params):
        (out, aux), _ = block.apply(variables | {"params": params}, STREAM, True, mutable=["batch_stats"])
        return jnp.sum(out.value.reshape(-1, *weights.shape) * weights[None]), aux

    gradients, aux = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    for name in [*(set("qkv") & set(params)), *({"neuron_gate"} & set(params))]:
        assert any(np.abs(gradient).max() > 0 for gradient in jax.tree.leaves(gradients[name])), name
    assert ("v" in params) == (attention != "qk_token") and aux["neuron_out"].parts == ("attention",)
    if attention == "gw_ssa" or neuron not in ("expg", "relu"):
        return  # its equation is tested beside the other blocks; step by step only that it learns
    sent = {key: np.asarray(aux[f"neuron_{key}"].levels) for key in "qkv" if key in params}
    ones = np.ones(HEADS)  # what real numbers are worth is in them
    theta = {key: thetas_of(params, f"neuron_{key}") if neuron == "expg" else ones for key in sent}
    sums, current = expected(attention, sent, theta | {"gate": thetas_of(params, "neuron_gate")})
    shape = aux["neuron_out"].current.shape
    assert shape == (4, 4, 4, 32 if attention == "sdsa" else 8) and np.abs(current).max() > 0.5
    np.testing.assert_allclose(aux["neuron_out"].current, current.reshape(shape), rtol=1e-4, atol=1e-4)
    if sums is not None:
        shape = aux["neuron_gate"].current.shape
        np.testing.assert_allclose(aux["neuron_gate"].current, sums.reshape(shape), rtol=1e-4, atol=1e-4)
        assert set(np.unique(aux["neuron_gate"].levels)) == {0, 1}


@pytest.mark.parametrize("attention", ["sdsa", "qk_token"])
def test_convolution_half_joins_where_it_is_asked_for(attention):
    aux = {local: born(block_of(attention, local=local)) for local in (True, False)}
    assert aux[True].keys() - aux[False].keys() == {"local"} and aux[False].keys() <= aux[True].keys()
    assert aux[True]["local"].source == ("neuron_k" if attention == "qk_token" else "neuron_v")
    assert aux[True]["local"].out_shape == (4, 4, 32 if attention == "sdsa" else 8)
    assert aux[True]["neuron_out"].parts == ("attention", "local")


def born(block):
    return jax.eval_shape(lambda key: block.init_with_output(key, STREAM, False)[0][1], jax.random.key(0))


def test_what_is_counted_is_said():
    """Sources, largest counts and products of a dense pass, by hand: 16 tokens, 4 heads of 2, levels 3 and 6."""
    tokens, gate = born(block_of("qk_token")), born(block_of("sdsa_v1"))
    found = {(r.sources, r.bound, r.products) for aux in (tokens, gate) for r in (aux["gate"], aux["attention"])}
    q, k, v, g = (f"neuron_{key}" for key in ("q", "k", "v", "gate"))
    assert found == {
        ((q,), 2 * 3, ((128, (q,)),)),
        ((k, g), 3, ((128, (k, g)),)),
        ((k, v), 16 * 3 * 6, ((128, (k, v)),)),
        ((q, g), 3, ((128, (q, g)),)),
    }
    assert (tokens["neuron_gate"].shape, gate["neuron_gate"].shape) == ((4, 4, 4), (1, 1, 8))
    assert {name for name, r in gate.items() if getattr(r, "gate", False)} == {"neuron_gate"}
    wide = born(block_of("sdsa"))["attention"]  # keys first: heads of 2 are narrower than 16 tokens
    assert wide.bound == 16 * 2 * 3 * 3 * 6
    assert wide.products == ((16 * 32 * 2, (k, v)), (16 * 32 * 2, (q,)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention": "softmax"}, "unknown attention 'softmax': known are gw_ssa, ssa, sdsa, sdsa_v1, qk_token"),
        ({"attention": None}, "unknown attention None: known are gw_ssa, ssa, sdsa, sdsa_v1, qk_token"),
        ({"local": "no"}, "local is 'no': it must be True or False"),
    ],
)
def test_attention_that_there_is_none_of_is_refused(changes, says):
    with pytest.raises(ValueError, match=f"^{says}$"):
        create_model("ge2mst_nano", **changes)


def test_scales_are_those_of_groups_alone():
    """16 channels are 2 heads of 8: too few for 3 scales, which but `gw_ssa` ignores."""
    fields = dict(stages=(("attention", 16, 1),), head_width=8, scales=("block3", "grid3", "block1"))
    with pytest.raises(ValueError, match="cannot give equal shares of heads of width 8 to 3 scales"):
        create_model("ge2mst_nano", **fields)
    model = create_model("ge2mst_nano", attention="ssa", **fields)
    assert jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]["stage_0"]
