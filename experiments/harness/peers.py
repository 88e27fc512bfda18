"""Published networks beside ours: training and inference in JAX and, as SpikingJelly has them, in PyTorch."""

import functools

import numpy as np
from rich.table import Table

from ge2mst_jax.convert.deploy import forward
from harness import pytorch
from harness.sizes import size_of
from harness.timing import (
    medians,
    one_core_clock,
    plain_config,
    random_batch,
    random_network,
    temporary_bytes,
    training_step,
)

#: Sizes that are measured, and the side of their images: of 32x32 pixels, networks made for ImageNet leave 4 tokens.
PEER_SIDES = {
    "spikformer_4_384": 32,
    "sdt_2_512": 32,
    "qkformer_4_384": 32,
    "maxformer_4_384": 32,
    "spikingresformer_cifar": 32,
    "qkformer_10_384": 64,
    "meta_spikeformer_8_256": 64,
    "e_spikeformer_s": 64,
}


def beside_peers(ours: str, sides: dict[str, int], batch_size: int, rounds: int, in_pytorch: bool) -> dict:
    """Figures of our network and of peers, by the side of their images.

    Args:
        ours: name of our network, which takes turns with every peer; its own figures are the medians over them.
        sides: name of a peer to the side of its images.
        batch_size: images at a time.
        rounds: turns.
        in_pytorch: whether PyTorch takes turns too, where SpikingJelly has the network.

    Returns:
        `clock` (the function by whose seconds, see `one_core_clock`), `batch_size` and `rows`: of each network what it
        is, seconds of `training` and of `inference`, and `bytes` of training, by framework.
    """
    rows = []
    for side in sorted(set(sides.values())):
        own, calls = in_jax(ours, side, batch_size)
        beside = [
            peer_row(name, side, batch_size, rounds, in_pytorch, {ours: calls})
            for name, of_peer in sides.items()
            if of_peer == side
        ]
        for work in calls:
            own[work] = {"jax": float(np.median([row[work][ours] for row in beside]))}
        rows += [own, *beside]
    return {"clock": one_core_clock().__name__, "batch_size": batch_size, "rows": rows}


def in_jax(name: str, side: int, batch_size: int) -> tuple[dict, dict]:
    """What a network is and needs, and calls of its training step and of its inference."""
    shape = (side, side, 3)
    compiled, step = training_step(plain_config(name, batch_size), shape)
    images, _ = random_batch(batch_size, shape)
    parameters, multiply_adds, steps = size_of(name, shape, pytorch.CLASSES)
    about = {
        "model": name, "image_size": side, "steps": steps, "parameters": parameters, "multiply_adds": multiply_adds,
        "bytes": {"jax": temporary_bytes(compiled)},
    }  # fmt: skip
    return about, {"training": step, "inference": functools.partial(forward, *random_network(name, images), images)}


def peer_row(name: str, side: int, batch_size: int, rounds: int, in_pytorch: bool, ours: dict[str, dict]) -> dict:
    """A peer in turns with the calls of ours, and with PyTorch's."""
    row, calls = in_jax(name, side, batch_size)
    turns = ours | {"jax": calls}
    if in_pytorch and name in pytorch.NETWORKS:
        row["bytes"]["pytorch"] = pytorch.training_bytes(name, side, batch_size)
        makers = {"training": pytorch.training, "inference": pytorch.inference}
        turns["pytorch"] = {work: make(name, side, batch_size) for work, make in makers.items()}
    for work in calls:
        row[work] = medians({of: made[work] for of, made in turns.items()}, rounds, one_core_clock())
    return row


def peers_table(found: dict, made: dict) -> Table:
    """The rows of `beside_peers`, with a second line where PyTorch ran."""
    second = "CPU second" if made["clock"] == "process_time" else "second"
    table = Table(title=f"images a {second}, and MiB of training, batch {made['batch_size']}")
    table.add_column("network", overflow="fold")
    for column in ("side", "parameters", "multiply-adds", "training", "inference", "MiB"):
        table.add_column(column, justify="right")
    for row in made["rows"]:
        size = (f"{row['parameters'] / 1e6:.2f} M", f"{row['multiply_adds'] / 1e6:.0f} M")
        about = {"jax": (row["model"], str(row["image_size"]), *size), "pytorch": ("  in PyTorch", "", "", "")}
        for framework, needed in row["bytes"].items():
            speeds = (f"{made['batch_size'] / row[work][framework]:.2f}" for work in ("training", "inference"))
            table.add_row(*about[framework], *speeds, f"{needed / 2**20:.0f}")
    return table
