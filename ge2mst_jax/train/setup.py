"""Everything that a run is made of, from its config: network, optimiser, mesh, shardings and compiled functions."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_whole
from ge2mst_jax.models import PEERS, create_model
from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.sharding import batch_sharding, infer_shardings, make_mesh, replicated
from ge2mst_jax.train.step import TrainState, init_state, learning_rate, make_optimizer, train_step

#: Fields of a config that are the network's; `scales` too, where there are some.
OF_MODEL = tuple("code qk_code neuron lif attention local input_code drop_path remat dtype".split())


def build_model(config: TrainConfig, num_classes: int):
    """The network that a config names. A peer is as its authors set it, but for what the config changes.

    Raises:
        ValueError: the config changes a field that the network does not have, and what `create_model` refuses.
    """
    changes = {name: getattr(config, name) for name in OF_MODEL}
    if config.model in PEERS:
        usual = TrainConfig()
        changes = {name: value for name, value in changes.items() if value != getattr(usual, name)}
    if config.scales:
        changes["scales"] = config.scales
    return create_model(config.model, num_classes=num_classes, **changes)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, ready to go; made by `set_up`.

    `init()` makes the first state, born sharded; `step(state, batch, key)` gives the next one and its metrics, `state`
    being donated.
    """

    config: TrainConfig
    model: Any
    mesh: jax.sharding.Mesh
    image_shape: tuple[int, int, int]
    abstract_state: TrainState
    """Shapes and shardings of the state."""
    init: Any
    step: Any

    @property
    def state_shardings(self):
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def abstract_batch(self):
        """Shapes and shardings of a batch."""
        size, sharding = self.config.batch_size, batch_sharding(self.mesh)
        shapes = {"image": ((size, *self.image_shape), jnp.uint8), "label": ((size,), jnp.int32)}
        if self.config.distill_from is not None:
            shapes["taught"] = ((size, self.model.num_classes), jnp.float32)
        return {name: jax.ShapeDtypeStruct(*kind, sharding=sharding) for name, kind in shapes.items()}


def compiler_options(mesh) -> dict | None:
    """For the train step, on CPUs alone; a TPU's and a GPU's compilers get none.

    XLA drops optimization barriers there, and then keeps what was to be computed anew. And its YNNPACK convolutions
    take 1.4 to 1.5 times as long as Eigen's (docs/performance.md): products and reductions alone go to YNNPACK.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    library = ("LIBRARY_FUSION_TYPE_DOT", "LIBRARY_FUSION_TYPE_REDUCE")
    return {
        "xla_disable_hlo_passes": "cse_barrier_expander",
        "xla_cpu_experimental_ynn_fusion_type": ",".join(library),
    }


def check_parts(config: TrainConfig, mesh) -> int:
    """Of how many images, or a multiple, a global batch must be: devices along data, times `accumulate`.

    Raises:
        ValueError: the config's is none.

    >>> check_parts(TrainConfig(batch_size=12, accumulate=3), make_mesh(1, 1))
    3
    """
    parts = mesh.shape["data"] * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size is {config.batch_size}: {mesh.shape['data']} devices along data, with accumulate "
            f"{config.accumulate}, need a multiple of {parts}"
        )
    return parts


def set_up(config: TrainConfig, image_shape, num_classes: int, examples: int, mesh=None) -> Setup:
    """Puts a run together; nothing is computed yet.

    Args:
        config: of the run.
        image_shape: `(H, W, C)` of the batches.
        num_classes: logits.
        examples: training images, for the schedule.
        mesh: of devices; from the config if none.

    Raises:
        ValueError: a batch that the mesh's data axis does not divide, and what `create_model` and `make_mesh` refuse.
    """
    if jax.config.jax_enable_x64:
        raise ValueError("JAX_ENABLE_X64 is set: training is in float32 (float64 would be another run): unset it")
    image_shape = tuple(check_whole("a side of image_shape", side, 1, 2**16) for side in image_shape)
    num_classes, examples = (
        check_whole("num_classes", num_classes, 1, 2**24),
        check_whole("examples", examples, 1, 2**40),
    )
    mesh = make_mesh(config.mesh_data, config.mesh_model) if mesh is None else mesh
    check_parts(config, mesh)
    model, optimizer = build_model(config, num_classes), make_optimizer(config, examples)
    init = functools.partial(init_state, model, optimizer, image_shape, config.seed)
    shapes = jax.eval_shape(init)
    shardings = infer_shardings(shapes, mesh, fsdp_min_elements=config.fsdp_min_elements)
    abstract = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings)
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, schedule=learning_rate(config, examples), config=config
    )
    compiled = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=(0,),
        compiler_options=compiler_options(mesh),
    )
    return Setup(config, model, mesh, image_shape, abstract, jax.jit(init, out_shardings=shardings), compiled)
