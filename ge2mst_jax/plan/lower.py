"""What is planned: an experiment's work, lowered for devices that need not be there."""

import dataclasses

import jax

from ge2mst_jax.checks import check_choice, check_whole
from ge2mst_jax.convert import EXECUTED, DeployedNet, check_convertible, check_neuron, deployed_shapes
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.evaluate import eval_step
from ge2mst_jax.train.setup import Setup, set_up
from ge2mst_jax.train.sharding import batch_sharding, make_mesh, replicated

#: A train step, a batch of the trainer's evaluation (the averaged training network), and a batch of a deployed
#: network's executions.
WORKS = ("train", "evaluate", *EXECUTED)
#: Of data sets that configs name (Fashion-MNIST by its folder, or as TFDS has it): image shape (`None` for image files,
#: which are decoded to `decode.image_size`), classes, training images.
DATASETS = {
    "digits": ((8, 8, 1), 10, 1_437),
    "fashion-mnist": ((28, 28, 1), 10, 60_000),
    "fashion_mnist": ((28, 28, 1), 10, 60_000),
    "cifar10": ((32, 32, 3), 10, 50_000),
    "cifar100": ((32, 32, 3), 100, 50_000),
    "imagenette": (None, 10, 9_469),
    "imagenet2012": (None, 1_000, 1_281_167),
}


def shape_of(config: TrainConfig) -> tuple[tuple[int, int, int], int, int]:
    """Image shape, classes and training images of a config's data, which need not be there.

    Raises:
        ValueError: data that no table knows, and folders, whatever their names.

    >>> shape_of(TrainConfig(data="tfds:imagenet2012"))
    ((224, 224, 3), 1000, 1281167)
    """
    kind, _, rest = config.data.rpartition(":")
    name = rest.rstrip("/").rpartition("/")[2] if kind == "idx" else rest.partition("/")[0]
    if kind == "folder" or name not in DATASETS:
        raise ValueError(
            f"data is {config.data!r}: of what it holds a plan knows nothing; it knows {', '.join(DATASETS)}"
        )
    shape, classes, examples = DATASETS[name]
    side = config.decode.image_size
    return shape or (side, side, 3), classes, examples


def check_work(config: TrainConfig, work: str) -> None:
    """Refuses work that is none, or that a config's network cannot do.

    Raises:
        ValueError: an unknown name, a batch out of range, or an execution of what cannot be deployed.

    >>> check_work(TrainConfig(), "deploy")
    Traceback (most recent call last):
    ValueError: unknown work 'deploy': known are train, evaluate, dense, spiking
    """
    check_choice("work", work, WORKS)
    check_whole("batch_size", config.batch_size, 1, 2**24)
    if work in EXECUTED:
        check_neuron(config.neuron)


def accumulated(config: TrainConfig, work: str) -> TrainConfig:
    """The config as its work takes it: only a train step takes a batch in parts.

    >>> accumulated(TrainConfig(accumulate=2), "evaluate").accumulate
    1
    """
    return config if work == "train" else dataclasses.replace(config, accumulate=1)


def lower_work(config: TrainConfig, work: str, devices, data):
    """An experiment's work, lowered.

    Args:
        config: its `batch_size` is global.
        work: one of `WORKS`.
        devices: of a pod.
        data: image shape, classes and training images, as from `shape_of`.

    Raises:
        ValueError: as `check_work` and `set_up`.
    """
    check_work(config, work)
    image_shape, classes, examples = data
    mesh = make_mesh(config.mesh_data, config.mesh_model, devices)
    setup = set_up(accumulated(config, work), image_shape, classes, examples, mesh)
    if work == "train":
        key = jax.eval_shape(lambda: jax.random.key(0))
        return setup.step.lower(setup.abstract_state, setup.abstract_batch(), key)
    if work == "evaluate":
        batch = setup.abstract_batch()
        mask = jax.ShapeDtypeStruct((config.batch_size,), "float32", sharding=batch_sharding(mesh))
        return eval_step.lower(setup.model, setup.abstract_state.ema, batch | {"mask": mask})
    return lower_deployed(setup, work)


def lower_deployed(setup: Setup, execution: str):
    """A deployed network's execution, logits alone: batch cut over the mesh, the numbers the same on every device.

    Its weights are cut into the planes that a TPU multiplies, once, as `DeployedNet.variables` holds them. Whether the
    chip's convolution may stand for a sum of products would be found out on it: here maps are products by kernel tap.
    """
    check_convertible(setup.model)
    model = setup.model.clone(backend="tpu", remat="none")  # as deploy leaves it

    def network(params):
        return DeployedNet(model, params, (), setup.image_shape, "")

    variables = jax.eval_shape(
        lambda params: network(params).variables(execution), deployed_shapes(model, setup.image_shape)
    )
    place = replicated(setup.mesh)
    variables = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), variables)
    return forward.lower(network(None).executed(execution, "none"), variables, setup.abstract_batch()["image"])
