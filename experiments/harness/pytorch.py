"""Peers as SpikingJelly has them, in PyTorch: what is timed beside our networks (extra `peer`)."""

import importlib
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

#: Sizes that SpikingJelly has: module under `activation_based.model`, maker, and what makes it that size.
NETWORKS = {
    "spikformer_4_384": ("spikformer", "spikformer_cifar10", {}),
    "sdt_2_512": (
        "spike_driven_transformer", "SpikeDrivenTransformer", dict(embed_dims=512, depths=2, pooling_stat="0011"),
    ),
    "qkformer_10_384": ("qkformer", "qkformer_10_384", {}),
    "maxformer_4_384": ("maxformer", "maxformer_cifar", {}),
}  # fmt: skip
#: As ours have them in the benchmark.
STEPS, CLASSES = 4, 10


def import_pytorch():
    """`(torch, SpikingJelly's functional)`; PyTorch gets as many threads as there are cores for this process.

    Raises:
        ValueError: one of them is not installed.
    """
    try:
        import torch
        from spikingjelly.activation_based import functional
    except ImportError as error:
        raise ValueError(f"pytorch: {error}; install the extra: pip install torch spikingjelly") from error
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch, functional


def zoo(module: str):
    """A module of SpikingJelly's model zoo."""
    return importlib.import_module(f"spikingjelly.activation_based.model.{module}")


def network_of(name: str):
    """SpikingJelly's network of one of `NETWORKS`, with random parameters."""
    module, maker, fields = NETWORKS[name]
    return getattr(zoo(module), maker)(T=STEPS, num_classes=CLASSES, **fields)


def inference(name: str, image_size: int, batch_size: int):
    """A call of it on a batch of random images."""
    torch, functional = import_pytorch()
    network, images = network_of(name).eval(), torch.rand(batch_size, 3, image_size, image_size)

    def run():
        with torch.inference_mode():
            functional.reset_net(network)
            return network(images).numpy()

    return run


def training(name: str, image_size: int, batch_size: int):
    """A call of its training step: cross-entropy, backward through time, AdamW."""
    torch, functional = import_pytorch()
    network = network_of(name).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    images = torch.rand(batch_size, 3, image_size, image_size)
    labels = torch.zeros(batch_size, dtype=torch.long)

    def run():
        functional.reset_net(network)
        optimizer.zero_grad()
        logits = network(images)  # [B, classes], of Spikformer [T, B, classes]
        logits = logits if logits.ndim == 2 else logits.mean(0)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def training_bytes(name: str, image_size: int, batch_size: int) -> int:
    """What training steps add to a process of their own: its peak over what it held with the network made (Linux)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_added, name, image_size, batch_size).result()


def _added(*what) -> int:
    run = training(*what)
    before = _resident("VmRSS")
    for _ in range(2):
        run()
    return _resident("VmHWM") - before


def _resident(which: str) -> int:
    """Bytes of this process; `ru_maxrss` would be no less than what the process was that started it."""
    return 1024 * int(re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
