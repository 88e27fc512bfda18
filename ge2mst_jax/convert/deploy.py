"""Deployment: fold BatchNorm and thresholds into weights, make integers of them, refuse what cannot be converted."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ge2mst_jax.checks import check_choice, check_number, check_whole, shown
from ge2mst_jax.convert.convertible import (
    check_accumulates,
    check_finite,
    check_shapes,
    check_trained,
)
from ge2mst_jax.convert.fixed_point import (
    ConversionError,
    CurrentFormat,
    choose_format,
    leaves,
    nest,
    shared_currents,
)
from ge2mst_jax.models import model_fields
from ge2mst_jax.nn import Arithmetic, AttentionRecord, SynapseRecord, check_images
from ge2mst_jax.nn.images import NO_SUM
from ge2mst_jax.nn.planes import planes_of

#: Fields that networks of earlier versions do not have, and what those did: left out of digests, which thus stay.
BEFORE = {"attention": "gw_ssa", "local": True}
#: How a deployed network runs.
EXECUTED = ("dense", "spiking")
#: Fields of a network that say nothing of a deployed one: how it is run, and what its neurons have no use for.
NOT_IN_DIGEST = ("execution", "capture", "remat", "backend", "lif", "rate_steps")


@functools.partial(jax.jit, static_argnames=("model", "train"))
def forward(model: nn.Module, variables, images, train: bool = False):
    """`model.apply`, compiled once per model and shape."""
    return model.apply(variables, images, train=train)


@dataclasses.dataclass(frozen=True, eq=False)
class DeployedNet:
    """A deployed network: integers, two executions, equal bit for bit.

    Made by `deploy`. `net(images, execution="dense" | "spiking", capture="counts" | "levels")` returns
    `(logits [B, classes], aux)`; images are `[B, H, W, C]`, float in [0, 1] or uint8. Two networks are equal if their
    definitions and numbers are.

    Args:
        model: the network definition.
        params: `{layer: {kernel, bias, guard | threshold | shift}}`, nested, int32; one is worth `2^-f` of its current,
            of a kernel `2^-(f+guard)` (`shift` is the `f` of the current that an attention's counts join).
        formats: of every current.
        image_shape: `(H, W, C)`.
        digest: SHA-256 of all of the above, as `deploy` made them.
        source: the training network's variables, if kept.
        about: what else a user of the network should know, as JSON: `data` (what it was trained on), `classes` (names,
            in order), `decode` (fields of `data.DecodeConfig`, for image files), each where known.
    """

    model: nn.Module
    params: Any
    formats: tuple[CurrentFormat, ...]
    image_shape: tuple[int, int, int]
    digest: str
    source: Any = None
    about: dict = dataclasses.field(default_factory=dict)

    def __eq__(self, other):
        return isinstance(other, DeployedNet) and self._identity == other._identity

    def __hash__(self):
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> str:
        return digest_of(self.model, self.params, self.formats, self.image_shape)

    def __call__(self, images, execution: str = "dense", capture: str = "counts"):
        check_images(images, self.image_shape)
        sums, aux = forward(self.executed(execution, capture), self.variables(execution), jnp.asarray(images))
        return self.logits(sums), aux

    def executed(self, execution: str, capture: str = "counts") -> nn.Module:
        """The network's definition under an execution; `.apply(net.variables(execution), ...)` gives certified sums."""
        check_choice("execution", execution, EXECUTED)
        return self.model.clone(execution=execution, capture=capture)

    def variables(self, execution: str = "dense") -> dict:
        """What `executed(execution)` is applied to, on the device, made once: the parameters, and their planes.

        `{"params": net.params}` alone gives the same sums; every call then cuts the weights anew. NumPy's arrays in
        `params` cannot be written to from then on: what runs was made of them.
        """
        check_choice("execution", execution, EXECUTED)
        if execution not in self._made:
            arrays, layers = traverse_util.flatten_dict(self.params, sep="/"), self.layers
            for array in arrays.values():
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False
            with jax.ensure_compile_time_eval():  # kept for calls to come: no part of a program that traces this one
                planes = {name: self._planes(name, record, execution) for name, record in layers.items()}
                cut = {f"{name}/{key}" for name, made in planes.items() for key in made}
                # Weights that are cut need not be on the device.
                params = {path: array if path in cut else jnp.asarray(array) for path, array in arrays.items()}
                planes = nest(jax.tree.map(jnp.asarray, planes))
            self._made[execution] = {"params": traverse_util.unflatten_dict(params, sep="/"), "planes": planes}
        return self._made[execution]

    def _planes(self, name, record, execution) -> dict:
        """`{"kernel": Planes}` of a layer that multiplies planes; else nothing."""
        if not isinstance(record, SynapseRecord) or record.role == "head" or record.depth_wise:
            return {}
        spikes = execution == "spiking" and record.source in self.layers  # an image that is no neuron layer stays one
        arithmetic = Arithmetic(self.model.current_bits, self.model.backend)
        kernel, level = leaves(self.params, name)["kernel"], record.max_level
        return {"kernel": planes_of(kernel, level, arithmetic, 1 if spikes else level)}

    @functools.cached_property
    def _made(self) -> dict:
        return {}

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_made"}

    def logits(self, sums):
        """Logits from the head's certified sums: float32, divided by the number of tokens, nan where there is none."""
        name, head = next((n, r) for n, r in self.layers.items() if isinstance(r, SynapseRecord) and r.role == "head")
        fraction_bits = next(f.fraction_bits for f in self.formats if name in f.parts)
        worth = np.float32(0.5**fraction_bits / (head.in_shape[0] * head.in_shape[1]))
        return jnp.where(sums == NO_SUM, jnp.nan, jnp.asarray(sums, jnp.float32) * worth)

    @functools.cached_property
    def layers(self):
        """`aux` of one image with shapes for arrays: what the network is made of, nothing computed."""
        image = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.uint8)
        return jax.eval_shape(self.executed("dense").apply, {"params": self.params}, image)[1]

    def training_logits(self, images):
        """Logits of the training network that this one was made from."""
        if self.source is None:
            raise ValueError("this network does not carry its training network")
        return forward(self.model, self.source, jnp.asarray(images))[0]


def digest_of(model, params, formats, image_shape) -> str:
    """SHA-256 over the network's definition, every array's path, shape and bytes, the formats and the image shape."""
    definition = {k: v for k, v in model_fields(model).items() if k not in NOT_IN_DIGEST}
    definition = {k: v for k, v in definition.items() if (k, v) not in BEFORE.items()}
    about = [definition, [dataclasses.asdict(f) for f in formats], list(image_shape)]
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for path, array in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.asarray(array)
        total.update(f"{path}{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def check_labels(labels, images: int, classes: int) -> np.ndarray:
    """Labels as whole numbers, one an image, each a class.

    Raises:
        ValueError: names the shape, the dtype or the first label out of range.

    >>> check_labels([3], 1, 3)
    Traceback (most recent call last):
    ValueError: label 3 of image 0 is out of range: there are 3 classes, 0 to 2
    """
    labels = np.asarray(labels)
    if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels of shape {labels.shape} and dtype {labels.dtype}: they must be {images} whole numbers, "
            "one an image"
        )
    for image in np.flatnonzero((labels < 0) | (labels >= classes))[:1]:
        raise ValueError(
            f"label {labels[image]} of image {image} is out of range: there are {classes} classes, 0 to {classes - 1}"
        )
    return labels


def _check_about(about) -> None:
    try:
        known = isinstance(about, dict) and json.loads(json.dumps(about, allow_nan=False)) is not None
    except (TypeError, ValueError, RecursionError):
        known = False
    if not known:
        raise ValueError(f"about is {shown(about)}: it must be a dict of what JSON can hold")


def fold(model, variables, image_shape):
    """Folds BatchNorm and thresholds into weights, in float32, no integers yet.

    Returns:
        `{layer: arrays}` nested, and `aux` with shapes for arrays.

    Raises:
        ConversionError: a layer with parameters that does not fold itself, or an array that overflows, by name.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    aux = jax.eval_shape(lambda v, x: model.apply(v, x)[1], variables, image)

    @jax.jit
    def folded(variables):
        zeros = jnp.zeros((1, *image_shape), jnp.uint8)
        return model.apply(variables, zeros, mutable=["deployed"])[1]["deployed"]

    params = jax.device_get(folded(variables))
    known = {path[:-1] for path in traverse_util.flatten_dict(params)}
    for path in traverse_util.flatten_dict(variables["params"]):
        owner = path[:-2] if path[-2:-1] == ("norm",) else path[:-1]
        if owner not in known:
            raise ConversionError(f"convert does not know the layer {'/'.join(owner)} (it holds {path[-1]!r})")
    check_finite(params, "is not finite once gains and thresholds are folded into it: train with smaller numbers")
    return params, aux


def attention_rates(model, variables, images) -> tuple[float, float, float]:
    """Spikes a neuron and image of `q`, `k` and `v` over all layers of a training network in which the three meet; the
    model's own expectation where they never do."""
    aux = jax.device_get(forward(model.clone(capture="counts"), variables, jnp.asarray(images))[1])
    sources = [r.sources for r in aux.values() if isinstance(r, AttentionRecord) and len(r.sources) == 3]
    rates = []
    for names in zip(*sources, strict=True):
        neurons = sum(int(np.prod(aux[name].shape)) for name in names) * len(images)
        rates.append(sum(int(aux[name].spikes.astype(np.int64).sum()) for name in names) / max(neurons, 1))
    return tuple(rates) or model.attention_rates


def accuracy(logits, labels) -> float:
    """Share of images whose largest logit is their label's.

    Args:
        logits: `[N, classes]`.
        labels: `[N]` whole numbers.

    Raises:
        ValueError: shapes that do not fit, labels out of range, or logits that are no numbers (nan).

    >>> accuracy(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([1, 1]))
    0.5
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits of shape {logits.shape}: they must be [N, classes] numbers, at least one image's")
    for image in np.flatnonzero(np.isnan(logits).any(1))[:1]:
        raise ValueError(f"logits of image {image} are nan: its pixels, or the network's numbers, are out of range")
    return float(np.mean(np.argmax(logits, -1) == check_labels(labels, *logits.shape)))


def deploy(
    model,
    variables,
    image_shape,
    calibration=None,
    max_accuracy_drop: float = 0.002,
    about: dict | None = None,
    current_bits: int = 31,
) -> DeployedNet:
    """Turns a trained network into one whose dense and spiking executions are equal bit for bit.

    Every layer folds itself: `W' = W·γ/σ`, `b' = β - μγ/σ` (σ is that of sums of levels, so it holds θ); the head
    `W·θ`, attention its thresholds. All summands of a current (the residual stream has
    one) then become integers, each worth `2^-f`, thresholds even ones, with the largest `f` for which the worst-case
    bound `Σ|W'|·L + |b'| + θ/2` stays below `2^current_bits`: so every addition is exact, in any order. Weights have up
    to 7 guard bits more, as many as the words of their sum hold; the sum is rounded once, when it is whole.

    Args:
        model: from `create_model`, with a neuron of `LOSSLESS`: `"expg"` or `"sfa"`.
        variables: `params` and `batch_stats`.
        image_shape: `(H, W, C)` of the images to come.
        calibration: `(images, labels)`, optional: to hold the accuracy against, and to measure how often attention's
            neurons fire, which orders its products.
        max_accuracy_drop: most of it that folding and rounding may cost there, a share (0.002 is 0.2 points).
        about: as of `DeployedNet`.
        current_bits: 31, sums in int32, or 24, sums in one float32: faster, and further from the trained network (the
            certificate says how far).

    Raises:
        ValueError: an image shape or a number that is none, labels that do not fit.
        ConversionError: another neuron, a layer that it doesn't know, an operation that is not spikes and sums, a
            bound that leaves no fraction bits, numbers that are not finite, or too large a drop of accuracy.

    >>> from ge2mst_jax import create_model
    >>> model = create_model("ge2mst_nano", stages=(("conv", 8, 1),))
    >>> images = jnp.zeros((1, 8, 8, 1), jnp.uint8)
    >>> net = deploy(model, model.init(jax.random.key(0), images), (8, 8, 1))
    >>> bool((net(images, execution="dense")[0] == net(images, execution="spiking")[0]).all())
    True
    """
    if not isinstance(image_shape, tuple | list) or len(image_shape) != 3:
        raise ValueError(f"image_shape is {shown(image_shape)}: it must be (H, W, C)")
    image_shape = tuple(
        check_whole(f"{n} of image_shape", side, 1, 2**16) for n, side in zip("HWC", image_shape, strict=True)
    )
    check_number("max_accuracy_drop", max_accuracy_drop, 0, 1)
    _check_about(about := {} if about is None else about)
    check_trained(model, variables)
    # A deployed network has no backward pass to save memory in.
    model = model.clone(current_bits=Arithmetic(current_bits).current_bits, remat="none")
    check_shapes(model, variables, image_shape)
    if calibration is not None:
        images, labels = calibration
        check_images(images, image_shape)
        labels = check_labels(labels, len(images), model.num_classes)
        model = model.clone(attention_rates=attention_rates(model, variables, images))
    folded, aux = fold(model, variables, image_shape)
    formats, layers = [], {}
    for parts, readers in shared_currents(aux):
        made, integers = choose_format(parts, readers, aux, folded, current_bits)
        formats.append(made)
        layers |= integers
    params = nest(layers)
    formats = tuple(formats)
    net = DeployedNet(
        model,
        params,
        formats,
        image_shape,
        digest_of(model, params, formats, image_shape),
        jax.device_get(variables),
        about,
    )
    check_accumulates(net)
    if calibration is not None:
        before, after = accuracy(net.training_logits(images), labels), accuracy(net(images)[0], labels)
        if before - after > max_accuracy_drop + 1e-9:  # one image of 500 is 0.002, whatever 0.882 - 0.880 is
            raise ConversionError(
                f"accuracy on {len(labels)} calibration images drops from {before:.2%} to {after:.2%}, "
                f"more than max_accuracy_drop = {max_accuracy_drop:.2%}: the numbers need more fraction bits "
                f"than their bounds leave (smallest f is {min(f.fraction_bits for f in formats)})"
            )
    return net
