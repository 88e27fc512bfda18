"""What a run says of its machine: the devices that it is on, and an accelerator that it leaves idle."""

import logging
from collections import Counter
from pathlib import Path

import jax

log = logging.getLogger(__name__)

ROOT = Path("/")
#: Google's number on the PCI bus, as Linux writes it.
GOOGLE = "0x1ae0"


def name_devices(devices, say, root: Path = ROOT) -> None:
    """Says what a run is on; every process warns where JAX fell back to a CPU that nobody asked for.

    Args:
        devices: of the run.
        say: is told the line.
        root: where the machine's `dev` and `sys` are.

    >>> name_devices(jax.devices("cpu")[:1], print)
    devices: 1 cpu
    """
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    say(f"devices: {describe_devices(devices)}{processes}")
    fell_back = devices[0].platform == "cpu" and not jax.config.jax_platforms
    idle = idle_accelerator(root) if fell_back else None
    if idle is not None:
        log.warning(idle)


def describe_devices(devices) -> str:
    """How many devices there are of which kind.

    >>> describe_devices(jax.devices("cpu")[:1])
    '1 cpu'
    """
    kinds = (d.platform if d.device_kind == d.platform else f"{d.platform} ({d.device_kind})" for d in devices)
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).items())


def gpu_files(root: Path = ROOT) -> list[str]:
    """The device files of NVIDIA's GPUs, one a GPU."""
    return sorted(f"/dev/{p.name}" for p in root.glob("dev/nvidia*") if p.name.removeprefix("nvidia").isdigit())


def tpu_files(root: Path = ROOT) -> list[str]:
    """The device files of TPUs: `/dev/accel0`, or numbers of VFIO where a PCI device is Google's."""
    accel = sorted(f"/dev/{p.name}" for p in root.glob("dev/accel*") if p.name.removeprefix("accel").isdigit())
    if any(p.read_text().strip() == GOOGLE for p in root.glob("sys/bus/pci/devices/*/vendor")):
        accel += sorted(f"/dev/vfio/{p.name}" for p in root.glob("dev/vfio/*") if p.name.isdigit())
    return accel


def idle_accelerator(root: Path = ROOT) -> str | None:
    """One line for a run on the CPU of a machine that has a GPU or a TPU; `None` where it has none.

    Args:
        root: where the machine's `dev` and `sys` are.
    """
    # Docker may hand in the control file alone, and WSL has another one.
    others = [f"/dev/{name}" for name in ("nvidiactl", "dxg") if (root / "dev" / name).exists()]
    for files, what, package in (
        (gpu_files(root) + others, "an NVIDIA GPU", "jax[cuda12] or jax[cuda13]"),
        (tpu_files(root), "a TPU", "jax[tpu]"),
    ):
        if files:
            return (
                f"{what} is in this machine ({files[0]}), but JAX runs on the CPU: install {package} of the same "
                "version (docs/gpu.md, docs/tpu.md), or set JAX_PLATFORMS=cpu if the CPU is meant"
            )
    return None
