"""Several processes as one run."""

import os

import jax

from ge2mst_jax.train.config import TrainConfig

#: Field of the config: variable of the environment that stands in for it.
ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def initialize(config: TrainConfig, environ=None) -> None:
    """Joins the processes of a run, by the config's fields or the environment; does nothing for a single process.

    `coordinator="auto"` leaves everything to the cloud (TPU VMs, GKE, Slurm): `jax.distributed.initialize()`. On the
    CPU collectives go through gloo.

    Raises:
        ValueError: some of the three are missing, or a process id out of range.
    """
    environ = os.environ if environ is None else environ
    found = {}
    for field, variable in ENVIRONMENT.items():
        value = getattr(config, field)
        found[field] = environ.get(variable) if value is None else value
    if all(value in (None, "") for value in found.values()):
        return
    if found["coordinator"] == "auto":
        jax.distributed.initialize()
        return
    missing = [f"{field} (or {ENVIRONMENT[field]})" for field, value in found.items() if value in (None, "")]
    if missing:
        raise ValueError(f"several processes need coordinator, num_processes and process_id: {missing[0]} is missing")
    try:
        count, process = int(found["num_processes"]), int(found["process_id"])
    except ValueError:
        raise ValueError(
            f"num_processes {found['num_processes']!r} and process_id {found['process_id']!r} must be whole numbers"
        ) from None
    if not 0 <= process < count:
        raise ValueError(f"process_id is {process}: with {count} processes it must be 0 to {count - 1}")
    if jax.config.jax_platforms == "cpu" or environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(str(found["coordinator"]), count, process)
