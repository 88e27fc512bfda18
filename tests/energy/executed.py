"""Accumulates that a spiking program really does, counted while its traced program is run operation by operation.

What counts is a product with a spike in it, or a sum of spikes, as hardware would take it: two spikes that coincide are
one accumulate, and so is one that passes a gate; a spike that meets weights, or what others have counted, is one for
every number that it adds. Shifts (powers of two) and spikes that gate a threshold are none. The network's currents have
24 bits: where weights are cut into planes, each meets the same spike, and that is the backend's affair. The audit's
sets of numbers tell what a spike is: a count is 0 or 1 by chance.
"""

import collections
import dataclasses

import jax
import numpy as np
from jax.extend import core

from ge2mst_jax.energy.audit import CALLS, Reader, kinds_of, layer_of, live_equations, scan_operands
from ge2mst_jax.energy.numbers import LARGEST_LEVEL, OF_KIND, constant, within


class Counter:
    """`{layer: accumulates}` of one run; every number travels with the set that it is from, `(value, set)`."""

    def __init__(self):
        self.synops, self.reader = collections.Counter(), Reader()

    def run(self, jaxpr, consts, arguments, scope=""):
        env = {var: (const, constant(const)) for var, const in zip(jaxpr.constvars, consts, strict=True)}
        env |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return (atom.val, constant(atom.val)) if isinstance(atom, core.Literal) else env[atom]

        for eqn in live_equations(jaxpr):
            env.update(zip(eqn.outvars, self.equation(eqn, [read(atom) for atom in eqn.invars], scope), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn, operands, scope):
        name = eqn.primitive.name
        scope = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
            return self.run(jaxpr, consts, operands, scope)
        if name == "scan":
            return self.scan(eqn.params, operands, scope)
        values, sets = zip(*operands, strict=True)
        found = eqn.primitive.bind(*values, **eqn.params)
        found = found if eqn.primitive.multiple_results else [found]
        if name in ("dot_general", "mul", "conv_general_dilated"):
            self.synops[layer_of(scope)] += accumulates(eqn, sets, *map(np.asarray, (*values, *found)))
        if name == "reduce_sum" and sets[0].kind == "binary" and not sets[0].fixed and values[0].ndim >= 4:
            self.synops[layer_of(scope)] += int(np.count_nonzero(values[0]))
        kinds = self.reader.equation(eqn, list(sets), False, scope)
        kinds = [within(numbers, var.aval.dtype) for numbers, var in zip(kinds, eqn.outvars, strict=True)]
        if name == "mul" and coincide(sets, values):  # what was counted is a count, 0 or 1 by chance
            kinds = [dataclasses.replace(numbers, high=LARGEST_LEVEL, power=False) for numbers in kinds]
        return list(zip(found, kinds, strict=True))

    def scan(self, params, operands, scope):
        consts, carries = scan_operands(params)
        carry, rows = operands[consts : consts + carries], []
        for t in range(params["length"]):
            now = [(values[t], numbers) for values, numbers in operands[consts + carries :]]
            out = self.run(params["jaxpr"].jaxpr, params["jaxpr"].consts, [*operands[:consts], *carry, *now], scope)
            carry, row = out[:carries], out[carries:]
            rows.append(row)
        columns = ([*zip(*column, strict=True)] for column in zip(*rows, strict=True))
        return [*carry, *((np.stack(values), sets[0]) for values, sets in columns)]


def coincide(sets, values) -> bool:
    """Whether a product is one of two neurons' spikes."""
    return all(numbers.kind == "binary" and not numbers.fixed for numbers in sets) and all(x.ndim >= 4 for x in values)


def accumulates(eqn, sets, left, right, found) -> int:
    """Of one product."""
    spikes = [numbers.kind == "binary" for numbers in sets]
    if eqn.primitive.name == "mul":
        if coincide(sets, (left, right)):
            return int(np.count_nonzero(found))
        # A depth-wise tap: spikes times one weight a channel. Step weights and thresholds are scalars.
        fired, weights = (left, right) if spikes[0] else (right, left)
        return int(np.count_nonzero(fired)) if any(spikes) and weights.size > 1 and fired.ndim >= 4 else 0
    assert any(spikes), f"{eqn}: no operand is a spike"
    if eqn.primitive.name == "conv_general_dilated":
        # Weights of 1 in place of the real ones: each output counts the spikes that reach it.
        return int(np.asarray(eqn.primitive.bind(left, np.ones_like(right), **eqn.params), np.float64).sum())
    if all(spikes):
        return int(found.sum())
    side = 1 if spikes[0] else 0
    contracted, batch = (axes[side] for axes in eqn.params["dimension_numbers"])
    others = [n for axis, n in enumerate((left, right)[side].shape) if axis not in (*contracted, *batch)]
    return int(np.count_nonzero((right, left)[side])) * int(np.prod(others))


def executed_synops(net, images) -> collections.Counter:
    """Of the spiking execution of a deployed network, on uint8 images that it takes as spikes."""
    model = net.executed("spiking")
    program = jax.make_jaxpr(lambda params, x: model.apply({"params": params}, x)[0])(net.params, images)
    counter = Counter()
    kinds = [*jax.tree.leaves(kinds_of(net.params)), "level"]
    arguments = [
        (leaf, OF_KIND[kind]) for leaf, kind in zip([*jax.tree.leaves(net.params), images], kinds, strict=True)
    ]
    counter.run(program.jaxpr, program.consts, arguments)
    return counter.synops
