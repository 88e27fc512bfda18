"""The audit: every product of a deployed network, read off the traced program; no layer is asked what it does.

The program's numbers are followed as sets: an interval, and whether all of them are integers, or powers of two. A
product site is then named by what can meet there. What is neither a spike, a sum nor a product is refused, and so is
whatever could hide a product: a reduction with a body of its own, a look-up whose place depends on data, a loop of
unknown length, bits read as another type.
"""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_choice
from ge2mst_jax.energy.numbers import (
    KINDS,
    OF_KIND,
    Numbers,
    bitwise,
    constant,
    join,
    joined,
    repeated,
    rounded,
    shifted,
    summed,
    times,
    truth,
    unbounded,
    within,
)

_KEEP = frozenset(
    """broadcast_in_dim reshape squeeze expand_dims transpose slice rev copy copy_p split unstack
    convert_element_type reduce_max reduce_min reduce_window_max reduce_window_min cummax cummin reduce_precision
    stop_gradient optimization_barrier sharding_constraint""".split()
)
_JOIN = frozenset("concatenate stack pad max min select_n clamp".split())
_COMPARE = frozenset("ge gt le lt eq ne is_finite".split())
_LOGIC = frozenset("and or xor not reduce_and reduce_or reduce_xor".split())
_SUM = frozenset("add sub add_any neg abs reduce_sum cumsum reduce_window_sum".split())
_PRODUCT = frozenset("mul dot_general conv_general_dilated".split())
_ROUND = frozenset("floor round ceil".split())
_SHIFT = frozenset("shift_left shift_right_arithmetic shift_right_logical".split())
_LOOK_UP = frozenset("gather dynamic_slice".split())
#: Reductions with a body: allowed are those whose body is this one operation.
_WITH_BODY = frozenset("reduce reduce_window".split())
_BODIES = frozenset("add max min".split())
#: Turns of a loop that are followed one by one, more than the longest code has steps.
_TURNS = 256
#: Calls of a part of the program, by the name of the parameter that holds it; any other holder of a program is refused.
CALLS = dict.fromkeys("jit pjit closed_call remat checkpoint remat2".split(), "jaxpr") | dict.fromkeys(
    "custom_jvp_call custom_vjp_call core_call".split(), "call_jaxpr"
)


class AuditError(ValueError):
    """A product that the execution promises not to have, or an operation that could hide one; names the layer."""


@dataclasses.dataclass(frozen=True)
class Product:
    """One product site: the layer it stands in, the operation, and the kinds of both operands, lesser first.

    >>> Product("head", "dot_general", ("binary", "real")).kinds
    ('binary', 'real')
    """

    layer: str
    operation: str
    kinds: tuple[str, str]


class Reader:
    """Abstract interpretation of a jaxpr over sets of numbers."""

    def __init__(self):
        self.products: list[Product] = []

    def run(self, jaxpr, consts, sets, record=True, scope=""):
        """The sets of the jaxpr's outputs; notes products on the way where `record`."""
        env = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
        env.update(zip(jaxpr.invars, sets, strict=True))

        def read(atom):
            return constant(atom.val) if hasattr(atom, "val") else env[atom]

        for eqn in live_equations(jaxpr):
            outputs = self.equation(eqn, [read(atom) for atom in eqn.invars], record, scope)
            for var, numbers in zip(eqn.outvars, outputs, strict=True):
                env[var] = within(numbers, var.aval.dtype)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn, sets, record, scope):
        name = eqn.primitive.name
        scope = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        if name == "scan":
            return self._scan(eqn.params, sets, record, scope)
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
            return self.run(jaxpr, consts, sets, record, scope)
        if name in _PRODUCT or name == "div":
            return [self._product(eqn, name, sets, record, scope)]
        if name in _WITH_BODY:
            return [self._reduction(eqn, name, sets, scope)]
        if name in _LOOK_UP and not all(s.fixed for s in sets[1:]):
            raise AuditError(f"{layer_of(scope)}: a {name} whose place depends on data can stand for any product")
        if name in _KEEP or name in _LOOK_UP:
            return [sets[0]] * len(eqn.outvars)
        if name in _JOIN:
            return [joined(name, sets)]
        if name in _COMPARE:
            return [truth(sets)]
        if name in _LOGIC:
            return [bitwise(name, sets, eqn)]
        if name in _SHIFT:
            if not sets[1].fixed:
                raise AuditError(f"{layer_of(scope)}: a {name} by as many places as data say can stand for any product")
            return [shifted(name, sets)]
        if name in _SUM:
            return [summed(name, sets, eqn)]
        if name in _ROUND:
            return [rounded(sets[0])]
        if name == "iota":
            return [Numbers(0, eqn.outvars[0].aval.size, True, fixed=True)]
        raise AuditError(f"{layer_of(scope)}: the operation {name!r} is not a spike, a sum or a product")

    def _product(self, eqn, name, sets, record, scope):
        kinds = tuple(sorted((s.kind for s in sets), key=KINDS.index))
        if name == "div":
            divisor = sets[1]
            if not divisor.power:
                kinds = ("real", "real")  # a reciprocal is a table of real numbers, whatever is divided
            result = Numbers(power=divisor.power and sets[0].power, fixed=all(s.fixed for s in sets))
        else:
            result = times(*sets)
            if name == "dot_general":
                contracted = eqn.params["dimension_numbers"][0][0]
                result = repeated(result, math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted))
            elif name == "conv_general_dilated":
                kernel = eqn.invars[1].aval.shape
                result = repeated(result, math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]])
        if record and not result.fixed:
            self.products.append(Product(layer_of(scope), name, kinds))
        return result

    def _reduction(self, eqn, name, sets, scope):
        body = eqn.params["jaxpr"]
        body = getattr(body, "jaxpr", body)
        operations = [e.primitive.name for e in body.eqns]
        plain = len(sets) == 2 and len(operations) == 1 and set(body.eqns[0].invars) == set(body.invars)
        if not plain or operations[0] not in _BODIES:
            raise AuditError(
                f"{layer_of(scope)}: a {name} over {', '.join(operations) or 'nothing'}: only sums, maxima and minima "
                "can be reduced, anything else could hide a product"
            )
        if operations[0] != "add":
            return join(*sets)
        return summed("add", (summed(name, sets, eqn), sets[1]), eqn)

    def _scan(self, params, sets, record, scope):
        jaxpr, (consts, carries) = params["jaxpr"], scan_operands(params)
        carry = sets[consts : consts + carries]
        for turn in range(params["length"]):  # each adds one step to what the carry may hold
            arguments = sets[:consts] + carry + sets[consts + carries :]
            outputs = self.run(jaxpr.jaxpr, jaxpr.consts, arguments, False, scope)
            grown = [join(a, b) for a, b in zip(carry, outputs, strict=False)]
            if grown == carry:
                break
            carry = (
                grown if turn < _TURNS else [unbounded(g) if g != c else g for g, c in zip(grown, carry, strict=True)]
            )
        arguments = sets[:consts] + carry + sets[consts + carries :]
        return self.run(jaxpr.jaxpr, jaxpr.consts, arguments, record, scope)


def scan_operands(params) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried: JAX 0.10 says it otherwise than 0.11."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carried, _rows = params["ft_in"].elts
    return len(consts), len(carried)


def layer_of(scope):
    """`Model/stage/layer/...` without the model's own name, methods, transformations and einsum letters."""
    return "/".join(part for part in scope.split("/")[1:] if part.isidentifier()) or "the network"


def live_equations(jaxpr):
    """The equations that the outputs need: what only `aux` counts is no product of the network."""
    needed = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    return reversed(kept)


def kinds_of(variables):
    """Kinds of a deployed network's variables: real, but for the places of its shifts, which its formats fix."""
    places = (jax.tree_util.DictKey("shift"), jax.tree_util.DictKey("guard"))
    return jax.tree.map_with_path(lambda path, _: "places" if path[-1] in places else "real", variables)


def list_products(function, arguments, kinds) -> list[Product]:
    """Every product in the program of `function`, with the kind of both operands.

    Args:
        function: what to trace.
        arguments: arrays or `jax.ShapeDtypeStruct`s in pytrees.
        kinds: one of `OF_KIND` for each argument, for all its leaves, or a pytree with one for each.

    Raises:
        ValueError: an unknown kind.
        AuditError: an operation that is neither spike, sum nor product (an exponential, a square root, ...), or one
            that could hide a product.

    >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
    >>> list_products(lambda x, w: jnp.sum((x >= 1) * w), (x, x), ("real", "real"))[0].kinds
    ('binary', 'real')
    """
    for kind in jax.tree.leaves(kinds):
        check_choice("kind", kind, OF_KIND)
    closed = jax.make_jaxpr(function)(*arguments)
    spread = [OF_KIND[kind] for kind in jax.tree.leaves(jax.tree.broadcast(tuple(kinds), tuple(arguments)))]
    reader = Reader()
    reader.run(closed.jaxpr, closed.consts, spread)
    return reader.products


@dataclasses.dataclass(frozen=True)
class Audit:
    """Every product site of one execution.

    A site is one operation of the program; `level` is an integer of at most 8 bits, `power_of_two` a shift.

    Args:
        execution: `"spiking"` or `"dense"`.
        products: every site.
        analog_stem: whether the image is presented directly: the stem then multiplies pixels, and only the stem.
    """

    execution: str
    products: tuple[Product, ...]
    analog_stem: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Sites by kind, `{"binary x real": 174, ...}`."""
        return dict(sorted(collections.Counter(" x ".join(p.kinds) for p in self.products).items()))

    @property
    def real_x_real(self) -> int:
        """Sites where two real numbers meet, or one is divided by what is no power of two."""
        return sum(p.kinds == ("real", "real") for p in self.products)

    @property
    def violations(self) -> tuple[Product, ...]:
        """Sites that break the execution's promise.

        A spiking execution adds: every site has a binary operand or is a shift. A dense one multiplies levels, and no
        two real numbers.
        """
        if self.execution == "spiking":
            return tuple(p for p in self.products if not {"binary", "power_of_two"} & set(p.kinds))
        return tuple(p for p in self.products if p.kinds == ("real", "real"))

    def check(self, analog_stem: bool = False) -> None:
        """Refuses an execution that breaks its promise.

        Args:
            analog_stem: let a directly presented image's stem be.

        Raises:
            AuditError: names the first layer that does.
        """
        for product in self.violations:
            if analog_stem and self.analog_stem and product.layer.startswith("stem/"):
                continue
            raise AuditError(
                f"{product.layer}: a {product.operation} of {' by '.join(product.kinds)} numbers is left in the "
                f"{self.execution} execution"
                + (" (the image is presented directly: input_code='1x8' sends it as spikes)" * self.analog_stem)
            )

    def as_dict(self) -> dict:
        """For JSON."""
        found = {"execution": self.execution, **self.counts, "real_x_real": self.real_x_real}
        return found | {"violations": len(self.violations)}


def audit(net, execution: str = "spiking") -> Audit:
    """Lists every product of a deployed network.

    A pixel is an integer under `input_code="1x8"`; presented directly it counts as `real`, as an analog stem's
    input does by the field's habit.

    Args:
        net: from `convert.deploy`.
        execution: `"spiking"` or `"dense"`.

    Raises:
        AuditError: as `list_products`.

    >>> from ge2mst_jax import create_model
    >>> from ge2mst_jax.convert import deploy
    >>> model = create_model("ge2mst_nano", stages=(("conv", 8, 1),), input_code="1x8")
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))
    >>> found = audit(deploy(model, variables, (8, 8, 1)))
    >>> found.real_x_real, found.violations
    (0, ())
    """
    model, variables = net.executed(execution), net.variables(execution)
    image = jax.ShapeDtypeStruct((1, *net.image_shape), jnp.uint8)
    coded = getattr(model, "input_code", "direct") == "1x8"
    products = list_products(
        lambda variables, images: model.apply(variables, images)[0],
        (variables, image),
        (kinds_of(variables), "level" if coded else "real"),
    )
    return Audit(execution, tuple(products), not coded)
