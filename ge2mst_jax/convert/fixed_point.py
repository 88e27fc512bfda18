"""Fixed point: one format per current, chosen so that every float32 addition is exact."""

import dataclasses
import math

import numpy as np

from ge2mst_jax.nn import AttentionRecord, NeuronRecord, SynapseRecord

#: float32 holds every integer up to 2^24.
SIGNIFICAND_BITS = 24
#: Finer than this no weight needs to be.
MAX_FRACTION_BITS = 23


class ConversionError(ValueError):
    """A network, layer or number that cannot be converted; the message names it."""


@dataclasses.dataclass(frozen=True)
class CurrentFormat:
    """The fixed-point format that all summands of some currents share.

    Args:
        parts: names of the synaptic and attention layers whose outputs are summed.
        readers: names of the neuron layers that read a partial or whole sum (the head reads its own).
        fraction_bits: `f`: every number is a multiple of `2^-f`.
        bound: largest magnitude that any sum can reach, `Σ|W|·L + |b| + θ/2` (and `L·θ`); below `2^(24-f)`.
    """

    parts: tuple[str, ...]
    readers: tuple[str, ...]
    fraction_bits: int
    bound: float

    @property
    def headroom_bits(self) -> float:
        """`log2(2^(24-f)/bound)`, above 0 for a sound format."""
        return SIGNIFICAND_BITS - self.fraction_bits - math.log2(max(self.bound, 2.0**-126))


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


def current_bound(parts, readers, aux, params) -> float:
    """Largest magnitude of the sum of `parts`, membrane offset and top level included, over all inputs."""
    total = np.zeros(())
    for part in parts:
        record = aux[part]
        if isinstance(record, AttentionRecord):
            total = total + record.bound
        else:
            arrays = leaves(params, part)
            weights = np.abs(np.asarray(arrays["kernel"], np.float64))
            tokens = record.in_shape[0] * record.in_shape[1] if record.role == "head" else 1
            arriving = weights.reshape(-1, weights.shape[-1]).sum(0) * record.max_level * tokens
            total = total + arriving + np.abs(np.asarray(arrays["bias"], np.float64))
    bound = float(np.max(total))
    for reader in readers:
        if isinstance(aux[reader], NeuronRecord):
            theta = np.asarray(leaves(params, reader)["threshold"], np.float64)
            bound = max(bound, float(np.max(total + theta / 2)), float(np.max(theta)) * aux[reader].code.max_level)
    return bound


def round_to(values, fraction_bits: int, even: bool = False) -> np.ndarray:
    """The nearest multiples of `2^-f` (of `2^(1-f)` where `even`), as float32.

    >>> round_to([0.3, -0.3], 2).tolist(), round_to([0.3], 2, even=True).tolist()
    ([0.25, -0.25], [0.5])
    """
    grid = 2.0 ** (fraction_bits - even)
    # + 0.0 turns -0.0 into 0.0, so that equal networks have equal digests.
    return (np.round(np.asarray(values, np.float64) * grid) / grid + 0.0).astype(np.float32)


def round_layers(parts, readers, aux, params, fraction_bits: int) -> dict[str, dict[str, np.ndarray]]:
    """`{layer: {array: rounded}}` of the synapses and thresholds of one shared current."""
    rounded = {}
    for part in parts:
        if isinstance(aux[part], SynapseRecord):
            rounded[part] = {key: round_to(value, fraction_bits) for key, value in leaves(params, part).items()}
    for reader in readers:
        if isinstance(aux[reader], NeuronRecord):
            threshold = leaves(params, reader)["threshold"]
            rounded[reader] = {"threshold": round_to(threshold, fraction_bits, even=True)}
    return rounded


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


def choose_format(parts, readers, aux, params) -> tuple[CurrentFormat, dict]:
    """The largest `f` whose rounded numbers keep every sum below `2^(24-f)`, and those numbers by layer.

    Raises:
        ConversionError: no `f >= 1` does (or `f >= 0` where the sum is of integer counts alone), or a threshold
            rounds to zero.
    """
    estimate = current_bound(parts, readers, aux, params)
    start = min(MAX_FRACTION_BITS, SIGNIFICAND_BITS - math.floor(math.log2(max(estimate, 2.0**-8))) + 1)
    for fraction_bits in range(start, 0, -1):
        rounded = round_layers(parts, readers, aux, params, fraction_bits)
        bound = current_bound(parts, readers, aux, nest(rounded))
        if bound < 2.0 ** (SIGNIFICAND_BITS - fraction_bits):
            for reader in readers:
                if (
                    reader in rounded
                    and "threshold" in rounded[reader]
                    and not (rounded[reader]["threshold"] > 0).all()
                ):
                    raise ConversionError(
                        f"the threshold of {reader} rounds to zero at {fraction_bits} fraction bits "
                        f"(its current can reach {bound:.4g}): train with smaller weights or fewer levels"
                    )
            return CurrentFormat(tuple(parts), tuple(readers), fraction_bits, bound), rounded
    raise ConversionError(
        f"the current of {', '.join(readers)} can reach {estimate:.4g}, which leaves no fraction bits "
        f"in float32's {SIGNIFICAND_BITS}: train with smaller weights, fewer levels or fewer channels"
    )
