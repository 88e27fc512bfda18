"""The audit: no product of two real numbers is left, and one that is smuggled in is found and named."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from tiny_networks import random_variables, tiny_model

from ge2mst_jax.convert import DeployedNet, deploy
from ge2mst_jax.convert.products import KINDS, list_products
from ge2mst_jax.energy import AuditError, audit
from ge2mst_jax.models import ge2mst
from ge2mst_jax.nn import ConvBlock

SHAPE = (4, 4, 2)


def deployed(**changes):
    model = tiny_model(**({"stages": (("conv", 8, 1),)} | changes))
    return deploy(model, random_variables(model, SHAPE), SHAPE)


@pytest.fixture(scope="module")
def net():
    """A convolution block and an attention block with both orders of products."""
    return deployed(
        stages=(("conv", 8, 1), ("attention", 16, 1)), scales=("block2", "block1"), head_width=2, code="2x3/1"
    )


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_coded_network_has_no_product_of_real_numbers(net, execution):
    found = audit(net, execution)
    assert found.real_x_real == 0
    assert found.check() is None
    assert "real x real" not in found.counts


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_every_synapse_attention_and_neuron_is_read(net, execution):
    found = audit(net, execution)
    for name in net.layers:
        if name == "stem/image":
            continue
        layer = name.removesuffix("/attention")  # its products stand in the module that holds it
        assert any(f"{product.layer}/".startswith(f"{layer}/") for product in found.products), name


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_every_product_names_a_layer_of_the_network(net, execution):
    modules = {"/".join(path[: i + 1]) for path in (n.split("/") for n in net.layers) for i in range(len(path))}
    assert {product.layer for product in audit(net, execution).products} <= modules


def test_spiking_execution_accumulates_only(net):
    """Every product has a spike or a power of two (a step weight, a shift) in it; dense runs multiply levels."""
    cheap = {"binary", "power_of_two"}
    assert all(cheap & set(product.kinds) for product in audit(net).products)
    assert any(not cheap & set(product.kinds) for product in audit(net, "dense").products)


def test_matrix_products_of_the_spiking_execution_have_spikes_on_one_side(net):
    kinds = {"weights": set(), "attention": set()}
    for product in audit(net).products:
        if product.operation == "dot_general":
            kinds["attention" if "_attend" in product.layer or product.layer.endswith("attention") else "weights"].add(
                product.kinds
            )
    # A = q kᵀ (or kᵀ v) meets spikes alone, and what it counted meets the spikes of v (or q).
    assert kinds == {"weights": {("binary", "real")}, "attention": {("binary", "binary"), ("binary", "level")}}


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_direct_stem_counts_as_the_one_layer_of_real_products(execution):
    found = audit(deployed(input_code="direct"), execution)
    real = [p for p in found.products if p.kinds == ("real", "real")]
    assert found.real_x_real == found.counts["real x real"] == len(real) == 9  # taps of its 3x3 kernel
    assert all(product.layer.startswith("stem/synapse") for product in real)
    with pytest.raises(AuditError, match=r"^stem/synapse.*: a dot_general of real by real numbers is left .*'1x8'"):
        found.check()


def test_report_is_json_with_every_kind(net):
    found = audit(net)
    report = json.loads(json.dumps(found.as_dict()))
    assert report.pop("execution") == "spiking"
    assert report.pop("real_x_real") == 0
    assert report == found.counts
    assert sum(report.values()) == len(found.products)


# --- kinds of numbers -------------------------------------------------------------------------------------------------

NUMBERS = {kind: jax.ShapeDtypeStruct((3, 3), jnp.float32) for kind in KINDS}


@pytest.mark.parametrize(
    ("arguments", "function", "kinds"),
    [
        ("binary real", lambda s, w: s * w, "binary x real"),
        ("binary binary", lambda q, k: q @ k, "binary x binary"),
        ("binary binary real", lambda s, r, w: (s + r) * w, "level x real"),
        ("binary binary real", lambda s, r, w: (s * r) * w, "binary x binary, binary x real"),
        ("binary binary real", lambda s, r, w: (s @ r) * w, "binary x binary, level x real"),
        ("binary real real", lambda s, w, u: (s * w) * u, "binary x real, real x real"),
        ("binary real real", lambda s, w, u: (s @ w) @ u, "binary x real, real x real"),
        ("level real real", lambda n, w, u: (n * w) * u, "level x real, real x real"),
        ("power_of_two level real", lambda p, n, w: (p * n) * w, "power_of_two x level, level x real"),
        ("real real", lambda x, w: (x >= 1) * w, "binary x real"),
        ("real real", lambda x, w: jnp.floor(x) * w, "level x real"),
        ("real real", lambda x, w: jnp.where(x > 0, x, 0) * w, "real x real"),
        ("binary real", lambda s, w: jnp.concatenate([s, w]) @ w, "real x real"),
        ("real real", lambda x, w: x / (w + 2), "real x real"),
        ("level level real", lambda a, n, w: (a / n) * w, "level x level, real x real"),
        ("binary level real", lambda s, n, w: (s / n) * w, "binary x level, real x real"),
        ("real", lambda x: x / 4 + x * 0.5 + x * 2, "power_of_two x real, power_of_two x real, power_of_two x real"),
        ("real", lambda x: x * 3, "level x real"),
        ("real", lambda x: x * 0.3, "real x real"),
        # A sum that starts at 0 and grows real inside the loop.
        (
            "binary real",
            lambda s, w: jax.lax.scan(lambda total, x: (total + x, total * x), jnp.zeros(3), w)[1],
            "real x real",
        ),
        ("real", lambda x: jax.jit(lambda y: y * y)(x), "real x real"),
    ],
)
def test_kind_of_a_number_follows_what_is_done_to_it(arguments, function, kinds):
    arguments = arguments.split()
    found = list_products(function, [NUMBERS[kind] for kind in arguments], arguments)
    assert ", ".join(" x ".join(product.kinds) for product in found) == kinds


# --- what it finds ----------------------------------------------------------------------------------------------------


def mutated(factor, only="spiking dense training"):
    """A convolution block whose stream meets another factor."""

    class Mutated(ConvBlock):
        @nn.compact
        def __call__(self, current, train):
            current, aux = super().__call__(current, train)
            if self.wire.execution in only:
                current = current.replace(value=current.value * factor(current.value))
            return current, aux

    return Mutated


@pytest.mark.parametrize(
    ("factor", "real"),
    [
        (lambda x: jnp.float32(0.3), True),
        (lambda x: x, True),
        (lambda x: jnp.mean(x, (1, 2), keepdims=True), True),
        (lambda x: jnp.float32(0.25), False),
        (lambda x: (x >= 1).astype(x.dtype), False),
    ],
    ids=["a real constant", "itself", "its mean", "a shift", "a gate"],
)
def test_product_smuggled_into_a_block_is_found_by_its_layer(monkeypatch, factor, real):
    monkeypatch.setattr(ge2mst, "ConvBlock", mutated(factor))
    net = deployed(num_classes=6)
    for execution in ("dense", "spiking"):
        found = audit(net, execution)
        assert (found.real_x_real > 0) == real
        if real:
            with pytest.raises(AuditError, match=r"^stage_0/block_0: a mul of real by real numbers is left"):
                found.check()
        else:
            found.check()


def test_product_of_one_execution_alone_is_found_there(monkeypatch):
    monkeypatch.setattr(ge2mst, "ConvBlock", mutated(lambda x: x, "spiking"))
    net = deployed(num_classes=7)
    assert audit(net, "dense").real_x_real == 0
    assert audit(net, "spiking").real_x_real == 1


class Foreign(nn.Module):
    """Somebody else's network: its image is real and so are its weights."""

    execution: str = "training"
    capture: str = "counts"

    @nn.compact
    def __call__(self, images):
        return nn.Dense(3, name="readout")(images.astype(jnp.float32).reshape(len(images), -1)), {}


def test_network_of_others_is_read_like_ours():
    model = Foreign()
    params = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    found = audit(DeployedNet(model, params, (), SHAPE, ""))
    assert found.counts == {"real x real": 1}
    with pytest.raises(AuditError, match=r"^readout: a dot_general of real by real"):
        found.check()


def test_unknown_execution_is_refused(net):
    with pytest.raises(ValueError, match="unknown execution 'training': known are dense, spiking"):
        audit(net, "training")
