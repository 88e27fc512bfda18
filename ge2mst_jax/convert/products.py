"""Every product of a deployed network, read off the traced program: no layer is asked what it does."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.convert.fixed_point import ConversionError

#: What a number can be, from the least to the most: each kind but `power_of_two` contains the one before it.
KINDS = ("binary", "power_of_two", "level", "real")

_KEEP = frozenset(
    """broadcast_in_dim reshape squeeze expand_dims transpose slice dynamic_slice gather rev copy copy_p split unstack
    convert_element_type reduce_max reduce_min reduce_precision stop_gradient optimization_barrier
    sharding_constraint abs neg""".split()
)
_JOIN = frozenset("concatenate stack pad max min select_n clamp".split())
_BINARY = frozenset("ge gt le lt eq ne and or not xor is_finite reduce_and reduce_or".split())
_SUM = frozenset("add sub reduce_sum add_any cumsum".split())
_PRODUCT = frozenset("mul dot_general conv_general_dilated".split())
_INTEGER = frozenset("floor round ceil iota".split())
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@dataclasses.dataclass(frozen=True)
class Product:
    """One product site: the layer it stands in, the operation, and the kinds of both operands, lesser first.

    >>> Product("head", "dot_general", ("binary", "real")).kinds
    ('binary', 'real')
    """

    layer: str
    operation: str
    kinds: tuple[str, str]


def _join(*kinds):
    found = {k for k in kinds if k is not None}
    if found == {"binary", "power_of_two"}:
        return "power_of_two"
    return max(found, key=KINDS.index)


def _kind_of_constant(value) -> str:
    value = np.asarray(value)
    if value.dtype == bool or np.isin(value, (0, 1)).all():
        return "binary"
    if not np.issubdtype(value.dtype, np.number):
        return "real"
    mantissa, _ = np.frexp(np.abs(value.astype(np.float64)))
    if np.isin(mantissa, (0, 0.5)).all():
        return "power_of_two"
    return "level" if (value == np.round(value)).all() else "real"


def _product_kind(a, b):
    if "real" in (a, b):
        return "real"
    return _join(a, b) if "binary" in (a, b) else "level"


class _Reader:
    """Abstract interpretation of a jaxpr over `KINDS`."""

    def __init__(self):
        self.products: list[Product] = []

    def run(self, jaxpr, consts, kinds, record=True, scope=""):
        """Kinds of the jaxpr's outputs; notes products on the way where `record`."""
        env = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = const if isinstance(const, str) else _kind_of_constant(const)
        env.update(zip(jaxpr.invars, kinds, strict=True))

        def read(atom):
            return _kind_of_constant(atom.val) if hasattr(atom, "val") else env[atom]

        for eqn in _live(jaxpr):
            outputs = self._equation(eqn, [read(atom) for atom in eqn.invars], record, scope)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, kinds, record, scope):
        name = eqn.primitive.name
        scope = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        if name == "scan":
            return self._scan(eqn.params, kinds, record, scope)
        inner = next((eqn.params[key] for key in _CALLS if key in eqn.params), None)
        if inner is not None:
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
            return self.run(jaxpr, consts, kinds, record, scope)
        if name in _PRODUCT or name == "div":
            if record:
                self.products.append(Product(_layer(scope), name, tuple(sorted(kinds, key=KINDS.index))))
            if name == "div":
                return ["real" if {"level", "real"} & set(kinds) else _join(*kinds)]
            terms = name != "mul"  # a matrix product also adds up
            return [_summed(_product_kind(*kinds)) if terms else _product_kind(*kinds)]
        if name in _KEEP:
            return [kinds[0]] * len(eqn.outvars)
        if name in _JOIN:
            return [_join(*(kinds[1:] if name == "select_n" else kinds))]
        if name in _BINARY:
            return ["binary"]
        if name in _SUM:
            return [_summed(_join(*kinds))]
        if name in _INTEGER:
            return ["level"]
        raise ConversionError(
            f"{_layer(scope)}: the operation {name!r} is not a spike, a sum or a product: it cannot be converted"
        )

    def _scan(self, params, kinds, record, scope):
        jaxpr, consts, carries = params["jaxpr"], params["num_consts"], params["num_carry"]
        carry = kinds[consts : consts + carries]
        while True:  # kinds only ever grow, so this ends
            arguments = kinds[:consts] + carry + kinds[consts + carries :]
            outputs = self.run(jaxpr.jaxpr, jaxpr.consts, arguments, record=False)
            grown = [_join(a, b) for a, b in zip(carry, outputs, strict=False)]
            if grown == carry:
                break
            carry = grown
        return self.run(jaxpr.jaxpr, jaxpr.consts, arguments, record, scope)


def _layer(scope):
    """`Model/stage/layer/...` without the model's own name, methods, transformations and einsum letters."""
    return "/".join(part for part in scope.split("/")[1:] if part.isidentifier()) or "the network"


def _summed(kind):
    return "real" if kind == "real" else "level"


def _live(jaxpr):
    """The equations that the outputs need: what only `aux` counts is no product of the network."""
    needed = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    return reversed(kept)


def list_products(function, arguments, kinds) -> list[Product]:
    """Every product in the program of `function`, with the kind of both operands.

    Args:
        function: what to trace.
        arguments: arrays or `jax.ShapeDtypeStruct`s in pytrees.
        kinds: one of `KINDS` for each argument, for all its leaves.

    Raises:
        ConversionError: an operation that is neither spike, sum nor product (an exponential, a square root, ...).

    >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
    >>> list_products(lambda x, w: jnp.sum((x >= 1) * w), (x, x), ("real", "real"))[0].kinds
    ('binary', 'real')
    """
    closed = jax.make_jaxpr(function)(*arguments)
    spread = [kind for argument, kind in zip(arguments, kinds, strict=True) for _ in jax.tree.leaves(argument)]
    reader = _Reader()
    reader.run(closed.jaxpr, closed.consts, spread)
    return reader.products


def network_products(net, execution: str = "spiking") -> list[Product]:
    """Every product of a deployed network's execution.

    A pixel is an integer under `input_code="1x8"`; presented directly it counts as `real`, as an analog stem's
    input does by the field's habit.
    """
    model = net.executed(execution)
    image = jax.ShapeDtypeStruct((1, *net.image_shape), jnp.uint8)
    pixel = "level" if getattr(model, "input_code", "direct") == "1x8" else "real"
    return list_products(
        lambda params, images: model.apply({"params": params}, images)[0], (net.params, image), ("real", pixel)
    )


def count_by_kind(products) -> dict[str, int]:
    """`{"binary x real": sites, ...}`.

    >>> count_by_kind([Product("a", "mul", ("binary", "real"))])
    {'binary x real': 1}
    """
    counts = collections.Counter(" x ".join(p.kinds) for p in products)
    return dict(sorted(counts.items()))
