"""Several processes as one run."""

import os
import re
import socket
import sys
import threading
import warnings

import jax

from ge2mst_jax.checks import check_whole, shown
from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.machine import gpu_files

#: Field of the config: variable of the environment that stands in for it.
ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
#: Variable of the environment: how many seconds the processes of a run wait for each other at the start.
JOIN_SECONDS = "GE2MST_JOIN_SECONDS"
MOST_PROCESSES = 65536
NO_CLUSTER = (
    "coordinator is auto, but JAX finds no cluster to ask, neither TPU VM nor GKE, Slurm (start it with srun) or Open "
    "MPI: leave coordinator out for a single process, or give HOST:PORT, num_processes and process_id (JAX says: {})"
)


def initialize(config: TrainConfig, environ=None) -> None:
    """Joins the processes of a run, by the config's fields or the environment; does nothing for a single process.

    `coordinator="auto"` leaves everything to the cluster (TPU VMs, GKE, Slurm, Open MPI). On the CPU collectives go
    through gloo. Where not all processes have come within `GE2MST_JOIN_SECONDS` (300), this one ends with status 2.

    Raises:
        ValueError: some of the three are missing or not what they should be, or there is no cluster to ask.
    """
    environ = os.environ if environ is None else environ
    found = {}
    for field, variable in ENVIRONMENT.items():
        value = getattr(config, field)
        found[field] = environ.get(variable) if value is None else value
    if all(value in (None, "") for value in found.values()):
        return
    seconds = whole(JOIN_SECONDS, environ.get(JOIN_SECONDS) or 300, 1, 86400)
    devices = local_devices(environ)
    if config.coordinator == "auto":
        for field in ("num_processes", "process_id"):
            if getattr(config, field) is not None:
                raise ValueError(f"{field} is given and coordinator is auto: leave {field} to the cluster")
        join("the cluster's other processes", seconds, local_device_ids=devices)
        return
    missing = [f"{field} (or {ENVIRONMENT[field]})" for field, value in found.items() if value in (None, "")]
    if missing:
        raise ValueError(f"several processes need coordinator, num_processes and process_id: {missing[0]} is missing")
    address = str(found["coordinator"])
    port = check_address(address)
    count = whole("num_processes", found["num_processes"], 1, MOST_PROCESSES)
    process = whole("process_id", found["process_id"], 0, MOST_PROCESSES)
    if process >= count:
        raise ValueError(f"process_id is {process}: with {count} processes it must be 0 to {count - 1}")
    if jax.config.jax_platforms == "cpu" or environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if process == 0:
        check_free(port)
    join(
        f"all {count} processes at coordinator {address}", seconds, coordinator_address=address, num_processes=count,
        process_id=process, local_device_ids=devices, cluster_detection_method="deactivate",
    )  # fmt: skip


def whole(name: str, value, low: int, high: int) -> int:
    """A whole number, or one as text."""
    is_text = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
    return check_whole(name, int(value) if is_text else value, low, high)


def check_address(address: str) -> int:
    """The port of `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is not of that form.

    >>> check_address("10.0.0.1:1234"), check_address("[::1]:8476")
    (1234, 8476)
    """
    parts = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})", address, re.ASCII)
    if parts is None or not 1 <= int(parts[2]) <= 65535:
        raise ValueError(
            f"coordinator (or {ENVIRONMENT['coordinator']}) is {shown(address)}: it must be HOST:PORT of process 0, "
            "such as 10.0.0.1:1234; only --coordinator may be auto"
        )
    return int(parts[2])


def check_free(port: int) -> None:
    """Refuses a port that process 0 could not listen on, or would share with another run."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise ValueError(f"coordinator: process 0 cannot listen on port {port} ({error}): give a free one") from None


def join(whom: str, seconds: int, **arguments) -> None:
    """`jax.distributed.initialize` with an end in one line: past its own time JAX aborts the process."""

    def give_up():
        name = os.path.basename(sys.argv[0])
        print(f"{name}: error: waited {seconds} s for {whom}: start them all, where they reach it", file=sys.stderr)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        with warnings.catch_warnings():  # JAX's advice for Kubernetes, which NO_CLUSTER gives in short
            warnings.filterwarnings("ignore", "\\s*Kubernetes environment detected")
            jax.distributed.initialize(initialization_timeout=seconds + 60, **arguments)
    except (ValueError, KeyError, RuntimeError) as error:
        if "coordinator_address" in arguments:
            raise ValueError(f"cannot join {whom}: {error}") from error
        raise ValueError(NO_CLUSTER.format(error)) from error
    finally:
        timer.cancel()


def local_devices(environ) -> list[int] | None:
    """Which GPUs of its host this process takes; `[]` is all that it sees, `None` leaves it to JAX.

    Under Slurm and Open MPI JAX takes one GPU a process, whatever the host has. Here the processes of a host share its
    GPUs out among themselves, so that none is left idle. Where neither Slurm nor `CUDA_VISIBLE_DEVICES` says how many
    there are, the device files do.

    Raises:
        ValueError: there are GPUs, but not as many for each process as for the others.

    >>> local_devices({"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    []
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ:
        tasks, task = environ["OMPI_COMM_WORLD_LOCAL_SIZE"], environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    elif "SLURM_LOCALID" in environ:
        tasks, task = slurm_tasks(environ), environ["SLURM_LOCALID"]
    else:
        return None
    if tasks is None:
        return None
    tasks = whole("processes on this host", tasks, 1, MOST_PROCESSES)
    task = whole("their number", task, 0, MOST_PROCESSES)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    of_host = whole("SLURM_GPUS_ON_NODE", environ.get("SLURM_GPUS_ON_NODE") or 0, 0, MOST_PROCESSES)
    gpus = (of_host or len(gpu_files())) if visible is None else len([name for name in visible.split(",") if name])
    bound = visible is not None and gpus < (of_host or tasks)
    if tasks == 1 or bound or environ.get("JAX_PLATFORMS") == "cpu":
        return []  # alone here, or already bound to GPUs of its own
    if gpus == 0:
        return None
    if gpus % tasks:
        raise ValueError(
            f"{tasks} processes on this host cannot share its {gpus} GPUs evenly: start one a host, or one a GPU, "
            "or set JAX_PLATFORMS=cpu"
        )
    each = gpus // tasks
    return list(range(task * each, (task + 1) * each))


def slurm_tasks(environ) -> int | None:
    """Tasks on this node, from Slurm's list of all nodes, such as `8(x3),4`; `None` where it says nothing.

    >>> slurm_tasks({"SLURM_STEP_TASKS_PER_NODE": "8(x3),4", "SLURM_NODEID": "3"})
    4
    """
    listed = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    counts = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed) for _ in range(int(times or 1))]
    node = environ.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None
