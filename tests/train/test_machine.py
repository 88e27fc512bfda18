"""What a run says of its machine, on machines that are folders."""

from types import SimpleNamespace

import jax
import pytest

from ge2mst_jax.train.machine import describe_devices, gpu_files, idle_accelerator, name_devices, tpu_files


def machine_of(root, *files, vendor="0x8086"):
    """A folder that looks like a machine with these device files and one PCI device."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    pci = root / "sys/bus/pci/devices/0000:00:04.0"
    pci.mkdir(parents=True)
    (pci / "vendor").write_text(f"{vendor}\n")
    return root


GPU, TPU = "an NVIDIA GPU is in this machine", "a TPU is in this machine"


@pytest.mark.parametrize(
    ("files", "vendor", "says"),
    [
        ((), "0x8086", None),
        (("dev/null", "dev/nvidia-uvm", "dev/vfio/vfio"), "0x1ae0", None),  # Google's network card, no TPU
        (("dev/vfio/0",), "0x8086", None),
        (("dev/accel/accel0",), "0x8086", None),  # Intel's NPU
        (("dev/nvidia1", "dev/nvidia0", "dev/nvidiactl"), "0x10de", f"{GPU} (/dev/nvidia0)"),
        (("dev/nvidiactl",), "0x10de", f"{GPU} (/dev/nvidiactl)"),
        (("dev/dxg",), "0x8086", f"{GPU} (/dev/dxg)"),
        (("dev/accel0",), "0x1ae0", f"{TPU} (/dev/accel0)"),
        (("dev/vfio/0", "dev/vfio/vfio"), "0x1ae0", f"{TPU} (/dev/vfio/0)"),
    ],
)
def test_accelerators_that_lie_idle_are_named(tmp_path, files, vendor, says):
    found = idle_accelerator(machine_of(tmp_path, *files, vendor=vendor))
    assert found is None if says is None else found.startswith(says)
    assert says is None or len(found.splitlines()) == 1


def test_one_file_a_device(tmp_path):
    root = machine_of(tmp_path, "dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/nvidia-modeset", "dev/accel0")
    assert gpu_files(root) == ["/dev/nvidia0", "/dev/nvidia1"]
    assert tpu_files(root) == ["/dev/accel0"]


def test_devices_are_counted_by_kind():
    assert describe_devices(jax.devices()) == "8 cpu"
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    assert describe_devices([gpu] * 16) == "16 gpu (NVIDIA H100 80GB HBM3)"


@pytest.mark.parametrize(("platforms", "warns"), [("cpu", False), (None, True), ("", True)])
def test_a_run_warns_where_jax_fell_back_to_the_cpu(tmp_path, caplog, platforms, warns):
    before, said = jax.config.jax_platforms, []
    jax.config.update("jax_platforms", platforms)
    try:
        name_devices(jax.devices()[:2], said.append, machine_of(tmp_path, "dev/nvidia0"))
    finally:
        jax.config.update("jax_platforms", before)
    assert said == ["devices: 2 cpu"]
    assert [record.message.startswith(GPU) for record in caplog.records] == [True] * warns


def test_a_run_on_an_accelerator_warns_of_none(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    before, said = jax.config.jax_platforms, []
    jax.config.update("jax_platforms", None)
    try:
        gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA L4")
        name_devices([gpu] * 4, said.append, machine_of(tmp_path, "dev/nvidia0"))
    finally:
        jax.config.update("jax_platforms", before)
    assert (said, caplog.records) == (["devices: 4 gpu (NVIDIA L4), 2 processes"], [])
