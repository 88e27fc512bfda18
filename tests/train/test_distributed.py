"""Joining processes: by the config's fields or the environment."""

import socket

import jax
import pytest

from ge2mst_jax.train import TrainConfig, distributed
from ge2mst_jax.train.distributed import initialize, local_devices


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    """The tests' machine has no device files of GPUs, whatever is in it."""
    monkeypatch.setattr(distributed, "gpu_files", list)


@pytest.fixture
def joined(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


def test_single_process_joins_nothing(joined):
    initialize(TrainConfig(), {})
    assert joined == []


def test_fields_go_before_the_environment(joined):
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    initialize(TrainConfig(), environment)
    initialize(TrainConfig(coordinator="b:2", num_processes=2, process_id=1), environment)
    initialize(TrainConfig(coordinator="auto"), environment)
    names = ("coordinator_address", "num_processes", "process_id")
    assert [tuple(call.get(name) for name in names) for call in joined] == [("a:1", 4, 3), ("b:2", 2, 1), (None,) * 3]
    assert {call["initialization_timeout"] for call in joined} == {360}


GIVEN = {"coordinator": "a:1", "num_processes": 2, "process_id": 1}
WHOLE = "it must be a whole number, "
ADDRESS = "it must be HOST:PORT of process 0"


@pytest.mark.parametrize(
    ("fields", "environment", "says"),
    [
        ({"coordinator": "a:1"}, {}, r"num_processes \(or JAX_NUM_PROCESSES\) is missing"),
        (GIVEN | {"process_id": 2}, {}, "process_id is 2: with 2 processes it must be 0 to 1"),
        (GIVEN | {"process_id": -1}, {}, f"process_id is -1: {WHOLE}0 to"),
        (GIVEN | {"num_processes": True}, {}, f"num_processes is True: {WHOLE}1 to"),
        (GIVEN | {"num_processes": 10**20}, {}, f"num_processes is 10+: {WHOLE}1 to"),
        (GIVEN | {"num_processes": 0}, {}, f"num_processes is 0: {WHOLE}1 to"),
        (GIVEN | {"num_processes": None}, {"JAX_NUM_PROCESSES": "x"}, f"num_processes is 'x': {WHOLE}"),
        (GIVEN | {"num_processes": None}, {"JAX_NUM_PROCESSES": "1e20"}, f"num_processes is '1e20': {WHOLE}"),
        (GIVEN | {"num_processes": None}, {"JAX_NUM_PROCESSES": "1_0"}, f"num_processes is '1_0': {WHOLE}"),
        (GIVEN | {"num_processes": None}, {"JAX_NUM_PROCESSES": "9" * 5000}, f"num_processes is '9+…: {WHOLE}"),
        (GIVEN | {"coordinator": "foo"}, {}, rf"coordinator \(or JAX_COORDINATOR_ADDRESS\) is 'foo': {ADDRESS}"),
        (GIVEN | {"coordinator": "host:notaport"}, {}, ADDRESS),
        (GIVEN | {"coordinator": "host:99999"}, {}, ADDRESS),
        (GIVEN | {"coordinator": "host:0"}, {}, ADDRESS),
        (GIVEN | {"coordinator": ":1234"}, {}, ADDRESS),
        (GIVEN | {"coordinator": "a b:1"}, {}, ADDRESS),
        (GIVEN | {"coordinator": "http://a:1"}, {}, ADDRESS),
        (GIVEN | {"coordinator": "::1:12"}, {}, ADDRESS),
        (GIVEN | {"coordinator": None}, {"JAX_COORDINATOR_ADDRESS": "auto"}, "only --coordinator may be auto"),
        (GIVEN | {"coordinator": "auto"}, {}, "num_processes is given and coordinator is auto"),
        (GIVEN, {"GE2MST_JOIN_SECONDS": "soon"}, f"GE2MST_JOIN_SECONDS is 'soon': {WHOLE}1 to 86400"),
    ],
)
def test_wrong_coordinates_are_refused(joined, fields, environment, says):
    with pytest.raises(ValueError, match=says) as refused:
        initialize(TrainConfig(**fields), environment)
    assert len(str(refused.value).splitlines()) == 1
    assert joined == []


def test_port_in_use_is_refused(joined):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"process 0 cannot listen on port {port}"):
            initialize(TrainConfig(coordinator=f"a:{port}", num_processes=2, process_id=0), {})
    assert joined == []


@pytest.mark.parametrize("error", [ValueError("a\nb"), KeyError("SLURM"), RuntimeError("no controller")])
def test_auto_without_a_cluster_is_refused(monkeypatch, error):
    def detect(**arguments):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", detect)
    with pytest.raises(ValueError, match="coordinator is auto, but JAX finds no cluster to ask"):
        initialize(TrainConfig(coordinator="auto"), {})


def slurm(tasks: str, task: int = 0, node: int = 0, **more) -> dict[str, str]:
    return {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": str(task), "SLURM_NODEID": str(node)} | more


def ompi(size: int, rank: int, **more) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_LOCAL_SIZE": str(size), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)} | more


EIGHT = {"SLURM_GPUS_ON_NODE": "8"}


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, None),
        (slurm("1(x4)", node=3, **EIGHT), []),  # one task a node takes all
        (slurm("1", **EIGHT, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7"), []),
        (slurm("8,1", node=1), []),
        (slurm("8(x2)", 5, 1, **EIGHT), [5]),  # one task a GPU
        (slurm("2(x2)", 1, 1, **EIGHT), [4, 5, 6, 7]),
        (slurm("2(x2)", 0, 1, **EIGHT, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7"), [0, 1, 2, 3]),
        (slurm("2", 1, **EIGHT, CUDA_VISIBLE_DEVICES="0,1,2,3"), []),  # bound to its own four
        (slurm("8", 5, **EIGHT, CUDA_VISIBLE_DEVICES="0"), []),
        (slurm("8", 5), None),  # no GPU that Slurm knows of
        (slurm("3", 1, **EIGHT, JAX_PLATFORMS="cpu"), []),
        (slurm("1", **EIGHT, JAX_LOCAL_DEVICE_IDS="2"), None),  # asked for
        ({"SLURM_LOCALID": "0"}, None),
        (ompi(1, 0), []),
        (ompi(4, 3, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7"), [6, 7]),
        (ompi(4, 3, CUDA_VISIBLE_DEVICES="3"), []),
    ],
)
def test_processes_of_a_host_leave_no_gpu_idle(joined, environment, devices):
    assert local_devices(environment) == devices
    initialize(TrainConfig(coordinator="auto"), environment)
    initialize(TrainConfig(**GIVEN), environment)
    assert [call["local_device_ids"] for call in joined] == [devices, devices]


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        (slurm("2(x2)", 1, 1), [4, 5, 6, 7]),
        (slurm("1(x2)", 0, 1), []),
        (ompi(8, 3), [3]),
        (ompi(2, 0), [0, 1, 2, 3]),
        (ompi(2, 1, CUDA_VISIBLE_DEVICES="0,1"), [1]),  # what is asked for goes before what is there
        (ompi(2, 1, JAX_PLATFORMS="cpu"), []),
    ],
)
def test_device_files_tell_how_many_gpus_there_are(monkeypatch, environment, devices):
    monkeypatch.setattr(distributed, "gpu_files", lambda: [f"/dev/nvidia{i}" for i in range(8)])
    assert local_devices(environment) == devices


def test_gpus_that_cannot_be_shared_evenly_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="3 processes on this host cannot share its 8 GPUs evenly"):
        local_devices(slurm("3", 1, **EIGHT))
    monkeypatch.setattr(distributed, "gpu_files", lambda: ["/dev/nvidia0"])
    with pytest.raises(ValueError, match="4 processes on this host cannot share its 1 GPUs evenly"):
        local_devices(ompi(4, 1))


def test_a_number_of_gpus_that_is_none_is_refused():
    with pytest.raises(ValueError, match="SLURM_GPUS_ON_NODE is 'many': it must be a whole number"):
        local_devices(slurm("2", SLURM_GPUS_ON_NODE="many"))
