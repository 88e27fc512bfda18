"""Makes a run of the weights that a PyTorch implementation of a peer left: evaluate, classify, fine-tune it here.

    python experiments/import_weights.py qkformer_10_384 FILE.pth [--data tfds:imagenet2012] [--run-dir RUN]

FILE is a `.safetensors`, or a `.pth`, `.pt` or `.tar` of PyTorch, of which nothing is executed (`weights_only`); the
latter needs torch. Names are those of the authors' code or of SpikingJelly's; what does not fit is refused by name and
shape. RUN becomes a run of no steps:

    python experiments/evaluate.py RUN --execution trained --data tfds:imagenet2012
    python experiments/train.py imagenet_s --model qkformer_10_384 --drop-path 0 --init-from RUN
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

from ge2mst_jax.checks import check_choice, check_whole, cut, one_line
from ge2mst_jax.data import DecodeConfig, open_source
from ge2mst_jax.files import write_whole
from ge2mst_jax.folders import as_folders, exists
from ge2mst_jax.models import PEERS, from_torch
from ge2mst_jax.train import TrainConfig, as_json, make_mesh, set_up
from ge2mst_jax.train.checkpoints import Checkpoints, steps_in
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.lock import exclusive

#: Data sets that sizes were published for, by their number of classes.
PUBLISHED_FOR = {1000: "tfds:imagenet2012", 10: "tfds:cifar10", 100: "tfds:cifar100"}
#: Under which training scripts keep the network's state.
NESTED = ("model", "state_dict", "model_state_dict", "net", "module", "state_dict_ema", "model_ema")


@dataclasses.dataclass(frozen=True)
class ImportWeights:
    """Makes a run of the weights that a PyTorch implementation of a peer left."""

    model: tyro.conf.Positional[str]
    """Name of the peer's size, such as qkformer_10_384."""
    file: tyro.conf.Positional[Path]
    """Its weights: a .safetensors, or a file of PyTorch's, of which nothing is executed."""
    run_dir: Path | None = None
    """Where the run is written; runs/imported/MODEL if none."""
    data: str | None = None
    """Data set whose classes it tells, such as tfds:imagenet2012 or folder:FOLDER. If none is named the classes are
    numbered, and evaluate.py takes the set of so many classes: tfds:imagenet2012, tfds:cifar10 or tfds:cifar100."""
    data_dir: Path | None = None
    """Where TFDS sets lie."""
    image_size: int | None = None
    """Side of its images; that for which the size was published if none."""

    def __post_init__(self):
        check_choice("model", self.model, PEERS)
        as_folders(self, "run_dir")
        if self.image_size is not None:
            check_whole("image_size", self.image_size, 16, 4096)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Name to array of a file of weights.

    Raises:
        ValueError: no such file, one of another kind, one that is damaged or holds more than arrays.
    """
    if not path.is_file():
        raise ValueError(f"file: there is no file {one_line(path)}")
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not state:
        raise ValueError(f"{one_line(path)} holds no arrays")
    made = {}
    for name, array in state.items():
        name = name.removeprefix("module.")
        if name in made:
            raise ValueError(f"{one_line(path)} holds {name} and module.{name}: leave one of them out")
        made[name] = as_weight(f"{one_line(path)}: {one_line(name)}", array)
    return made


def as_weight(name: str, array: np.ndarray) -> np.ndarray:
    """An array in float32; numbers of weights and statistics are floats, finite, variances not below 0.

    Raises:
        ValueError: names the array.

    >>> as_weight("a.pth: bn.running_var", np.array([-1.0]))
    Traceback (most recent call last):
    ValueError: a.pth: bn.running_var holds a variance below 0: the file is damaged
    """
    if name.endswith("num_batches_tracked"):
        return array.astype(np.float32)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} is {array.dtype}: weights must be floats (those of a quantised network are not read)")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite in float32: the file is damaged, or of no use")
    if name.endswith("running_var") and (array < 0).any():
        raise ValueError(f"{name} holds a variance below 0: the file is damaged")
    return array


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors`."""
    try:
        from safetensors import numpy
    except ImportError as error:
        raise ValueError(f"{one_line(path)}: reading it needs safetensors: pip install safetensors") from error
    try:
        return numpy.load_file(path)
    except Exception as error:  # a reader in another language raises what it likes
        raise ValueError(f"{one_line(path)} is no .safetensors, or a damaged one: {one_line(error)}") from error


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `torch.save` wrote, the network's own where it holds more."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{one_line(path)}: reading PyTorch's files needs torch: pip install torch") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise what they like
        raise ValueError(f"{one_line(path)} cannot be read as weights alone: {cut(one_line(error), 100)}") from error
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict):
        raise ValueError(f"{one_line(path)} holds a {type(found).__name__}: it must be a state dict")
    arrays = {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}
    dense = {name: x for name, x in arrays.items() if x.layout == torch.strided and not x.is_quantized}
    wide = {name: x.detach().to(torch.float64 if x.is_floating_point() else x.dtype) for name, x in dense.items()}
    return {name: x.numpy() for name, x in wide.items()}


def classes_of(options: ImportWeights, state: dict) -> tuple[list[str], int]:
    """Names of the classes and number of training images, of a data set where one is named."""
    head = next((state[name] for name in ("head.weight", "classifier.weight") if name in state), None)
    if head is None or head.ndim != 2:
        raise ValueError(f"{one_line(options.file)} holds no classifier: neither head.weight nor classifier.weight")
    if options.data is None:
        return [str(i) for i in range(len(head))], 1
    source = open_source(options.data, "train", options.data_dir)
    if len(source.classes) != len(head):
        raise ValueError(f"data: {options.data} has {len(source.classes)} classes, the file's classifier {len(head)}")
    return list(source.classes), len(source)


def check_unused(run_dir) -> None:
    """Refuses a folder that holds a run; what a save that failed has left there is none."""
    if exists(run_dir / "config.json") or steps_in(run_dir / "checkpoints"):
        raise ValueError(f"run_dir: {one_line(run_dir)} holds a run already: name another folder")


def main(options: ImportWeights) -> None:
    console, run_dir = Console(), options.run_dir or Path("runs/imported") / options.model
    check_unused(run_dir)
    state = read_weights(options.file)
    classes, examples = classes_of(options, state)
    side = options.image_size or PEERS[options.model].image[0]
    config = TrainConfig(
        model=options.model, steps=1, decode=DecodeConfig(image_size=side), data_dir=options.data_dir,
        data=options.data or PUBLISHED_FOR.get(len(classes), PUBLISHED_FOR[1000]),
    )  # fmt: skip
    setup = set_up(config, (side, side, 3), len(classes), examples, make_mesh(1, 1, jax.devices()[:1]))
    variables, origin = from_torch(setup.model, state, (side, side, 3))
    first = setup.init().replace(params=variables["params"], batch_stats=variables["batch_stats"], ema=variables)
    about = {
        "config": as_json(config), "image_shape": [side, side, 3], "classes": classes, "examples": examples,
        "data": None, "best": None, "accuracy": None, "evaluation": None, "metrics_lines": 0,
    }  # fmt: skip
    with exclusive(run_dir):
        check_unused(run_dir)
        with Checkpoints(run_dir) as checkpoints:
            checkpoints.save(0, first, about)
        write_whole(run_dir / "config.json", json.dumps(as_json(config), indent=1) + "\n")
    millions = sum(x.size for x in jax.tree.leaves(variables["params"])) / 1e6
    console.print(f"{options.model}: {millions:.2f} M parameters, {len(classes)} classes, named as by {origin}")
    console.print(Text(f"python experiments/evaluate.py {one_line(run_dir)} --execution trained"), soft_wrap=True)


if __name__ == "__main__":
    run_command(main, ImportWeights)
