"""Accumulates that a spiking program really does, counted while its traced program is run operation by operation.

What counts is a product with a spike in it, as hardware would take it: two spikes that coincide are one accumulate; a
spike that meets weights, or what others have counted, is one for every number that it adds. Shifts (powers of two) and
spikes that gate a threshold are none.
"""

import collections

import jax
import numpy as np
from jax.extend import core

from ge2mst_jax.energy.audit import CALLS, layer_of, live_equations


class Counter:
    """`{layer: accumulates}` of one run."""

    def __init__(self):
        self.synops = collections.Counter()

    def run(self, jaxpr, consts, arguments, scope=""):
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return atom.val if isinstance(atom, core.Literal) else env[atom]

        for eqn in live_equations(jaxpr):
            outputs = self.equation(eqn, [read(atom) for atom in eqn.invars], scope)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn, values, scope):
        name = eqn.primitive.name
        scope = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
            return self.run(jaxpr, consts, values, scope)
        if name == "scan":
            return self.scan(eqn.params, values, scope)
        found = eqn.primitive.bind(*values, **eqn.params)
        if name in ("dot_general", "mul"):
            self.synops[layer_of(scope)] += self.accumulates(eqn, name, *map(np.asarray, values), np.asarray(found))
        return found if eqn.primitive.multiple_results else [found]

    def scan(self, params, values, scope):
        consts, carries = params["num_consts"], params["num_carry"]
        carry, rows = values[consts : consts + carries], []
        for t in range(params["length"]):
            now = [x[t] for x in values[consts + carries :]]
            out = self.run(params["jaxpr"].jaxpr, params["jaxpr"].consts, [*values[:consts], *carry, *now], scope)
            carry, row = out[:carries], out[carries:]
            rows.append(row)
        return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]

    @staticmethod
    def accumulates(eqn, name, left, right, found) -> int:
        binary = [np.isin(x, (0, 1)).all() for x in (left, right)]
        if name == "mul":
            # A depth-wise tap: spikes times one weight a channel. Step weights and thresholds are scalars.
            spikes, weights = (left, right) if binary[0] else (right, left)
            return int(np.count_nonzero(spikes)) if any(binary) and weights.size > 1 and spikes.ndim >= 4 else 0
        if all(binary):
            return int(found.sum())
        assert any(binary), f"{eqn}: no operand is a spike"
        spikes = left if binary[0] else right
        (contract, batch) = eqn.params["dimension_numbers"]
        side = 1 if binary[0] else 0
        other = (left, right)[side]
        taken = {*contract[side], *batch[side]}
        return int(np.count_nonzero(spikes)) * int(np.prod([n for a, n in enumerate(other.shape) if a not in taken]))


def executed_synops(net, images) -> collections.Counter:
    """Of the spiking execution of a deployed network."""
    model = net.executed("spiking")
    program = jax.make_jaxpr(lambda params, x: model.apply({"params": params}, x)[0])(net.params, images)
    counter = Counter()
    counter.run(program.jaxpr, program.consts, [*jax.tree.leaves(net.params), images])
    return counter.synops
