"""The averaged network of a run's checkpoint, for evaluation, deployment and fine-tuning."""

import dataclasses

import jax

from ge2mst_jax.train.checkpoints import read_about, read_arrays
from ge2mst_jax.train.config import from_json
from ge2mst_jax.train.setup import set_up
from ge2mst_jax.train.sharding import make_mesh


def load_averaged(run_dir, which: int | str = "best", mesh=None):
    """A run's network with its averaged parameters and BatchNorm statistics.

    Args:
        run_dir: of the run.
        which: a step, `"latest"` or `"best"`, as in `read_about`.
        mesh: to restore onto; the first device alone if none.

    Returns:
        `(model, variables, about)`; `about` is what the checkpoint says of its run.

    Raises:
        CheckpointError: no such checkpoint, or one that cannot be read.
        ValueError: a config of another version.
    """
    path, about = read_about(run_dir, which)
    mesh = make_mesh(1, 1, jax.devices()[:1]) if mesh is None else mesh
    config = from_json(about["config"])
    parts = mesh.shape["data"]  # its batches need not fit this mesh: none is made
    config = dataclasses.replace(config, batch_size=-(-config.batch_size // parts) * parts, accumulate=1)
    made = set_up(config, about["image_shape"], len(about["classes"]), about["examples"], mesh)
    return made.model, read_arrays(path, about, made.abstract_state).ema, about
