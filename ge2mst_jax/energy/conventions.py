"""Energy conventions as data: what is counted, at what price, and what is left out."""

import dataclasses

from ge2mst_jax.checks import check_choice, check_number, check_whole, shown
from ge2mst_jax.energy.synops import LayerCount, SpikeCounter

_NEVER = "neuron updates, bias and residual additions, memory traffic"


@dataclasses.dataclass(frozen=True)
class Convention:
    """How counts become energy. A weighted spike is one operation.

    Args:
        name: as printed.
        mac_pj, ac_pj: picojoules of a multiply-accumulate and of an accumulate (45 nm, 32-bit float).
        connections: `"present"`: exact synops, borders and strides included; or `"padded"`: `fr · T · FLOPs`, the rate
            of a layer's input times the operations of one dense pass, zeros of padding multiplied too.
        stem: `"macs"` (one analog pass), `"macs_each_step"` (one a time step), `"as_run"` or `"left_out"`.
        head: whether the classifier is counted.
        leaves_out: in words.
        source: where the convention is from.

    Raises:
        ValueError: a price that is none, unknown connections or stem, a head that is neither true nor false.
    """

    name: str
    mac_pj: float
    ac_pj: float
    connections: str
    stem: str
    head: bool
    leaves_out: str
    source: str

    def __post_init__(self):
        for price in ("mac_pj", "ac_pj"):
            check_number(price, getattr(self, price), 0, 1e6)
        check_choice("connections", self.connections, ("present", "padded"))
        check_choice("stem", self.stem, ("macs", "macs_each_step", "as_run", "left_out"))
        if not isinstance(self.head, bool):
            raise ValueError(f"head is {shown(self.head)}: it must be True or False")


CONVENTIONS = {
    "field": Convention(
        "field", 4.6, 0.9, "padded", "macs", True, _NEVER,
        "Spikformer (Zhou et al., ICLR 2023): 4.6 pJ · FLOPs(stem) + 0.9 pJ · Σ fr·T·FLOPs, prices of Horowitz 2014; "
        "attention as Spikingformer's counter has it: the first product at the lower of both rates",
    ),
    "field_each_step": Convention(
        "field_each_step", 4.6, 0.9, "padded", "macs_each_step", True, _NEVER,
        "field, with the analog stem charged at every time step: Spike-driven Transformer's habit (Yao et al., 2023)",
    ),
    "lab": Convention(
        "lab", 4.6, 0.9, "present", "left_out", False, f"stem, head, {_NEVER}",
        "SpikingResformer's monitor (Shi et al., CVPR 2024): 0.9 pJ · synops without first convolution and classifier",
    ),
    "exact": Convention(
        "exact", 4.6, 0.9, "present", "as_run", True, _NEVER,
        "ours: every synop that our counts see, at connections that are there, the stem as it really runs",
    ),
}  # fmt: skip


def energy(counter: SpikeCounter, convention: Convention, num_steps: int) -> dict:
    """Mean energy of one image, by layer, in millijoules.

    `E = Σ_layers (mac_pJ · MACs + ac_pJ · synops) · 1e-9 mJ / images`. A layer that receives real numbers (`relu`
    networks) is charged the multiply-accumulates of its dense pass, whatever the convention.

    Args:
        counter: exact counts over at least one image.
        convention: one of `CONVENTIONS`.
        num_steps: `T`, for conventions that charge the stem at every step.

    Returns:
        `{stem_mj, total_mj, convention, layers: [{name, role, synops, macs, mj}]}`, counts being means per image
        (`macs` only where they are charged).

    Raises:
        ValueError: no image was counted, or a number of steps that is none.
    """
    check_whole("num_steps", num_steps, 1, 255)
    if not counter.images:
        raise ValueError("no images were counted: energy is a mean over at least one")
    layers = []
    for layer in counter.layers.values():
        if (layer.role == "stem" and convention.stem == "left_out") or (layer.role == "head" and not convention.head):
            continue
        synops, macs = charged(layer, counter, convention, num_steps)
        mj = (convention.mac_pj * macs + convention.ac_pj * synops) * 1e-9
        layers.append({"name": layer.name, "role": layer.role, "synops": synops, "macs": macs, "mj": mj})
    return {
        "stem_mj": sum(layer["mj"] for layer in layers if layer["role"] == "stem"),
        "total_mj": sum(layer["mj"] for layer in layers),
        "convention": dataclasses.asdict(convention),
        "layers": layers,
    }


def charged(layer: LayerCount, counter: SpikeCounter, convention: Convention, num_steps: int) -> tuple[float, float]:
    """`(synops, macs)` of one image that a convention charges a layer."""
    padded = convention.connections == "padded"
    macs = float(layer.dense_macs) if padded else layer.macs / counter.images
    if layer.role == "stem" and convention.stem in ("macs", "macs_each_step"):
        return 0.0, macs * (num_steps if convention.stem == "macs_each_step" else 1)
    if layer.real:
        return 0.0, macs
    if not padded:
        return layer.synops / counter.images, 0.0
    return sum(macs * counter.spikes_together(operands) for macs, operands in layer.products), 0.0
