"""A plan: what the TPU's compiler makes of an experiment's work on a pod that is not there."""

import collections
import contextlib
import dataclasses
import re
import time
import typing

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from ge2mst_jax.checks import one_line, shown
from ge2mst_jax.plan.anchors import lower_anchor
from ge2mst_jax.plan.lower import lower_work, shape_of
from ge2mst_jax.plan.program import Operation, read_program
from ge2mst_jax.plan.topology import Pod
from ge2mst_jax.train.config import TrainConfig

_SIZES = re.compile(r"\(?([\d.]+[KMGT])\)? (?:exceeds|of) [^()\d]*\(?([\d.]+[KMGT])\)?")


class OutOfMemory(ValueError):
    """Work that the compiler finds no room for in a chip's memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What compiled work would cost. Every figure is the compiler's estimate, none was measured on a chip.

    Args:
        topology, chips, batch: of the pod, and the global batch.
        work: one of `WORKS`.
        compile_seconds: on this machine.
        memory: bytes a chip, by what takes them: `arguments` (state and batch), `outputs` (that take no argument's
            place), `temporary`, `program`.
        hbm: bytes that a chip has.
        flops: a step and chip, of matrix products and everything else, as the compiler counts them.
        cycles: a step and chip, of all operations with an estimate, loops as often as they turn.
        seconds: of a step, `cycles` over the chip's clock.
        peak: operations a second of a chip.
        bytes_accessed: a step and chip, as the compiler counts them, a gather as if it read all that it reads from.
        byte_seconds: of a step, `bytes_accessed` over the memory's bandwidth.
        collectives: bytes a step and chip, by kind.
        collective_seconds: those bytes over the links' bandwidth, as if nothing else ran meanwhile.
        unknown_loops: whose turns the compiler does not say: they count once.
        steps: of the recipe; `None` of work that has none.
        shares: of the cycles, by `stage`, `direction` and `kind`.
    """

    topology: str
    chips: int
    batch: int
    work: str = "train"
    compile_seconds: float
    memory: dict[str, int]
    hbm: float
    flops: float
    cycles: int
    seconds: float
    peak: float
    bytes_accessed: float
    byte_seconds: float
    collectives: dict[str, int]
    collective_seconds: float
    unknown_loops: int
    steps: int | None = None
    shares: dict[str, dict[str, float]]

    @property
    def used(self) -> int:
        """Bytes a chip."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
        return self.used <= self.hbm

    @property
    def share_of_peak(self) -> float:
        """`flops / (seconds · peak)`."""
        return self.flops / (self.seconds * self.peak)

    @property
    def bound_by(self) -> str:
        """Which of the two times of a step is the larger, `cycles` or `bytes`."""
        return "bytes" if self.byte_seconds > self.seconds else "cycles"

    @property
    def images_per_second(self) -> float:
        """Of a chip."""
        return self.batch / self.chips / self.seconds

    @property
    def hours(self) -> float | None:
        """Of the recipe, evaluation and input left out."""
        return None if self.steps is None else self.steps * self.seconds / 3600

    @property
    def chip_hours(self) -> float | None:
        """Of the recipe, all chips."""
        return None if self.hours is None else self.hours * self.chips

    def as_dict(self) -> dict:
        """For JSON."""
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in _DERIVED}

    @classmethod
    def from_dict(cls, found) -> "Plan":
        """What `as_dict` made.

        Raises:
            ValueError: it was another version's, or no plan.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or found.keys() != kinds.keys() | set(_DERIVED):
            raise ValueError("holds no plan of this version")
        for name, kind in kinds.items():
            kind = int | float if kind is float else dict if typing.get_origin(kind) is dict else kind
            if isinstance(found[name], bool) or not isinstance(found[name], kind):
                raise ValueError(f"holds a plan whose {name} is {shown(found[name])}")
        return cls(**{name: found[name] for name in kinds})


_DERIVED = ("fits", "share_of_peak", "bound_by", "images_per_second", "hours", "chip_hours")


def make_plan(config: TrainConfig, pod: Pod, work: str = "train", data=None) -> Plan:
    """Compiles an experiment's work for a pod and reads what the compiler says of it; minutes.

    Args:
        config: its `batch_size` is the pod's.
        pod: from `open_topology`.
        work: one of `WORKS`.
        data: image shape, classes and examples, if not those of `shape_of`.

    Raises:
        OutOfMemory: the compiler finds no room for it.
        ValueError: a batch that the pod cannot share, unknown data, what `lower_work` refuses.
    """
    data = data or shape_of(config)
    steps = config.num_steps(data[2]) + config.extra_steps if work == "train" else None
    return plan_of(lower_work(config, work, pod.devices, data), pod, config.batch_size, work, steps)


def make_anchor(name: str, config: TrainConfig, pod: Pod, data=None) -> Plan:
    """Compiles an anchor's train step as `make_plan` does a config's: the same batch, images, classes and mesh.

    Raises:
        OutOfMemory, ValueError: as `make_plan` and `lower_anchor`.
    """
    image_shape, classes, _ = data or shape_of(config)
    return plan_of(lower_anchor(name, config, pod.devices, image_shape, classes), pod, config.batch_size)


def plan_of(lowered, pod: Pod, batch: int, work: str = "train", steps: int | None = None) -> Plan:
    """Compiles what was lowered and reads what the compiler says of it.

    Raises:
        OutOfMemory: it finds no room for it.
    """
    start = time.perf_counter()
    try:
        with uncached():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"batch {batch:,} on {pod.topology} does not fit: {needed(error)}") from error
    seconds = time.perf_counter() - start
    found, collectives, unknown = read_program(compiled.as_text())
    sizes, costs, chip = compiled.memory_analysis(), compiled.cost_analysis(), pod.chip
    cycles = sum(operation.cycles for operation in found)
    return Plan(
        topology=pod.topology,
        chips=len(pod.devices),
        batch=batch,
        work=work,
        compile_seconds=seconds,
        memory={
            "arguments": sizes.argument_size_in_bytes,
            "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
            "temporary": sizes.temp_size_in_bytes,
            "program": sizes.generated_code_size_in_bytes,
        },
        hbm=chip.hbm,
        flops=costs["flops"],
        cycles=cycles,
        seconds=cycles / chip.clock,
        peak=chip.peak,
        bytes_accessed=costs["bytes accessed"],
        byte_seconds=costs["bytes accessed"] / chip.bandwidth,
        collectives=collectives,
        collective_seconds=sum(collectives.values()) / chip.interconnect,
        unknown_loops=unknown,
        steps=steps,
        shares={by: shares(found, by) for by in ("stage", "direction", "kind")},
    )


@contextlib.contextmanager
def uncached():
    """Leaves JAX's cache on disk out: what is compiled for absent chips can be written to it, but never read."""
    name, before = "jax_enable_compilation_cache", jax.config.jax_enable_compilation_cache
    jax.config.update(name, False)
    reset_cache()  # it asks once a process whether it is on
    try:
        yield
    finally:
        jax.config.update(name, before)
        reset_cache()


def needed(error) -> str:
    """What the compiler says of memory that it has not, short.

    >>> needed("RESOURCE_EXHAUSTED: the total memory required (128.00G) exceeds available HBM (15.75G).")
    'the compiler needs 128.00G of 15.75G a chip'
    """
    sizes = _SIZES.search(str(error))
    return f"the compiler needs {sizes[1]} of {sizes[2]} a chip" if sizes else one_line(error)[:120]


def shares(found: list[Operation], by: str) -> dict[str, float]:
    """Of all cycles, by a field of `Operation`, largest first.

    >>> found = [Operation("a", 1, "stem", "forward", "other"), Operation("b", 3, "head", "forward", "other")]
    >>> shares(found, "stage")
    {'head': 0.75, 'stem': 0.25}
    """
    cycles = collections.Counter()
    for operation in found:
        cycles[getattr(operation, by)] += operation.cycles
    total = max(sum(cycles.values()), 1)
    return {name: count / total for name, count in cycles.most_common()}
