"""What a training run is told."""

import dataclasses
from pathlib import Path, PurePath
from typing import Literal

from ge2mst_jax.checks import check_choice, check_number, check_whole, shown
from ge2mst_jax.data.augment import AugmentConfig
from ge2mst_jax.data.decode import DecodeConfig
from ge2mst_jax.data.source import ON_CORRUPT
from ge2mst_jax.folders import address, check_mounted
from ge2mst_jax.models import REMAT
from ge2mst_jax.nn import ATTENTIONS, NEURONS
from ge2mst_jax.spiking import LIFSettings

DTYPES = ("float32", "bfloat16")

_MOST = 2**31 - 1  # steps are counted in int32

#: Fields that are whole numbers: the smallest and the largest.
_WHOLE = dict(
    workers=(0, 1024), prefetch=(1, 1024), steps=(1, _MOST), batch_size=(1, 2**24), accumulate=(1, 2**16),
    seed=(0, 2**32 - 1), mesh_data=(-1, 2**20), mesh_model=(1, 2**20), fsdp_min_elements=(0, 2**62), keep=(1, 10**6),
    log_every_steps=(1, _MOST), extra_steps=(0, _MOST), num_processes=(1, 2**20), process_id=(0, 2**20 - 1),
)  # fmt: skip
#: Fields that are numbers: the smallest, the largest, and whether the smallest or the largest itself is left out.
_NUMBERS = dict(
    drop_path=(0, 1, "below"), epochs=(0, 1e9, "above"), base_learning_rate=(0, 1e6, "above"),
    final_learning_rate=(0, 1), warmup_epochs=(0, 1e9), weight_decay=(0, 1e6), clip_norm=(0, 1e12, "above"),
    label_smoothing=(0, 1, "below"), ema_decay=(0, 1, "below"), spike_budget=(0, 8, "above"),
    budget_gain=(0, 1e6, "above"), distill_weight=(0, 1),
    eval_every_epochs=(0, 1e9, "above"), checkpoint_every_epochs=(0, 1e9, "above"),
)  # fmt: skip
#: Fields of another kind: what they must be.
_KINDS = dict(
    data=str, data_dir=Path, decode=DecodeConfig, augment=AugmentConfig, model=str, code=str, qk_code=str,
    attention=str, local=bool, input_code=str, lif=LIFSettings, scales=tuple, init_from=Path, distill_from=Path,
    profile=bool, coordinator=str, freeze=str,
)  # fmt: skip
#: Fields that may be `None`.
_OPTIONAL = tuple(
    "data_dir steps freeze spike_budget init_from distill_from coordinator num_processes process_id".split()
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run; every field is an option of the command line."""

    data: str = "digits"
    """Data set: digits, idx:FOLDER, folder:FOLDER or tfds:NAME[:VERSION]."""
    data_dir: Path | None = None
    """Where TFDS sets lie; TFDS's own folder if none."""
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    """How image files become arrays (sets in memory stay as they are)."""
    on_corrupt: Literal["raise", "skip"] = "raise"
    """At an image that can't be decoded: stop, or skip and count it."""
    workers: int = 0
    """Processes that decode, on each host; 0 decodes in the prefetching thread."""
    prefetch: int = 2
    """Batches held ready on the devices."""
    augment: AugmentConfig = dataclasses.field(
        default_factory=lambda: AugmentConfig(randaugment_magnitude=3.0, randaugment_layers=1)
    )
    """What is done to images on the device."""

    model: str = "ge2mst_nano"
    """Name of the network's size."""
    code: str = "1x4"
    """Temporal grouping of every neuron but those of queries and keys, `GxK[/cap][+s1,...]`."""
    qk_code: str = "1x2"
    """Temporal grouping of the neurons of attention's queries and keys; 1x1 is binary."""
    neuron: str = "expg"
    """Kind of every neuron."""
    lif: LIFSettings = dataclasses.field(default_factory=LIFSettings)
    """What lif, plif and if neurons are set to."""
    attention: str = "gw_ssa"
    """Kind of attention: gw_ssa, ssa, sdsa, sdsa_v1 or qk_token."""
    local: bool = True
    """Whether a depth-wise convolution joins attention's current."""
    input_code: str = "1x8"
    """How the image is presented: 1x8 (bit planes) or direct (one multiply-accumulate pass)."""
    scales: tuple[str, ...] = ()
    """Token groups that the heads of gw_ssa share, such as block1x7 grid7x1; the model's own if none."""
    drop_path: float = 0.0
    """Probability that the last block's branch is dropped for an image; earlier blocks proportionally less."""
    remat: str = "none"
    """What a block's backward pass computes anew instead of keeping: none, or a policy of jax.checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the operands of products; parameters and currents are float32."""

    epochs: float = 36.0
    """Passes over the training images."""
    steps: int | None = None
    """Number of steps, in place of epochs."""
    extra_steps: int = 0
    """Steps after the last of the schedule, at its last learning rate; a finished run goes on for them."""
    batch_size: int = 64
    """Images of a global batch, over all devices and processes."""
    accumulate: int = 1
    """Parts of a batch whose gradients are averaged before the update, to save memory."""
    base_learning_rate: float = 0.016
    """AdamW's peak rate for a batch of 256: the peak is this times batch_size / 256."""
    final_learning_rate: float = 0.01
    """Where the cosine ends, as a share of the peak."""
    warmup_epochs: float = 1.0
    """Length of the linear warm-up."""
    weight_decay: float = 0.2
    """Of kernels alone: thresholds, gains, biases and leaks have none."""
    clip_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    ema_decay: float = 0.995
    """Of the moving average of parameters and BatchNorm statistics, which is evaluated, kept as best and deployed."""
    spike_budget: float | None = None
    """Mean spikes per neuron and image that the deployed network may spend; none leaves it free."""
    budget_gain: float = 5.0
    """Of the budget's controller: the spike penalty's weight for an error of 100 %."""
    init_from: Path | None = None
    """A run whose averaged parameters this one starts from (fine-tuning); a relu network becomes a spiking one, and the
    head starts anew where the classes are others."""
    freeze: str | None = None
    """Parameters that stay as they start: those in whose path this regular expression is found, such as ^stage_0/.
    BatchNorm's statistics follow the data all the same."""
    distill_from: Path | None = None
    """A run whose averaged network teaches this one: the logits that it gives each training image, as augmented."""
    distill_weight: float = 0.5
    """Share of the loss that is the distance to the teacher's logits; the rest is the labels'."""
    seed: int = 0
    """Of parameters, order and augmentation."""

    mesh_data: int = -1
    """Devices along the mesh's data axis; -1 is all that mesh_model leaves."""
    mesh_model: int = 1
    """Devices along the mesh's model axis."""
    fsdp_min_elements: int = 2**22
    """Arrays of at least this size are sharded along the data axis, which saves memory and costs time."""

    eval_every_epochs: float = 1.0
    """How often the averaged network is evaluated on the test split."""
    checkpoint_every_epochs: float = 5.0
    """How often a checkpoint is written, besides the last step's and the best."""
    keep: int = 2
    """Latest checkpoints kept; the best one is kept besides."""
    log_every_steps: int = 20
    """How often a line is printed where there is no terminal."""
    profile: bool = False
    """Write a trace of steps 10 to 14 into the run's folder."""

    coordinator: str | None = None
    """Address host:port of process 0; or the environment's JAX_COORDINATOR_ADDRESS; auto asks the cloud's metadata."""
    num_processes: int | None = None
    """Number of processes; or the environment's JAX_NUM_PROCESSES."""
    process_id: int | None = None
    """Which one this is; or the environment's JAX_PROCESS_ID."""

    def __post_init__(self):
        check_mounted("data_dir", self.data_dir)
        if isinstance(self.data_dir, str):
            object.__setattr__(self, "data_dir", Path(self.data_dir))
        if isinstance(self.scales, list):
            object.__setattr__(self, "scales", tuple(self.scales))
        for name in ("init_from", "distill_from"):
            if isinstance(getattr(self, name), str | PurePath):
                object.__setattr__(self, name, address(getattr(self, name), name))
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in given.items():
            if value is None and name in _OPTIONAL:
                continue
            if name in _WHOLE:
                object.__setattr__(self, name, check_whole(name, value, *_WHOLE[name]))
            elif name in _NUMBERS:
                low, high, *ends = _NUMBERS[name]
                object.__setattr__(self, name, check_number(name, value, low, high, **dict.fromkeys(ends, True)))
            elif name in _KINDS and not isinstance(value, PurePath if _KINDS[name] is Path else _KINDS[name]):
                raise ValueError(f"{name} is {shown(value)}: it must be a {_KINDS[name].__name__}")
        choices = dict(on_corrupt=ON_CORRUPT, neuron=NEURONS, attention=ATTENTIONS, remat=REMAT, dtype=DTYPES)
        for name, known in choices.items():
            check_choice(name, given[name], known)
        for scale in self.scales:
            if not isinstance(scale, str):
                raise ValueError(f"scales holds {shown(scale)}: it must be texts such as block1x7")
        if self.mesh_data == 0:
            raise ValueError("mesh_data is 0: it must be at least 1, or -1 for all devices")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate is {self.accumulate}: it must divide batch_size {self.batch_size}")
        if self.extra_steps and not self.final_learning_rate:
            raise ValueError("extra_steps: final_learning_rate is 0, so that they would train nothing: leave them out")
        if self.spike_budget is not None and self.neuron == "relu":
            raise ValueError("spike_budget: relu sends real numbers, not spikes; leave the budget out")

    @property
    def learning_rate(self) -> float:
        """The peak: `base_learning_rate · batch_size / 256`.

        >>> TrainConfig(batch_size=512, base_learning_rate=6e-4).learning_rate
        0.0012
        """
        return self.base_learning_rate * self.batch_size / 256

    def in_steps(self, epochs: float, examples: int) -> int:
        """A length in epochs as whole steps."""
        return round(epochs * examples / self.batch_size)

    def num_steps(self, examples: int) -> int:
        """Of the learning rate's schedule, at least 1; `extra_steps` come after them.

        Raises:
            ValueError: more than can be counted.
        """
        steps = self.steps if self.steps is not None else max(1, self.in_steps(self.epochs, examples))
        if steps + self.extra_steps > _MOST:
            name = "epochs" if self.steps is None else "steps"
            raise ValueError(
                f"{name} is {getattr(self, name)} and extra_steps {self.extra_steps}: that is "
                f"{steps + self.extra_steps} steps, more than {_MOST}"
            )
        return steps


def as_json(config: TrainConfig) -> dict:
    """A config as JSON holds it.

    >>> as_json(TrainConfig())["augment"]["randaugment_layers"]
    1
    """
    plain = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, PurePath) else value for key, value in plain.items()} | {
        "scales": list(config.scales)
    }


#: Fields that runs of earlier versions do not have, and what those did.
BEFORE = {
    "qk_code": "1x1", "attention": "gw_ssa", "local": True, "distill_from": None, "distill_weight": 0.5,
    "freeze": None, "extra_steps": 0,
    "lif": {"tau": 2.0, "threshold": 1.0, "reset": "soft", "surrogate": "triangle", "width": 1.0},
}  # fmt: skip


def from_json(fields: dict) -> TrainConfig:
    """The config that `as_json` was given; fields that this version does not know, or that are missing, are refused,
    but for those of `BEFORE`.

    Raises:
        ValueError: names the field.

    >>> from_json(as_json(TrainConfig(seed=3, scales=("block2",)))) == TrainConfig(seed=3, scales=("block2",))
    True
    """
    fields = BEFORE | fields if isinstance(fields, dict) else fields
    _check_fields("the run's config", fields, TrainConfig)
    parts = {"augment": AugmentConfig, "decode": DecodeConfig, "lif": LIFSettings}
    for name, kind in parts.items():
        _check_fields(f"the run's {name}", fields[name], kind)
    return TrainConfig(**fields | {name: kind(**fields[name]) for name, kind in parts.items()})


def _check_fields(what: str, fields, kind) -> None:
    """Raises a `ValueError` unless `fields` is a dict with the fields of a dataclass, all of them and no other."""
    if not isinstance(fields, dict):
        raise ValueError(f"{what} is {shown(fields)}: it must be an object with the fields of {kind.__name__}")
    known = {f.name for f in dataclasses.fields(kind)}
    for name in sorted(map(str, set(fields) - known)):
        raise ValueError(f"{what} has the field {shown(name)}, which this version does not know")
    for name in sorted(known - set(fields)):
        raise ValueError(f"{what} lacks the field {name!r}: another version of this package wrote it")
