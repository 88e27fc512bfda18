"""A plan: what the TPU's compiler makes of a config's train step on a pod that is not there."""

import collections
import dataclasses
import time

import jax

from ge2mst_jax.checks import check_whole
from ge2mst_jax.plan.chips import Chip
from ge2mst_jax.plan.program import Work, read_program
from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.setup import set_up
from ge2mst_jax.train.sharding import make_mesh

#: Of data sets that configs name (Fashion-MNIST by its folder, or as TFDS has it): image shape (`None` for image files,
#: which are decoded to `decode.image_size`), classes, training images.
DATASETS = {
    "digits": ((8, 8, 1), 10, 1_437),
    "fashion-mnist": ((28, 28, 1), 10, 60_000),
    "fashion_mnist": ((28, 28, 1), 10, 60_000),
    "cifar10": ((32, 32, 3), 10, 50_000),
    "cifar100": ((32, 32, 3), 100, 50_000),
    "imagenette": (None, 10, 9_469),
    "imagenet2012": (None, 1_000, 1_281_167),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a compiled train step would cost. Every figure is the compiler's estimate, none was measured on a chip.

    Args:
        topology, chips, batch: of the pod, and the global batch.
        compile_seconds: on this machine.
        memory: bytes a chip, by what takes them: `arguments` (state and batch), `temporary`, `program`.
        hbm: bytes that a chip has.
        flops: a step and chip, of matrix products and everything else, as the compiler counts them.
        cycles: a step and chip, of all operations with an estimate, loops as often as they turn.
        seconds: of a step, `cycles` over the chip's clock.
        peak: operations a second of a chip.
        collectives: bytes a step and chip, by kind.
        collective_seconds: those bytes over the links' bandwidth, as if nothing else ran meanwhile.
        unknown_loops: whose turns the compiler does not say: they count once.
        steps: of the recipe.
        shares: of the cycles, by `stage`, `direction` and `kind`.
    """

    topology: str
    chips: int
    batch: int
    compile_seconds: float
    memory: dict[str, int]
    hbm: float
    flops: float
    cycles: int
    seconds: float
    peak: float
    collectives: dict[str, int]
    collective_seconds: float
    unknown_loops: int
    steps: int
    shares: dict[str, dict[str, float]]

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
        return sum(self.memory.values()) <= self.hbm

    @property
    def share_of_peak(self) -> float:
        """`flops / (seconds · peak)`."""
        return self.flops / (self.seconds * self.peak)

    @property
    def images_per_second(self) -> float:
        """Of a chip."""
        return self.batch / self.chips / self.seconds

    @property
    def hours(self) -> float:
        """Of the recipe, evaluation and input left out."""
        return self.steps * self.seconds / 3600

    def as_dict(self) -> dict:
        """For JSON."""
        derived = ("fits", "share_of_peak", "images_per_second", "hours")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def shape_of(config: TrainConfig) -> tuple[tuple[int, int, int], int, int]:
    """Image shape, classes and training images of a config's data, which need not be there.

    Raises:
        ValueError: data that no table knows, and folders, whatever their names.

    >>> shape_of(TrainConfig(data="tfds:imagenet2012"))
    ((224, 224, 3), 1000, 1281167)
    """
    kind, _, rest = config.data.rpartition(":")
    name = rest.rstrip("/").rpartition("/")[2] if kind == "idx" else rest.partition("/")[0]
    if kind == "folder" or name not in DATASETS:
        raise ValueError(
            f"data is {config.data!r}: of what it holds a plan knows nothing; it knows {', '.join(DATASETS)}"
        )
    shape, classes, examples = DATASETS[name]
    side = config.decode.image_size
    return shape or (side, side, 3), classes, examples


def lower_step(config: TrainConfig, devices, image_shape, classes: int, examples: int):
    """The train step of a config, lowered for devices that need not be there."""
    mesh = make_mesh(config.mesh_data, config.mesh_model, devices)
    setup = set_up(config, image_shape, classes, examples, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return setup.step.lower(setup.abstract_state, setup.abstract_batch(), key)


def make_plan(config: TrainConfig, topology: str, chip: Chip, devices, data=None) -> Plan:
    """Compiles a config's train step for a pod and reads what the compiler says of it; minutes.

    Args:
        config: its `batch_size` is the pod's.
        topology, chip, devices: from `open_topology`.
        data: image shape, classes and examples, if not those of `shape_of`.

    Raises:
        ValueError: a batch that the pod cannot share, unknown data.
    """
    image_shape, classes, examples = data or shape_of(config)
    check_whole("batch_size", config.batch_size, 1, 2**24)
    lowered = lower_step(config, devices, image_shape, classes, examples)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    found, collectives, unknown = read_program(compiled.as_text())
    sizes = compiled.memory_analysis()
    cycles = sum(work.cycles for work in found)
    return Plan(
        topology=topology,
        chips=len(devices),
        batch=config.batch_size,
        compile_seconds=seconds,
        memory={
            "arguments": sizes.argument_size_in_bytes,
            "temporary": sizes.temp_size_in_bytes,
            "program": sizes.generated_code_size_in_bytes,
        },
        hbm=chip.hbm,
        flops=compiled.cost_analysis()["flops"],
        cycles=cycles,
        seconds=cycles / chip.clock,
        peak=chip.peak,
        collectives=collectives,
        collective_seconds=sum(collectives.values()) / chip.interconnect,
        unknown_loops=unknown,
        steps=config.num_steps(examples),
        shares={by: shares(found, by) for by in ("stage", "direction", "kind")},
    )


def shares(found: list[Work], by: str) -> dict[str, float]:
    """Of all cycles, by a field of `Work`, largest first.

    >>> shares([Work("a", 1, "stem", "forward", "other"), Work("b", 3, "head", "forward", "other")], "stage")
    {'head': 0.75, 'stem': 0.25}
    """
    cycles = collections.Counter()
    for work in found:
        cycles[getattr(work, by)] += work.cycles
    total = max(sum(cycles.values()), 1)
    return {name: count / total for name, count in cycles.most_common()}
