"""What 20 steps do, on any number of devices and processes; started as a script it is one process of several.

python tests/train/trajectories.py RESULT.npz
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from short_runs import BATCH, setup_of, short

from ge2mst_jax.data import BatchPlan, load_digits, local_part, open_source, prefetch_to_device, train_batches
from ge2mst_jax.train import batch_sharding, evaluate, make_mesh
from ge2mst_jax.train.distributed import initialize

STEPS = 20
#: A rate at which quantised activations amplify rounding: at a tenth of it no level flips, and nothing is tested.
CONFIG = dict(steps=STEPS, spike_budget=None, base_learning_rate=0.128)


def trajectory(devices: int, nudged: str | None = None) -> dict[str, np.ndarray]:
    """Runs the steps and tells the images of each, the losses, the last parameters, and an evaluation of the first.

    Args:
        devices: of the mesh.
        nudged: a scalar parameter, `layer/name`, that is moved by an ulp before the first step.
    """
    config = short(mesh_data=devices, **CONFIG)
    setup = setup_of(config)
    sharding, state = batch_sharding(setup.mesh), setup.init()
    part = local_part(sharding, BATCH)
    test = open_source("digits", "test")
    first = evaluate(setup.model, state.ema, test, BATCH, sharding, config.decode, confusion=True)
    if nudged is not None:
        state = state.replace(params=nudge(state.params, nudged))
    images, losses = [], []
    batches = train_batches(open_source("digits", "train"), BatchPlan(BATCH, *part), config.seed)
    with prefetch_to_device(batches, sharding) as stream:
        for _ in range(STEPS):
            batch = next(stream)
            images.append(whole(batch["index"]))
            state, metrics = setup.step(state, batch, jax.random.key(1))
            losses.append(float(metrics["loss"]))
    params = jax.tree.map(whole, state.params)
    return {
        "images": np.array(images), "losses": np.array(losses), "params": np.asarray(ravel_pytree(params)[0]),
        "confusion": first["confusion"], "examples": np.array(first["examples"]),
    }  # fmt: skip


def nudge(params, name: str):
    """The parameters, one of them moved to the next float."""
    flat = traverse_util.flatten_dict(params, sep="/")
    moved = jnp.nextafter(flat[name], jnp.inf)
    return traverse_util.unflatten_dict(flat | {name: jax.device_put(moved, flat[name].sharding)}, sep="/")


def whole(array) -> np.ndarray:
    """A global array, gathered from all processes."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True) if jax.process_count() > 1 else array)


def logits_of_deployed(devices: int) -> np.ndarray:
    """The deployed network of the first parameters, run on test images over a mesh."""
    from ge2mst_jax.convert import deploy

    setup = setup_of(short(**CONFIG), make_mesh(1, 1, jax.local_devices()[:1]))  # each process deploys its own
    net = deploy(setup.model, setup.init().ema, (8, 8, 1))
    images = load_digits().test_images[:BATCH]
    sharding = batch_sharding(setup_of(short(mesh_data=devices, **CONFIG)).mesh)
    start, count = local_part(sharding, BATCH)
    here = images[start * BATCH // count : (start + 1) * BATCH // count]
    batch = jax.make_array_from_process_local_data(sharding, here)
    model = net.executed("spiking")
    params = jax.tree.map(np.asarray, net.params)
    sums, _ = jax.jit(lambda params, x: model.apply({"params": params}, x))(params, batch)
    return whole(sums)


def main() -> None:
    initialize(short())
    count = jax.device_count()
    found = trajectory(count) | {"logits": logits_of_deployed(count)}
    if jax.process_index() == 0:
        np.savez(Path(sys.argv[1]), **found)


if __name__ == "__main__":
    main()
