"""Fixed point: integers of one format per current, chosen so that no sum of them can run over."""

import dataclasses
import math

import numpy as np

from ge2mst_jax.nn import MAX_GUARD_BITS, AttentionRecord, NeuronRecord, SynapseRecord, sums_fit

#: Finer than this no weight needs to be.
MAX_FRACTION_BITS = 30


class ConversionError(ValueError):
    """A network, layer or number that cannot be converted; the message names it."""


@dataclasses.dataclass(frozen=True)
class CurrentFormat:
    """The fixed-point format that all summands of some currents share: integers, each worth `2^-f`.

    Args:
        parts: names of the synaptic and attention layers whose outputs are summed.
        readers: names of the neuron layers that read a partial or whole sum (the head reads its own).
        fraction_bits: `f`.
        bound: largest magnitude that any sum can reach, `⌊Σ|W|·L/2^g + ½⌋ + |b| + θ/2` (and `L·θ`), an integer.
        current_bits: the bound stays below `2^current_bits`.
    """

    parts: tuple[str, ...]
    readers: tuple[str, ...]
    fraction_bits: int
    bound: int
    current_bits: int

    @property
    def headroom_bits(self) -> float:
        """`log2(2^current_bits/bound)`, above 0 for a sound format."""
        return self.current_bits - math.log2(max(self.bound, 1))


def shared_currents(aux) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """`(parts, readers)` of each set of layers whose outputs ever meet in one sum, from a forward's `aux`."""
    owner: dict[str, set[str]] = {}
    for record in aux.values():
        if isinstance(record, NeuronRecord) and record.parts:
            merged = set().union(*(owner.get(part, {part}) for part in record.parts))
            owner.update(dict.fromkeys(merged, merged))
    groups = []
    for name, record in aux.items():
        if isinstance(record, SynapseRecord) and record.role == "head":
            groups.append(((name,), (name,)))
    for merged in {id(group): group for group in owner.values()}.values():
        parts = tuple(name for name in aux if name in merged)
        readers = tuple(n for n, r in aux.items() if isinstance(r, NeuronRecord) and merged.intersection(r.parts))
        groups.append((parts, readers))
    return groups


def leaves(params, name: str) -> dict[str, np.ndarray]:
    """The arrays of the layer at path `name` of a nested dict of parameters."""
    for key in name.split("/"):
        params = params.get(key, {})
    return params


def current_bound(parts, readers, aux, params, fraction_bits: int = 0):
    """Largest magnitude of the sum of `parts`, membrane offset and top level included, over all inputs.

    Exact, an `int`, where the parameters are integers of so many fraction bits; of folded ones a `float`.
    """
    total = np.zeros((), np.int64)
    for part in parts:
        record = aux[part]
        if isinstance(record, AttentionRecord):
            total = total + (record.bound << fraction_bits)
        else:
            arrays = {key: _wide(array) for key, array in leaves(params, part).items()}
            weights = np.abs(arrays["kernel"])
            tokens = record.in_shape[0] * record.in_shape[1] if record.role == "head" else 1
            arriving = weights.reshape(-1, weights.shape[-1]).sum(0) * record.max_level * tokens
            if "guard" in arrays:
                arriving = (arriving + (1 << arrays["guard"] >> 1)) >> arrays["guard"]
            total = total + arriving + np.abs(arrays["bias"])
    bounds = [np.max(total)]
    for reader in readers:
        if isinstance(aux[reader], NeuronRecord):
            theta = _wide(leaves(params, reader)["threshold"])
            half = theta // 2 if theta.dtype == np.int64 else theta / 2
            bounds += [np.max(total + half), np.max(theta) * aux[reader].code.max_level]
    return max(bounds).item()


def _wide(array) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64)


def to_integers(values, fraction_bits: int, even: bool = False) -> np.ndarray:
    """The nearest integers of which each is worth `2^-f` (even ones where asked), int64.

    >>> to_integers([0.3, -0.3], 2).tolist(), to_integers([0.3], 2, even=True).tolist()
    ([1, -1], [2])
    """
    scaled = np.rint(np.ldexp(np.asarray(values, np.float64), fraction_bits - even)).astype(np.int64)
    return scaled * 2 if even else scaled


def guarded_sums_fit(kernel, guard: int, record: SynapseRecord, current_bits: int) -> bool:
    """Whether a synapse's sums are exact with these weights (integers) of `guard` guard bits: see `nn.sums_fit`."""
    sizes = np.abs(kernel).reshape(-1, kernel.shape[-1])
    total, largest = int(sizes.sum(0).max()) * record.max_level, int(sizes.max())
    fan_in = None if record.depth_wise else int(np.prod(kernel.shape[:-1]))
    return sums_fit(total, largest, fan_in, record.max_level, current_bits, guard)


def integer_synapse(arrays, record: SynapseRecord, fraction_bits: int, current_bits: int) -> dict[str, np.ndarray]:
    """A synapse's arrays as integers: its weights with as many guard bits as its sums leave room for.

    The head has none: it is summed over tokens, and nothing fires at what it rounds.
    """
    made = {key: to_integers(value, fraction_bits) for key, value in arrays.items()}
    if record.role == "head":
        return made
    for guard in range(MAX_GUARD_BITS, -1, -1):
        kernel = to_integers(arrays["kernel"], fraction_bits + guard)
        if not guard or guarded_sums_fit(kernel, guard, record, current_bits):
            break
    return made | {"kernel": kernel, "guard": np.array(guard)}


def integer_layers(parts, readers, aux, params, fraction_bits: int, current_bits: int):
    """`{layer: {array: integers}}` of the synapses, attentions and thresholds of one shared current."""
    made = {}
    for part in parts:
        if isinstance(aux[part], SynapseRecord):
            made[part] = integer_synapse(leaves(params, part), aux[part], fraction_bits, current_bits)
        else:
            made[part] = {"shift": np.array(fraction_bits)}
    for reader in readers:
        if isinstance(aux[reader], NeuronRecord):
            threshold = leaves(params, reader)["threshold"]
            made[reader] = {"threshold": to_integers(threshold, fraction_bits, even=True)}
    return made


def nest(layers: dict[str, dict[str, np.ndarray]]) -> dict:
    """`{"a/b": arrays}` as nested dicts.

    >>> nest({"a/b": {"w": 1}, "a/c": {"w": 2}})
    {'a': {'b': {'w': 1}, 'c': {'w': 2}}}
    """
    tree: dict = {}
    for name, arrays in layers.items():
        node = tree
        for key in name.split("/"):
            node = node.setdefault(key, {})
        node.update(arrays)
    return tree


def choose_format(parts, readers, aux, params, current_bits: int) -> tuple[CurrentFormat, dict]:
    """The largest `f` for which every sum of integers stays below `2^current_bits`, and those integers by layer.

    Raises:
        ConversionError: no `f >= 0` does, or a threshold rounds to zero.
    """
    estimate = current_bound(parts, readers, aux, params)
    start = min(MAX_FRACTION_BITS, current_bits - math.floor(math.log2(max(estimate, 1e-30))) + 1)
    for fraction_bits in range(start, -1, -1):
        made = integer_layers(parts, readers, aux, params, fraction_bits, current_bits)
        bound = current_bound(parts, readers, aux, nest(made), fraction_bits)
        if bound < 2**current_bits:
            for reader in readers:
                if "threshold" in made.get(reader, {}) and not (made[reader]["threshold"] > 0).all():
                    raise ConversionError(
                        f"the threshold of {reader} rounds to zero at {fraction_bits} fraction bits "
                        f"(its current can reach {estimate:.4g}): train with smaller weights or fewer levels"
                    )
            layers = {name: {key: a.astype(np.int32) for key, a in arrays.items()} for name, arrays in made.items()}
            return CurrentFormat(tuple(parts), tuple(readers), fraction_bits, bound, current_bits), layers
    raise ConversionError(
        f"the current of {', '.join(readers)} can reach {estimate:.4g}, which leaves no fraction bits "
        f"in {current_bits}: train with smaller weights, fewer levels or fewer channels"
    )
