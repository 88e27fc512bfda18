"""Energy conventions as data: what is counted, at what price, and what is left out."""

import dataclasses

from ge2mst_jax.energy.synops import SpikeCounter

_NEVER = "neuron updates, bias and residual additions, memory traffic"


@dataclasses.dataclass(frozen=True)
class Convention:
    """How counts become energy. A weighted spike is one operation.

    Args:
        name: as printed.
        mac_pj, ac_pj: picojoules of a multiply-accumulate and of an accumulate (45 nm, 32-bit float).
        stem: `"macs_each_step"` (one analog pass a time step), `"as_run"` or `"left_out"`.
        head: whether the classifier is counted.
        leaves_out: in words.
        source: where the convention is from.
    """

    name: str
    mac_pj: float
    ac_pj: float
    stem: str
    head: bool
    leaves_out: str
    source: str


CONVENTIONS = {
    "field": Convention(
        "field", 4.6, 0.9, "macs_each_step", True, _NEVER,
        "4.6 pJ per MAC of the analog stem x T, 0.9 pJ per synop: the Spikformer line's habit (Horowitz 2014's prices)",
    ),
    "lab": Convention(
        "lab", 4.6, 0.9, "left_out", False, f"stem, head, {_NEVER}",
        "0.9 pJ x synops without first convolution and head, as SpikingResformer's monitor counts",
    ),
    "exact": Convention(
        "exact", 4.6, 0.9, "as_run", True, _NEVER,
        "every synop that our counts see, the stem as it really runs",
    ),
}  # fmt: skip


def energy(counter: SpikeCounter, convention: Convention, num_steps: int) -> dict:
    """Mean energy of one image, by layer, in millijoules.

    `E = Σ_layers (mac_pJ · MACs + ac_pJ · synops) · 1e-9 mJ / images`.

    Args:
        counter: exact counts over at least one image.
        convention: one of `CONVENTIONS`.
        num_steps: `T`, for conventions that charge the stem at every step.

    Returns:
        `{stem_mj, total_mj, convention, layers: [{name, role, synops, macs, mj}]}`, counts being means per image
        (`macs` only where they are charged).

    Raises:
        ValueError: no image was counted.
    """
    if not counter.images:
        raise ValueError("no images were counted: energy is a mean over at least one")
    layers = []
    for layer in counter.layers.values():
        synops, macs = layer.synops, 0
        if layer.role == "stem":
            if convention.stem == "left_out":
                continue
            if convention.stem == "macs_each_step":
                synops, macs = 0, layer.macs * num_steps
            elif not layer.coded:
                macs = layer.macs
        if layer.role == "head" and not convention.head:
            continue
        mj = (convention.mac_pj * macs + convention.ac_pj * synops) * 1e-9 / counter.images
        layers.append(
            {
                "name": layer.name,
                "role": layer.role,
                "synops": synops / counter.images,
                "macs": macs / counter.images,
                "mj": mj,
            }
        )
    return {
        "stem_mj": sum(layer["mj"] for layer in layers if layer["role"] == "stem"),
        "total_mj": sum(layer["mj"] for layer in layers),
        "convention": dataclasses.asdict(convention),
        "layers": layers,
    }
