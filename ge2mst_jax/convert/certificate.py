"""The certificate: the network is what `deploy` made, and its two executions are equal, spike by spike."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.errors import FlaxError

from ge2mst_jax.checks import check_whole, one_line
from ge2mst_jax.convert.deploy import DeployedNet, accuracy, check_labels, digest_of, forward
from ge2mst_jax.convert.drift import Drift, measure_drift
from ge2mst_jax.convert.fixed_point import current_bound, guarded_sums_fit, leaves, shared_currents
from ge2mst_jax.convert.reference import reference as run_reference
from ge2mst_jax.energy import AuditError, audit
from ge2mst_jax.nn import NeuronRecord, SynapseRecord, check_images


class CertificateError(ValueError):
    """A check of the certificate failed; the message names the first layer that failed it."""


@dataclasses.dataclass(frozen=True)
class LayerCertificate:
    """One neuron layer's part: what was compared, and its current's fixed-point format (none for the image)."""

    name: str
    code: str
    neurons: int
    spikes_compared: int
    spikes_differing: int
    levels_differing: int
    spikes_fired: int
    fraction_bits: int | None
    bound: int | None
    headroom_bits: float | None


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `certify` found; a certificate that exists has 0 spikes, levels and logits differing.

    `spikes_fired` counts those of all neurons but the input code: where it is 0, nothing was compared but silence.

    `accuracy` holds `training`, `dense` and `spiking`, and `change`, dense minus training, where labels were given.
    `drift` says how far the network is from the one that was trained, where it carries that one. `reference_images` is
    the number of images on which both executions were held against `convert.reference` too.
    """

    images: int
    spikes_compared: int
    spikes_differing: int
    levels_differing: int
    logits_differing: int
    spikes_fired: int
    digest: str
    layers: tuple[LayerCertificate, ...]
    head: dict
    accuracy: dict | None = None
    drift: Drift | None = None
    reference_images: int = 0

    def as_dict(self) -> dict:
        """For JSON."""
        return dataclasses.asdict(self) | {"drift": None if self.drift is None else self.drift.as_dict()}


def check_network(net: DeployedNet) -> None:
    """Checks every number: int32, thresholds positive and even, shifts and bounds those of the formats, the digest.

    Raises:
        CertificateError: names the first layer that fails.
    """
    for path, array in traverse_util.flatten_dict(net.params, sep="/").items():
        if np.asarray(array).dtype != np.int32:
            name, _, key = path.rpartition("/")
            raise CertificateError(
                f"{name}: {key} is of dtype {np.asarray(array).dtype}: a deployed network holds integers, int32"
            )
    try:
        aux = net.layers
    except (FlaxError, ValueError) as error:
        raise CertificateError(f"the arrays are not those of the network's definition: {one_line(error)}") from error
    expected = {tuple(sorted(parts)) for parts, _ in shared_currents(aux)}
    if expected != {tuple(sorted(f.parts)) for f in net.formats}:
        raise CertificateError("the formats are not those of this network's currents")
    for current in net.formats:
        if current.current_bits != net.model.current_bits:
            raise CertificateError(
                f"{current.readers[0]}: its format is one of {current.current_bits} bits, not {net.model.current_bits}"
            )
        for name in dict.fromkeys((*current.parts, *current.readers)):
            for key, array in leaves(net.params, name).items():
                _check_array(name, key, np.asarray(array), current.fraction_bits)
            _check_guard(name, aux[name], leaves(net.params, name), current.current_bits)
        bound = current_bound(current.parts, current.readers, aux, net.params, current.fraction_bits)
        if not bound < 2**current.current_bits:
            raise CertificateError(
                f"{current.readers[0]}: its current can reach {bound}, not below 2^{current.current_bits}"
            )
    if digest_of(net.model, net.params, net.formats, net.image_shape) != net.digest:
        raise CertificateError(
            "the digest is not the one that deploy stored: an array, a format or the network's definition was changed"
        )


def _check_array(name, key, array, fraction_bits) -> None:
    if key == "threshold" and not ((array > 0) & (array % 2 == 0)).all():
        raise CertificateError(f"{name}: a threshold is not positive and even")
    if key == "shift" and array != fraction_bits:
        raise CertificateError(f"{name}: its counts are shifted by {array}, but its current has f = {fraction_bits}")


def _check_guard(name, record, arrays, current_bits) -> None:
    if "guard" in arrays:
        guard = int(arrays["guard"])
        if not guarded_sums_fit(np.asarray(arrays["kernel"], np.int64), guard, record, current_bits):
            raise CertificateError(f"{name}: its sums, with {guard} guard bits, leave the words that hold them")


@functools.partial(jax.jit, static_argnames=("dense", "spiking"))
def _differences(dense, spiking, dense_variables, spiking_variables, images):
    """Per neuron layer `(spikes differing, levels differing, spikes fired)` of each image, logits differing, and the
    sums of both executions."""
    sums, expected = forward(dense, dense_variables, images)
    other_sums, found = forward(spiking, spiking_variables, images)
    counts = {}
    for name, record in expected.items():
        if isinstance(record, NeuronRecord):
            other = found[name]
            trains = record.code.encode(record.levels).astype(bool), other.train
            levels = jnp.sum(record.levels != other.levels, (1, 2, 3))
            counts[name] = (jnp.sum(trains[0] != trains[1], (0, 2, 3, 4)), levels, jnp.sum(other.spikes, (1, 2)))
    return counts, jnp.sum(sums != other_sums), sums, other_sums


def compare_executions(dense: DeployedNet, spiking: DeployedNet, images, batch_size: int = 64, progress=None):
    """Runs `dense` densely and `spiking` as spikes (the same network, but in tests) and counts what differs.

    Args:
        dense, spiking: deployed networks of one definition.
        images: `[N, H, W, C]`.
        batch_size: images at a time.
        progress: called with the number of images done, after each batch.

    Returns:
        `{layer: [spikes differing, levels differing, spikes fired]}`, logits that differ, and the certified sums of
        both.
    """
    check_whole("batch_size", batch_size, 1, 2**20)
    _check_some(images, dense.image_shape)
    models = dense.executed("dense", "levels"), spiking.executed("spiking", "levels")
    variables = dense.variables("dense"), spiking.variables("spiking")
    # Named from `layers`, in the order of the network: a dict comes out of jit sorted.
    totals = {name: [0, 0, 0] for name, record in dense.layers.items() if isinstance(record, NeuronRecord)}
    logits, sums = 0, []
    for start in range(0, len(images), batch_size):
        batch = jnp.asarray(images[start : start + batch_size])
        counts, differing, *both = jax.device_get(_differences(*models, *variables, batch))
        logits += int(differing)
        sums.append(both)
        for name, total in totals.items():
            for i, count in enumerate(counts[name]):
                total[i] += int(count.astype(np.int64).sum())
        if progress is not None:
            progress(min(start + batch_size, len(images)))
    return totals, logits, tuple(np.concatenate(s) for s in zip(*sums, strict=True))


def _check_some(images, image_shape) -> None:
    check_images(images, image_shape)
    if len(images) == 0:
        raise ValueError("no images: a certificate needs at least one")


def check_reference(net: DeployedNet, images, executions=("dense", "spiking")) -> None:
    """Holds executions against the network in plain NumPy, image by image: every level, every certified sum.

    Raises:
        CertificateError: names the first layer that differs.
    """
    for execution in executions if len(images) else ():
        model = net.executed(execution, "levels")
        found, aux = jax.device_get(forward(model, net.variables(execution), jnp.asarray(images)))
        for i, image in enumerate(images):
            levels, sums = run_reference(net, np.asarray(image))
            for name in (n for n in levels if n in aux):
                if (differing := int(np.sum(aux[name].levels[i] != levels[name]))) > 0:
                    raise CertificateError(
                        f"{name}: {differing} levels of the {execution} execution are not the reference's on image {i}"
                    )
            if (found[i] != sums).any():
                raise CertificateError(f"head: the {execution} execution's sums are not the reference's on image {i}")


def certify(
    net: DeployedNet, images, labels=None, batch_size: int = 64, progress=None, reference: int = 0
) -> Certificate:
    """Proves on real images that a deployed network's two executions are equal, spike by spike.

    First checks the network itself (`check_network`), then runs `dense` and `spiking` on every image and compares every
    neuron's spike train and level, and every logit. Where the network carries the one that was trained, counts the
    levels that differ from that one's (`measure_drift`).

    Args:
        net: from `deploy`.
        images: `[N, H, W, C]`, uint8 or float in [0, 1]; at least one.
        labels: `[N]` integers, for the three accuracies.
        batch_size, progress: as in `compare_executions`.
        reference: so many images, the first ones, are also run by the independent reference (seconds an image).

    Raises:
        CertificateError: a check failed, with the first layer that differs; a failed certificate is never returned.
        ValueError: no image, images of another shape, dtype or range, a batch size or labels that are none.

    Warns:
        UserWarning: not one neuron fired.

    >>> from ge2mst_jax import create_model
    >>> from ge2mst_jax.convert import deploy
    >>> model = create_model("ge2mst_nano", stages=(("conv", 8, 1),))
    >>> images = jnp.full((2, 8, 8, 1), 200, jnp.uint8)
    >>> net = deploy(model, model.init(jax.random.key(0), images), (8, 8, 1))
    >>> certify(net, images).spikes_differing
    0
    """
    _check_some(images, net.image_shape)
    check_whole("reference", reference, 0, len(images))
    if labels is not None:
        labels = check_labels(labels, len(images), net.model.num_classes)
    check_network(net)
    for execution in ("dense", "spiking"):
        try:
            audit(net, execution).check(analog_stem=True)
        except AuditError as error:
            raise CertificateError(str(error)) from error
    totals, logits, sums = compare_executions(net, net, images, batch_size, progress)
    for name, (spikes, levels, _) in totals.items():
        if spikes or levels:
            raise CertificateError(
                f"{name}: {spikes} spikes and {levels} levels differ between the dense and the spiking execution "
                f"on {len(images)} images"
            )
    if logits:
        raise CertificateError(f"head: {logits} logits differ between the executions on {len(images)} images")
    check_reference(net, images[:reference], ("dense",))  # the spiking one is equal to it on these, as was seen
    drift, logits_trained = (None, None) if net.source is None else measure_drift(net, images, batch_size)
    aux = net.layers
    formats = {reader: f for f in net.formats for reader in f.readers}
    layers = []
    for name, (spikes, levels, fired) in totals.items():
        record, current = aux[name], formats.get(name)
        neurons = int(np.prod(record.shape))
        layers.append(
            LayerCertificate(
                name,
                str(record.code),
                neurons,
                neurons * record.code.num_steps * len(images),
                spikes,
                levels,
                fired,
                *((current.fraction_bits, current.bound, current.headroom_bits) if current else (None, None, None)),
            )
        )
    fired = sum(layer.spikes_fired for layer in layers if aux[layer.name].parts)
    if not fired:
        warnings.warn(
            f"not one neuron fired on {len(images)} images: the executions are equal, and say nothing", stacklevel=2
        )
    head_name = next(n for n, r in aux.items() if isinstance(r, SynapseRecord) and r.role == "head")
    head = formats[head_name]
    return Certificate(
        images=len(images),
        spikes_compared=sum(layer.spikes_compared for layer in layers),
        spikes_differing=sum(layer.spikes_differing for layer in layers),
        levels_differing=sum(layer.levels_differing for layer in layers),
        logits_differing=logits,
        spikes_fired=fired,
        digest=net.digest,
        layers=tuple(layers),
        head={"fraction_bits": head.fraction_bits, "bound": head.bound, "headroom_bits": head.headroom_bits},
        accuracy=None if labels is None else _accuracies(labels, *sums, logits_trained),
        drift=drift,
        reference_images=reference,
    )


def _accuracies(labels, dense_sums, spiking_sums, training_logits) -> dict:
    found = {"training": None, "dense": accuracy(dense_sums, labels), "spiking": accuracy(spiking_sums, labels)}
    if training_logits is not None:
        found["training"] = accuracy(training_logits, labels)
        found["change"] = found["dense"] - found["training"]
    return found
