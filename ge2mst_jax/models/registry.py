"""The size table and `create_model`."""

import dataclasses

import jax.numpy as jnp

from ge2mst_jax.grouping import Scale
from ge2mst_jax.models.ge2mst import REMAT, Ge2mST, StageSize
from ge2mst_jax.nn import CAPTURES, EXECUTIONS, INPUT_CODES, NEURONS
from ge2mst_jax.spiking import SpikeCode


def _stages(*rows):
    return tuple(StageSize(*row) for row in rows)


#: Our sizes: near the peers' 11, 29 and 64 M parameters at 224×224, 6.5 M at 32×32. The paper's are not public.
SIZES = {
    "ge2mst_nano": dict(
        stages=_stages(("conv", 24, 1), ("attention", 48, 2)),
        head_width=12,
        scales=(Scale("block", 2), Scale("grid", 2)),
        group_width=32,
    ),
    "ge2mst_cifar": dict(
        stages=_stages(("conv", 64, 1), ("conv", 128, 2), ("attention", 256, 5)),
        scales=(Scale("block", 4), Scale("grid", 4)),
    ),
    "ge2mst_s": dict(
        stages=_stages(("conv", 64, 1), ("conv", 128, 2), ("attention", 256, 4), ("attention", 384, 2)),
        stem_kernel=7,
        stem_stride=4,
    ),
    "ge2mst_b": dict(
        stages=_stages(("conv", 96, 3), ("conv", 192, 3), ("attention", 384, 8), ("attention", 512, 2)),
        stem_kernel=7,
        stem_stride=4,
    ),
    "ge2mst_l": dict(
        stages=_stages(("conv", 128, 2), ("conv", 256, 2), ("attention", 512, 11), ("attention", 768, 3)),
        stem_kernel=7,
        stem_stride=4,
    ),
}
_FIELDS = tuple(f.name for f in dataclasses.fields(Ge2mST) if f.name not in ("parent", "name"))


def create_model(name: str, **changes) -> Ge2mST:
    """A network by the name of its size, with fields changed.

    Args:
        name: a key of `SIZES`.
        **changes: fields of `Ge2mST`; `code` may be text (`"2x2"`), `scales` texts (`("block7", "grid7")`).
            `num_classes` is 10 unless given.

    Returns:
        A Linen module: `model.init(key, images)`, `model.apply(variables, images, train=...)`.

    Raises:
        ValueError: an unknown name, field, neuron, input code, or bad text; the message lists what is known.

    >>> model = create_model("ge2mst_nano", num_classes=10, code="2x3/1", neuron="expg")
    >>> model.code.max_level
    8
    """
    if name not in SIZES:
        raise ValueError(f"unknown model {name!r}: known are {', '.join(SIZES)}")
    unknown = sorted(set(changes) - set(_FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} of {name}: known are {', '.join(_FIELDS)}")
    fields = {"num_classes": 10, **SIZES[name], **changes}
    if not isinstance(fields.get("code", SpikeCode(2, 2)), SpikeCode):
        fields["code"] = SpikeCode.parse(fields["code"])
    fields["scales"] = tuple(s if isinstance(s, Scale) else Scale.parse(s) for s in fields.get("scales", Ge2mST.scales))
    fields["stages"] = tuple(s if isinstance(s, StageSize) else StageSize(*s) for s in fields["stages"])
    for field, known in (
        ("neuron", NEURONS),
        ("input_code", INPUT_CODES),
        ("execution", EXECUTIONS),
        ("capture", CAPTURES),
        ("remat", REMAT),
    ):
        if field in fields and fields[field] not in known:
            raise ValueError(f"unknown {field} {fields[field]!r}: known are {', '.join(known)}")
    if not isinstance(fields["num_classes"], int) or fields["num_classes"] < 1:
        raise ValueError(f"num_classes is {fields['num_classes']!r}: it must be a whole number, at least 1")
    if not 0 <= fields.get("drop_path", 0.0) < 1:
        raise ValueError(f"drop_path is {fields['drop_path']}: it must be at least 0 and below 1")
    for stage in fields["stages"]:
        width = fields.get("head_width", Ge2mST.head_width)
        if stage.kind not in ("conv", "attention"):
            raise ValueError(f"unknown stage kind {stage.kind!r}: known are conv, attention")
        if stage.kind == "attention" and stage.channels % (width * len(fields["scales"])):
            raise ValueError(
                f"an attention stage of {stage.channels} channels cannot give equal shares of heads "
                f"of width {width} to {len(fields['scales'])} scales"
            )
    fields["dtype"] = jnp.dtype(fields.get("dtype", "float32"))
    return Ge2mST(**fields)


def model_fields(model: Ge2mST) -> dict:
    """Every field of a network as JSON holds it; `create_model(name, **fields)` makes the network again.

    >>> model = create_model("ge2mst_nano", code="2x3/1")
    >>> create_model("ge2mst_nano", **model_fields(model)) == model
    True
    """
    fields = {name: getattr(model, name) for name in _FIELDS}
    return fields | {
        "code": str(model.code),
        "scales": [str(scale) for scale in model.scales],
        "stages": [list(dataclasses.astuple(stage)) for stage in model.stages],
        "dtype": jnp.dtype(model.dtype).name,
    }
