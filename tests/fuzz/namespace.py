"""What the calls of the corpus may name: every public name of the package, and a few helpers."""

import contextlib
import dataclasses
import functools
import io
import tempfile
import types
from pathlib import Path

import fixtures
import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax import checks, convert, data, energy, files, grouping, models, nn, report, spiking, train
from ge2mst_jax.data import decode as decoding

bf16 = jnp.bfloat16
SCALES = (grouping.Scale("block", 2), grouping.Scale("grid", 2))


def f(*numbers, dtype="float32"):
    """An array of floats."""
    return jnp.array(numbers, dtype)


def ints(*numbers, dtype="int32"):
    """An array of whole numbers, in NumPy: JAX would turn 64 bits into 32."""
    return np.array(numbers).astype(dtype)


def outcome_of(call):
    """What a call gives: its value as float32, or `"refused"` for one clear line; other errors are raised."""
    try:
        return np.asarray(call(), np.float32)
    except (ValueError, TypeError, AssertionError) as error:
        if len(str(error).splitlines()) != 1:
            raise RuntimeError(f"not one line: {error}") from error
        return "refused"


def agree(current, threshold, code) -> bool:
    """Twin and neuron come to the same, eager and compiled: equal levels, or both refuse."""
    code = spiking.SpikeCode.parse(code)
    twin = outcome_of(lambda: spiking.expg_twin(current, threshold, code))
    neuron = outcome_of(lambda: code.decode(spiking.expg_fire(current, threshold, code)))
    if isinstance(twin, str) or isinstance(neuron, str):
        return isinstance(twin, str) and isinstance(neuron, str)
    in_range = bool(np.isin(twin, code.levels).all() and np.isin(neuron, code.levels).all())
    compiled = outcome_of(lambda: jax.jit(lambda c, t: spiking.expg_twin(c, t, code))(current, threshold))
    return in_range and bool((twin == neuron).all() and (twin == compiled).all())


def random_bits(seed: int, count: int = 64):
    """Float32 currents from random bits: of every size, NaN and infinities too."""
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32).view(np.float32)


def random_theta(seed: int):
    """A positive threshold of any size that float32 has."""
    return np.float32(2.0 ** np.random.default_rng(seed).uniform(-100, 100))


def under_jit(function, *arguments):
    """The same call with its arrays unknown while it is traced."""
    return jax.jit(function)(*arguments)


def images(shape=(2, 8, 8, 1), dtype="uint8"):
    """Images whose pixels use the whole range of a byte."""
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


@functools.cache
def model_and_variables(**changes):
    """A tiny network and its first variables."""
    fields = dict(stages=(("conv", 8, 1), ("attention", 16, 1)), head_width=8, scales=SCALES, group_width=8)
    model = models.create_model("ge2mst_nano", **(fields | changes))
    return model, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))


@functools.cache
def net():
    """A tiny deployed network."""
    return convert.deploy(*model_and_variables(), (8, 8, 1))


def logits(array, **changes):
    """The training network's answer to images."""
    model, variables = model_and_variables(**changes)
    return model.apply(variables, array)[0]


def net_with(layer: str, key: str, value):
    """The deployed network with one array of one layer replaced (`value` is a function of the old one)."""
    from flax import traverse_util

    flat = traverse_util.flatten_dict(net().params, sep="/")
    path = f"{layer}/{key}"
    flat[path] = value(np.array(flat[path]))
    return dataclasses.replace(net(), params=traverse_util.unflatten_dict(flat, sep="/"))


def replaced(frozen, **changes):
    """A frozen dataclass with fields changed."""
    return dataclasses.replace(frozen, **changes)


def gw_attention_of(x, scales=SCALES, grid=(4, 4)):
    """Attention of an array with itself."""
    return grouping.gw_attention(x, x, x, scales, grid=grid)


def ssa_of(x):
    """Full attention of an array with itself."""
    return grouping.ssa(x, x, x, grid=(4, 4))


def new_path(name="new") -> str:
    """A path in a new folder, where nothing is yet."""
    return str(Path(tempfile.mkdtemp()) / name)


def reloaded(name: str) -> bool:
    """Whether a network that is saved under a name is read back."""
    path = new_path(name)
    convert.save_net(path, net(), "ge2mst_nano")
    return equal_nets(net(), convert.load_net(path))


def equal_nets(a, b) -> bool:
    """Every array, both definitions and all that is known about them are equal."""
    arrays = [jax.tree.leaves((x.params, x.source)) for x in (a, b)]
    rest = [(x.model, x.formats, tuple(x.image_shape), x.digest, x.about) for x in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*arrays, strict=True)) and rest[0] == rest[1]


def counter(**changes):
    """Counts of a tiny network on two images."""
    model, variables = model_and_variables(**changes)
    found = energy.SpikeCounter()
    found.add(model.apply(variables, images())[1])
    return found


def file_with(content, name="file.json") -> str:
    """The path of a new file."""
    path = Path(tempfile.mkdtemp()) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def encoded(array, format="PNG") -> bytes:
    """An image file's bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, format)
    return file.getvalue()


def first_batch(spec, **plan):
    """The first batch of training and of evaluation of a data set."""
    source = data.open_source(spec, "train", on_corrupt=plan.pop("on_corrupt", "raise"))
    made = data.BatchPlan(**({"batch_size": 4, "decode": data.DecodeConfig(image_size=8)} | plan))
    with contextlib.closing(data.train_batches(source, made, 0)) as batches:
        return next(batches)


def namespace(root) -> dict:
    """Names for `eval`; `root` is where the fixtures lie."""
    names = {}
    for room in (spiking, grouping, nn, models, convert, energy, data, train, report):
        names |= {name: getattr(room, name) for name in room.__all__}
        names[room.__name__.rpartition(".")[2]] = room
    names |= fixtures.paths_of(root)
    here = {name: value for name, value in globals().items() if not name.startswith("__")}
    helpers = {name: value for name, value in here.items() if not isinstance(value, types.ModuleType)}
    modules = dict(jax=jax, jnp=jnp, np=np, checks=checks, files=files, decoding=decoding)
    return names | helpers | modules | dict(damaged=fixtures.damaged, folder_of=fixtures.folder_of)
