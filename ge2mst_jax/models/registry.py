"""The size tables and `create_model`."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ge2mst_jax.checks import one_line, shown
from ge2mst_jax.grouping import Scale, check_rates
from ge2mst_jax.models.e_spikeformer import ESpikeFormer
from ge2mst_jax.models.ge2mst import Ge2mST, StageSize
from ge2mst_jax.models.maxformer import MaxFormer
from ge2mst_jax.models.meta_spikeformer import MetaSpikeFormer
from ge2mst_jax.models.peer import Peer
from ge2mst_jax.models.qkformer import QKFormer
from ge2mst_jax.models.spike_driven_transformer import SpikeDrivenTransformer
from ge2mst_jax.models.spikformer import Spikformer
from ge2mst_jax.models.spikingresformer import SpikingResformer
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


class PeerSize(NamedTuple):
    """A published size of a peer.

    Args:
        family: its class.
        fields: what makes it that size.
        image: side of the images and classes of the data set that it was published for.
        published: parameters in millions as its authors give them, and who says so; none where no figure was seen.
        biased: regular expression of the synapses which there have a bias before their norm; it changes nothing and is
            not here. By default of none.
        differs: what else tells our count from the published one.
    """

    family: type[Peer]
    fields: dict
    image: tuple[int, int]
    published: float | None = None
    biased: str = "$^"
    differs: str = ""


_IMAGENET, _CIFAR10, _CIFAR100 = (224, 1000), (32, 10), (32, 100)
_OUT = r"attention_.*/out$|feed_forward_.*/(up|down)$"
_NO_NORMS = "the published figure leaves out the parameters of BatchNorm"


def _sizes(family: type[Peer], rows: dict[str, tuple], **common) -> dict[str, PeerSize]:
    return {name: PeerSize(family, *row, **common) for name, row in rows.items()}


#: Peers at the sizes that were published. Parameters: their papers, READMEs and code.
PEERS = {
    **_sizes(Spikformer, {
        "spikformer_8_384": (dict(dim=384, depth=8, heads=12), _IMAGENET, 16.81),
        "spikformer_8_512": (dict(dim=512, depth=8, heads=8), _IMAGENET, 29.68),
        "spikformer_10_512": (dict(dim=512, depth=10, heads=8), _IMAGENET, 36.01),
        "spikformer_8_768": (dict(dim=768, depth=8, heads=12), _IMAGENET, 66.34),
    }, biased=_OUT),
    **_sizes(Spikformer, {
        "spikformer_4_384": (dict(dim=384, depth=4, heads=12, pools="0011", normalize="cifar10"), _CIFAR10, 9.32),
    }, biased=r"attention_.*/(q|k|v|out)$|feed_forward_.*/(up|down)$"),
    **_sizes(SpikeDrivenTransformer, {
        "sdt_8_384": (dict(dim=384, depth=8), _IMAGENET, 16.81),
        "sdt_6_512": (dict(dim=512, depth=6), _IMAGENET),
        "sdt_8_512": (dict(dim=512, depth=8), _IMAGENET, 29.68),
        "sdt_10_512": (dict(dim=512, depth=10), _IMAGENET),
        "sdt_8_768": (dict(dim=768, depth=8), _IMAGENET, 66.34),
        "sdt_2_512": (dict(dim=512, depth=2, pools="0011", normalize="cifar100"), _CIFAR100, 10.28),
    }, biased=_OUT),
    **_sizes(MetaSpikeFormer, {
        "meta_spikeformer_8_256": (dict(dims=(64, 128, 256, 360)), _IMAGENET, 15.1),
        "meta_spikeformer_8_384": (dict(dims=(96, 192, 384, 480)), _IMAGENET, 31.3),
        "meta_spikeformer_8_512": (dict(dims=(128, 256, 512, 640)), _IMAGENET, 55.4),
    }, biased=r"^down_|forward_a.*/(up|down)$"),
    **_sizes(ESpikeFormer, {
        "e_spikeformer_t": (dict(dims=(24, 48, 96, 128)), _IMAGENET),
        "e_spikeformer_s": (dict(dims=(32, 64, 128, 192)), _IMAGENET, 5.1),
        "e_spikeformer_m": (dict(dims=(48, 96, 192, 240)), _IMAGENET, 10.0),
        "e_spikeformer_l": (dict(dims=(64, 128, 256, 360)), _IMAGENET, 19.0),
    }, biased=r"^down_|forward_a.*/(up|down)$"),
    **_sizes(QKFormer, {
        "qkformer_10_384": (dict(dim=384, heads=(6, 6, 6)), _IMAGENET, 16.47),
        "qkformer_10_512": (dict(dim=512, heads=(8, 8, 8)), _IMAGENET, 29.08),
        "qkformer_10_768": (dict(dim=768, heads=(12, 12, 12)), _IMAGENET, 64.96),
        "qkformer_4_384": (
            dict(dim=384, depths=(1, 1, 2), heads=(8, 8, 8), small=True, normalize="cifar100"), _CIFAR100, 6.74),
    }, biased=_OUT),
    **_sizes(MaxFormer, {
        "maxformer_10_384": (dict(dim=384, heads=6), _IMAGENET, 16.23),
        "maxformer_10_512": (dict(dim=512, heads=8), _IMAGENET, 28.65),
        "maxformer_10_768": (dict(dim=768, heads=12), _IMAGENET, 63.99),
        "maxformer_4_384": (
            dict(dim=384, depths=(1, 1, 2), heads=8, kernels=(0, 3), small=True, normalize="cifar10"), _CIFAR10, 6.57),
    }, biased=_OUT + "|depth_wise"),
    **_sizes(SpikingResformer, {
        "spikingresformer_ti": (dict(dims=(64, 192, 384), heads=(1, 3, 6)), _IMAGENET, 11.14),
        "spikingresformer_s": (dict(dims=(64, 256, 512), heads=(1, 4, 8)), _IMAGENET),
        "spikingresformer_m": (dict(dims=(64, 384, 768), heads=(1, 6, 12)), _IMAGENET, 35.52),
        "spikingresformer_l": (dict(dims=(128, 512, 1024), heads=(2, 8, 16)), _IMAGENET),
        "spikingresformer_cifar": (
            dict(dims=(64, 192, 384), heads=(1, 3, 6), small=True, normalize="cifar10"), _CIFAR10),
    }),
}  # fmt: skip
for _name in ("spikingresformer_ti", "spikingresformer_m"):
    PEERS[_name] = PEERS[_name]._replace(differs=_NO_NORMS)


def model_class(name: str) -> type:
    """The class of a network, by the name of its size.

    Raises:
        ValueError: an unknown name.

    >>> model_class("qkformer_4_384").__name__
    'QKFormer'
    """
    if not isinstance(name, str) or name not in {**SIZES, **PEERS}:
        peers = f"{len(PEERS)} peers, such as qkformer_4_384 (docs/peers.md)"
        raise ValueError(f"unknown model {shown(name)}: known are {', '.join(SIZES)} and {peers}")
    return PEERS[name].family if name in PEERS else Ge2mST


def fields_of(kind: type) -> tuple[str, ...]:
    """Names of a network's fields.

    >>> fields_of(model_class("ge2mst_s"))[:2]
    ('num_classes', 'stages')
    """
    return tuple(f.name for f in dataclasses.fields(kind) if f.name not in ("parent", "name"))


def create_model(name: str, **changes):
    """A network by the name of its size, with fields changed.

    Args:
        name: a key of `SIZES` or of `PEERS`.
        **changes: fields of `Ge2mST`, or of the peer's class; codes may be texts (`"2x2"`), `scales` texts
            (`("block1x7", "grid7x1")`), `lif` a dict of the fields of `LIFSettings`. `num_classes` is 10 unless given.

    Returns:
        A Linen module: `model.init(key, images)`, `model.apply(variables, images, train=...)`.

    Raises:
        ValueError: an unknown name or field, a field out of range, or bad text; one line that names the field.

    >>> model = create_model("ge2mst_nano", num_classes=10, code="2x3/1", neuron="expg")
    >>> model.code.max_level
    8
    """
    kind = model_class(name)
    known = fields_of(kind)
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} of {name}: known are {', '.join(known)}")
    size = PEERS[name].fields if name in PEERS else SIZES[name]
    fields = {"num_classes": 10, "dtype": "float32", **size, **changes}
    fields = {f: value.item() if isinstance(value, np.integer | np.bool_) else value for f, value in fields.items()}
    for name in fields.keys() & {"code", "qk_code"}:
        if not isinstance(fields[name], SpikeCode):
            fields[name] = SpikeCode.parse(fields[name])
    if isinstance(fields.get("lif"), dict):
        fields["lif"] = _settings(fields["lif"])
    check_dtype(fields["dtype"])
    fields["dtype"] = jnp.dtype(fields["dtype"])
    if kind is Ge2mST:
        fields["scales"] = _each(
            "scales", fields.get("scales", Ge2mST.scales), Scale, Scale.parse, "('block1x7', 'grid7x1')"
        )
        fields["attention_rates"] = check_rates(fields.get("attention_rates", Ge2mST.attention_rates))
        fields["stages"] = _each(
            "stages", fields["stages"], StageSize, _stage, "(('conv', 64, 2), ('attention', 128, 4))"
        )
    else:
        fields = {f: tuple(value) if isinstance(value, list) else value for f, value in fields.items()}
    return kind(**fields)


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


def model_fields(model) -> dict:
    """Every field of a network as JSON holds it; `create_model(name, **fields)` makes the network again.

    >>> model = create_model("ge2mst_nano", code="2x3/1")
    >>> create_model("ge2mst_nano", **model_fields(model)) == model
    True
    """
    return {name: _plain(name, getattr(model, name)) for name in fields_of(type(model))}


def _plain(name: str, value):
    if name == "dtype":
        return jnp.dtype(value).name
    if isinstance(value, SpikeCode | Scale):
        return str(value)
    if isinstance(value, tuple):
        return [_plain("", each) for each in value]
    if isinstance(value, StageSize):
        return list(dataclasses.astuple(value))
    return dataclasses.asdict(value) if isinstance(value, LIFSettings) else value
