"""The size table and `create_model`."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ge2mst_jax.checks import check_choice, one_line, shown
from ge2mst_jax.grouping import Scale, check_rates
from ge2mst_jax.models.ge2mst import Ge2mST, StageSize
from ge2mst_jax.nn.wire import check_dtype
from ge2mst_jax.spiking import LIFSettings, SpikeCode


def _stages(*rows):
    return tuple(StageSize(*row) for row in rows)


#: Our sizes: near the peers' 11, 29 and 64 M parameters at 224×224, 6.5 M at 32×32. The paper's are not public. Token
#: groups of 7 or 8 make attention cheaper in synops than full attention in its cheaper order; see `keys_first`.
SIZES = {
    "ge2mst_nano": dict(
        stages=_stages(("conv", 24, 1), ("attention", 48, 2)),
        head_width=24,
        scales=(Scale("block", 2), Scale("grid", 2)),
        group_width=32,
    ),
    "ge2mst_cifar": dict(
        stages=_stages(("conv", 64, 1), ("conv", 128, 2), ("attention", 256, 5)),
        scales=(Scale("block", (2, 4)), Scale("grid", (4, 2))),
    ),
    "ge2mst_s": dict(
        stages=_stages(("conv", 64, 1), ("conv", 128, 2), ("attention", 256, 4), ("attention", 384, 2)),
        head_width=64,
        stem_kernel=7,
        stem_stride=4,
    ),
    "ge2mst_b": dict(
        stages=_stages(("conv", 96, 3), ("conv", 192, 3), ("attention", 384, 8), ("attention", 512, 2)),
        head_width=64,
        stem_kernel=7,
        stem_stride=4,
    ),
    "ge2mst_l": dict(
        stages=_stages(("conv", 128, 2), ("conv", 256, 2), ("attention", 512, 11), ("attention", 768, 3)),
        head_width=64,
        stem_kernel=7,
        stem_stride=4,
    ),
}
_FIELDS = tuple(f.name for f in dataclasses.fields(Ge2mST) if f.name not in ("parent", "name"))


def create_model(name: str, **changes) -> Ge2mST:
    """A network by the name of its size, with fields changed.

    Args:
        name: a key of `SIZES`.
        **changes: fields of `Ge2mST`; codes may be texts (`"2x2"`), `scales` texts (`("block1x7", "grid7x1")`), `lif`
            a dict of the fields of `LIFSettings`. `num_classes` is 10 unless given.

    Returns:
        A Linen module: `model.init(key, images)`, `model.apply(variables, images, train=...)`.

    Raises:
        ValueError: an unknown name or field, a field out of range, or bad text; one line that names the field.

    >>> model = create_model("ge2mst_nano", num_classes=10, code="2x3/1", neuron="expg")
    >>> model.code.max_level
    8
    """
    check_choice("model", name, SIZES)
    unknown = sorted(set(changes) - set(_FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} of {name}: known are {', '.join(_FIELDS)}")
    fields = {"num_classes": 10, "dtype": "float32", **SIZES[name], **changes}
    fields = {f: value.item() if isinstance(value, np.integer | np.bool_) else value for f, value in fields.items()}
    for name in fields.keys() & {"code", "qk_code"}:
        if not isinstance(fields[name], SpikeCode):
            fields[name] = SpikeCode.parse(fields[name])
    fields["scales"] = _each(
        "scales", fields.get("scales", Ge2mST.scales), Scale, Scale.parse, "('block1x7', 'grid7x1')"
    )
    fields["attention_rates"] = check_rates(fields.get("attention_rates", Ge2mST.attention_rates))
    fields["stages"] = _each("stages", fields["stages"], StageSize, _stage, "(('conv', 64, 2), ('attention', 128, 4))")
    if isinstance(fields.get("lif"), dict):
        fields["lif"] = _settings(fields["lif"])
    check_dtype(fields["dtype"])
    fields["dtype"] = jnp.dtype(fields["dtype"])
    return Ge2mST(**fields)


def _each(name: str, values, kind, make, example: str) -> tuple:
    if not isinstance(values, tuple | list):
        raise ValueError(f"{name} is {shown(values)}: it must be a tuple such as {example}")
    return tuple(value if isinstance(value, kind) else make(value) for value in values)


def _settings(fields: dict) -> LIFSettings:
    try:
        return LIFSettings(**fields)
    except TypeError as error:
        raise ValueError(f"lif is {shown(fields)}: {one_line(error)}") from error


def _stage(row) -> StageSize:
    if not isinstance(row, tuple | list) or len(row) != 3:
        raise ValueError(f"a stage is {shown(row)}: it must be (kind, channels, depth), such as ('conv', 64, 2)")
    return StageSize(*row)


def model_fields(model: Ge2mST) -> dict:
    """Every field of a network as JSON holds it; `create_model(name, **fields)` makes the network again.

    >>> model = create_model("ge2mst_nano", code="2x3/1")
    >>> create_model("ge2mst_nano", **model_fields(model)) == model
    True
    """
    fields = {name: getattr(model, name) for name in _FIELDS}
    return fields | {
        "code": str(model.code),
        "qk_code": str(model.qk_code),
        "scales": [str(scale) for scale in model.scales],
        "stages": [list(dataclasses.astuple(stage)) for stage in model.stages],
        "dtype": jnp.dtype(model.dtype).name,
        "attention_rates": list(model.attention_rates),
        "lif": dataclasses.asdict(model.lif),
    }
