"""The audit: no product of two real numbers is left, and one that is smuggled in is found and named."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images, random_variables, tiny_model

from ge2mst_jax.convert import CertificateError, ConversionError, DeployedNet, certify, deploy
from ge2mst_jax.energy import KINDS, AuditError, audit, list_products
from ge2mst_jax.grouping import REAL
from ge2mst_jax.models import ge2mst
from ge2mst_jax.nn import ConvBlock, Signal

SHAPE = (4, 4, 2)


def deployed(**changes):
    model = tiny_model(**({"stages": (("conv", 8, 1),)} | changes))
    return deploy(model, random_variables(model, SHAPE), SHAPE)


@pytest.fixture(scope="module")
def net():
    """A convolution block and an attention block with both orders of products."""
    return deployed(
        stages=(("conv", 8, 1), ("attention", 16, 1)), scales=("block2", "block1"), head_width=2, code="2x3/1",
        attention_rates=REAL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def net_of_several_steps():
    """The same with queries and keys of two steps."""
    return deployed(
        stages=(("conv", 8, 0), ("attention", 16, 1)), scales=("block2", "block1"), head_width=2, code="2x3/1",
        qk_code="1x2", attention_rates=REAL,
    )  # fmt: skip


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
        if product.operation in ("dot_general", "conv_general_dilated"):
            kinds["attention" if product.layer.endswith("attention/attention") else "weights"].add(product.kinds)
    # A = q kᵀ (or kᵀ v) meets spikes alone, and what it counted meets the spikes of v (or q).
    assert kinds["attention"] == {("binary", "binary"), ("binary", "level")}
    assert kinds["weights"] == {("binary", "real")}


def test_queries_and_keys_of_several_steps_meet_pair_by_pair_of_spikes(net_of_several_steps):
    found = audit(net_of_several_steps)
    assert found.check() is None and found.real_x_real == 0
    products = [p for p in found.products if p.operation == "dot_general" and p.layer.endswith("attention/attention")]
    # q(kᵀv) of 2 steps each: 2 products a step of v, whose first is traced by itself, and 2 of q; (q kᵀ)v: 2·2, then v.
    assert [p.kinds for p in products].count(("binary", "binary")) >= 4
    assert all("binary" in p.kinds for p in products)


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_direct_stem_counts_as_the_one_layer_of_real_products(execution):
    found = audit(deployed(input_code="direct"), execution)
    real = [p for p in found.products if p.kinds == ("real", "real")]
    assert found.real_x_real == found.counts["real x real"] == len(real) == 3  # planes of its weights
    assert all(product.layer.startswith("stem/synapse") for product in real)
    with pytest.raises(
        AuditError, match=r"^stem/synapse.*: a conv_general_dilated of real by real numbers is left .*'1x8'"
    ):
        found.check()


def test_report_is_json_with_every_kind(net):
    found = audit(net)
    report = json.loads(json.dumps(found.as_dict()))
    assert report.pop("execution") == "spiking"
    assert report.pop("real_x_real") == report.pop("violations") == 0
    assert report == found.counts
    assert sum(report.values()) == len(found.products)


# --- kinds of numbers -------------------------------------------------------------------------------------------------

ZEROS = np.zeros((3, 3), np.float32)
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
        # A level times 2^-k is no integer, nor is a sum of such powers.
        ("power_of_two level real", lambda p, n, w: (p * n) * w, "power_of_two x level, real x real"),
        ("power_of_two power_of_two real", lambda p, r, w: (p + r) * w, "real x real"),
        (
            "power_of_two power_of_two real",
            lambda p, r, w: (p * r) * w,
            "power_of_two x power_of_two, power_of_two x real",
        ),
        ("real real", lambda x, w: (x >= 1) * w, "binary x real"),
        # Rounding makes integers, but no levels: those are bounded.
        ("real real", lambda x, w: jnp.floor(4096 * x) @ w, "power_of_two x real, real x real"),
        ("real real", lambda x, w: jnp.clip(jnp.floor(x), 0, 6) * w, "level x real"),
        ("real real", lambda x, w: jnp.floor(jnp.clip(x, 0, 1)) * w, "binary x real"),
        ("level level real", lambda n, m, w: (n + m) * w, "real x real"),
        ("level real", lambda n, w: (n.astype(jnp.int32) & 7).astype(jnp.float32) * w, "level x real"),
        ("level real", lambda n, w: (n.astype(jnp.int32) & 1).astype(jnp.float32) * w, "binary x real"),
        ("level real", lambda n, w: (n.astype(jnp.int32) * 9).astype(jnp.uint8) * w, "level x level, level x real"),
        ("real real", lambda x, w: x.astype(jnp.int32) * w, "real x real"),
        ("real real", lambda x, w: jnp.where(x > 0, x, 0) * w, "real x real"),
        ("binary real", lambda s, w: jnp.concatenate([s, w]) @ w, "real x real"),
        ("real real", lambda x, w: x / (w + 2), "real x real"),
        ("level level real", lambda a, n, w: (a / n) * w, "real x real, real x real"),
        ("binary level real", lambda s, n, w: (s / n) * w, "real x real, real x real"),
        ("real real", lambda x, w: (1 / x) * w, "real x real, real x real"),
        ("level real", lambda n, w: jnp.max(n) * w, "level x real"),
        ("level real", lambda n, w: -n * w, "level x real"),
        ("level level real", lambda n, m, w: (n - m) * w, "level x real"),
        ("real", lambda x: x / 4 + x * 0.5 + x * 2, "power_of_two x real, power_of_two x real, power_of_two x real"),
        ("real", lambda x: x * 3, "level x real"),
        ("real", lambda x: x * 0.3, "real x real"),
        # A count that grows in a loop: a level while the loop is short.
        (
            "binary real",
            lambda s, w: jax.lax.fori_loop(0, 9, lambda i, n: n + s, ZEROS) * w,
            "level x real",
        ),
        (
            "binary real",
            lambda s, w: jax.lax.fori_loop(0, 10**6, lambda i, n: n + s, ZEROS) * w,
            "real x real",
        ),
        ("real", lambda x: jnp.sum(x[jnp.array([0, -1])] * 0.5, 0), "power_of_two x real"),
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
    net = deployed(num_classes=6)
    monkeypatch.setattr(ge2mst, "ConvBlock", mutated(factor))
    for execution in ("dense", "spiking"):
        found = audit(net, execution)
        assert (found.real_x_real > 0) == bool(found.violations) == real
        if real:
            with pytest.raises(AuditError, match=r"^stage_0/block_0: a mul of real by real numbers is left"):
                found.check()
        else:
            found.check()


def test_product_of_one_execution_alone_is_found_there(monkeypatch):
    net = deployed(num_classes=7)
    monkeypatch.setattr(ge2mst, "ConvBlock", mutated(lambda x: x, "spiking"))
    assert audit(net, "dense").real_x_real == 0
    assert audit(net, "spiking").real_x_real == 1


@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_network_with_a_product_of_real_numbers_is_not_deployed_nor_certified(monkeypatch, execution):
    net = deployed(num_classes=8)
    monkeypatch.setattr(ge2mst, "ConvBlock", mutated(lambda x: x, execution))
    says = rf"^stage_0/block_0: a mul of real by real numbers is left in the {execution} execution"
    with pytest.raises(ConversionError, match=says):
        deployed(num_classes=8)
    with pytest.raises(CertificateError, match=says):
        certify(net, random_images(1, SHAPE))


def decoding(self, linear_map, rest=lambda charge: charge):
    """What a spiking execution must not do: take the train for the level that it stands for, and multiply that."""
    return rest(linear_map(self.code.decode(self.data) if self.form == "train" else self.data))


def test_spiking_execution_that_multiplies_levels_is_refused(monkeypatch, net):
    """It gives the same numbers, so no comparison of executions finds it."""
    monkeypatch.setattr(Signal, "integrate", decoding)
    found = audit(net, "spiking")
    assert found.real_x_real == 0
    # Weights meet levels, and so does what q and k counted.
    assert {p.kinds for p in found.violations} == {("level", "real"), ("level", "level")}
    says = r"^\S+: a (conv|dot)_general\S* of level by real numbers is left in the spiking execution"
    with pytest.raises(AuditError, match=says):
        found.check()
    with pytest.raises(ConversionError, match="level by real"):
        deployed(num_classes=9)


HIDDEN = {
    "product as a reduction": lambda x, y: jax.lax.reduce(jnp.stack([x, y]), 1.0, lambda a, b: a * b, (0,)),
    "product as a window": lambda x, y: jax.lax.reduce_window(
        jnp.stack([x, y]), 1.0, lambda a, b: a * b, (2, 1, 1), (1, 1, 1), "VALID"
    ),
    "reduction that looks at one operand": lambda x, y: jax.lax.reduce(x, 1.0, lambda a, b: a, (0,)),
    "reduction that doubles": lambda x, y: jax.lax.reduce(x, 0.0, lambda a, b: a + a, (0,)),
    "reduce_prod": lambda x, y: jnp.prod(jnp.stack([x, y]), 0),
    "cumprod": lambda x, y: jnp.cumprod(jnp.stack([x, y]), 0),
    "power": lambda x, y: x**2,
    "square": lambda x, y: jnp.square(x),
    "logarithms": lambda x, y: jnp.exp(jnp.log(x) + jnp.log(y)),
    "hypotenuse": lambda x, y: jnp.hypot(x, y),
    "root": lambda x, y: jnp.sqrt(x),
    "look-up table": lambda x, y: jnp.arange(65536.0)[(256 * x + y).astype(jnp.int32)],
    "slice at a place that depends on data": lambda x, y: jax.lax.dynamic_slice(
        y, (x[0, 0].astype(jnp.int32), 0), (1, 1)
    ),
    "bits read as another type": lambda x, y: jax.lax.bitcast_convert_type(x, jnp.int32),
    "shift by data": lambda x, y: jnp.left_shift(x.astype(jnp.int32), y.astype(jnp.int32)),
    "loop of unknown length": lambda x, y: jax.lax.fori_loop(0, x[0, 0].astype(jnp.int32), lambda i, z: z + y, y),
    "branch": lambda x, y: jax.lax.cond(x[0, 0] > 0, lambda: x * y, lambda: y),
    "scatter": lambda x, y: x.at[0].multiply(y[0]),
    "sort": lambda x, y: jnp.sort(x),
    "a program of the host": lambda x, y: jax.pure_callback(lambda a, b: a * b, x, x, y),
    "solve": lambda x, y: jnp.linalg.solve(x, y),
    "convolution of transforms": lambda x, y: jnp.fft.fft(x),
}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_operation_that_could_hide_a_product_is_refused(hidden):
    arguments = NUMBERS["real"], NUMBERS["real"]
    with pytest.raises(AuditError, match=r"^the network: "):
        list_products(hidden, arguments, ("real", "real"))


with_derivative = jax.custom_jvp(lambda a, b: a * b)
with_derivative.defjvp(lambda primals, tangents: (with_derivative(*primals), tangents[0]))
with_backward = jax.custom_vjp(lambda a, b: a * b)
with_backward.defvjp(lambda a, b: (a * b, None), lambda _, g: (g, g))

SHOWN = {
    "in a function of its own": lambda x, y: jax.jit(lambda a: a * y)(x),
    "computed anew": lambda x, y: jax.checkpoint(lambda a: a * y)(x),
    "with its own derivative": lambda x, y: with_derivative(x, y),
    "with its own backward pass": lambda x, y: with_backward(x, y),
    "in a scan": lambda x, y: jax.lax.scan(lambda carry, a: (carry + a * y, None), y, x[:, None])[0],
    "in a map": lambda x, y: jax.lax.map(lambda a: a * a, x),
    "in an associative scan": lambda x, y: jax.lax.associative_scan(jnp.multiply, x),
    "vectorised": lambda x, y: jax.vmap(lambda a, b: a @ b)(x, y),
    "in a loop of fixed length": lambda x, y: jax.lax.fori_loop(0, 3, lambda i, z: z * y, x),
    "a reciprocal": lambda x, y: 1 / x,
    "a convolution": lambda x, y: jnp.convolve(x[0], y[0]),
    "complex": lambda x, y: jnp.real(jax.lax.complex(x, y) * jax.lax.complex(x, y)),
    "selected": lambda x, y: jnp.where(x > 0, x * y, 0),
    "of a mean": lambda x, y: x * jnp.mean(y),
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_product_is_seen_wherever_it_stands(shown):
    arguments = NUMBERS["real"], NUMBERS["real"]
    try:
        found = list_products(shown, arguments, ("real", "real"))
    except AuditError:
        return  # refused whole
    assert ("real", "real") in [product.kinds for product in found]


WINDOW = ((2, 2), (1, 1), "VALID")


@pytest.mark.parametrize(
    ("reduced", "kind"),
    [
        (lambda s: jax.lax.reduce_window(s, 0.0, jax.lax.add, *WINDOW), "level"),
        (lambda s: jax.lax.reduce_window(s, 0.0, lambda a, b: a + b, *WINDOW), "level"),
        (lambda s: jax.lax.reduce(s, 0.0, lambda a, b: a + b, (0,)), "level"),
        (lambda s: jnp.cumsum(s, 0), "level"),
        (lambda s: jnp.sum(s, 0), "level"),
        (lambda s: jax.lax.reduce_window(s, 0.0, jax.lax.max, *WINDOW), "binary"),
        (lambda s: jax.lax.reduce(s, 0.0, lambda a, b: jnp.maximum(a, b), (0,)), "binary"),
        (lambda s: jnp.min(s, 0), "binary"),
    ],
)
def test_reduction_that_adds_or_compares_is_read(reduced, kind):
    found = list_products(lambda s, w: reduced(s) * w[0, 0], [NUMBERS["binary"]] * 2, ("binary", "real"))
    assert [product.kinds for product in found] == [(kind, "real")]


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


def test_unknown_kind_of_number_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'imaginary': known are binary, power_of_two, level, real"):
        list_products(lambda x: x, [NUMBERS["real"]], ["imaginary"])
