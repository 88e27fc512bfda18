"""What a row of the trilemma is measured on: its training's cost, accuracy as trained and as executed, energy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from timing import medians, temporary_bytes, training_step

from ge2mst_jax.convert import certify, deploy, rate_coded
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.data import BatchPlan, eval_batches
from ge2mst_jax.energy import CONVENTIONS, SpikeCounter, energy
from ge2mst_jax.nn import NeuronRecord
from ge2mst_jax.report import differing
from ge2mst_jax.train.deployed import first_images
from ge2mst_jax.train.metrics import read_metrics

#: Neurons that fire at every step, as they were trained.
TIMED = ("if", "lif", "plif")
#: Steps of a rate-coded run, and images that it is measured on.
RATE_STEPS, RATE_IMAGES = (2, 4, 8, 16, 32, 64), 2_000
CERTIFIED, CALIBRATED = 200, 500
BATCH = 100


def cost(config, image_shape, classes: int, rounds: int = 5) -> dict:
    """Of the trainer's own step: bytes of its temporary arrays, seconds, and the ANN's seconds in turns with it."""
    compiled, run = training_step(config, image_shape, classes)
    ann = dataclasses.replace(
        config, neuron="relu", code="1x4", qk_code="1x2", remat="none", spike_budget=None
    )  # fmt: skip
    runs = {"row": run} | ({} if ann == config else {"relu": training_step(ann, image_shape, classes)[1]})
    seconds = medians(runs, rounds)
    return {
        "bytes": temporary_bytes(compiled),
        "batch_size": config.batch_size,
        "seconds": seconds["row"],
        "relu_seconds": seconds.get("relu", seconds["row"]),
    }


def over(call, source, plan: BatchPlan, limit: int | None = None) -> tuple[float, SpikeCounter, dict]:
    """Accuracy and counts of a forward pass, `images -> (logits, aux)`, on a split's first images, all if no limit.

    Returns:
        `(accuracy, counter, aux of the last batch)`.
    """
    right, counter, left, aux = 0, SpikeCounter(), limit, {}
    for batch in eval_batches(source, plan):
        seen = np.flatnonzero(batch["mask"])[:left]
        logits, aux = call(jnp.asarray(batch["image"]))
        right += int((np.argmax(jax.device_get(logits), -1) == batch["label"])[seen].sum())
        counter.add(aux, seen)
        left = None if left is None else left - len(seen)
        if left == 0:
            break
    return right / counter.images, counter, aux


def depth(aux) -> int:
    """Neuron layers that a spike passes from the image to the logits, along the longest way."""

    @functools.cache
    def layers_to(name: str) -> int:
        record = aux.get(name)
        if isinstance(record, NeuronRecord):
            return bool(record.parts) + max((layers_to(part) for part in record.parts), default=0)
        sources = getattr(record, "sources", None) or (getattr(record, "source", None),)
        return max((layers_to(source) for source in sources if source is not None), default=0)

    return max(layers_to(name) for name in aux)


def execution(call, steps: int, timed: bool, source, plan, limit=None) -> dict:
    """One way to run a network: accuracy, spikes, energy of an image, and the steps from image to logits.

    Args:
        call: the forward pass.
        steps: `T`, 0 of real numbers.
        timed: whether layers fire at every step, and not one after the other.
        source, plan, limit: as of `over`.
    """
    accuracy, counter, aux = over(call, source, plan, limit)
    return {
        "steps": steps,
        "latency": steps if timed else steps * depth(aux),
        "accuracy": accuracy,
        "images": counter.images,
        "spikes_per_neuron": counter.spikes_per_neuron,
        "energy_mj": {name: energy(counter, c, max(steps, 1))["total_mj"] for name, c in CONVENTIONS.items()},
    }


def executions(config, model, variables, image_shape, train, test) -> dict:
    """How a trained network runs, by its neuron: `{"executed": [...]}`, and the certificate where it has one."""
    plan = BatchPlan(BATCH, decode=config.decode)

    def trained(network):
        return functools.partial(forward, network, variables)

    if config.neuron in ("expg", "sfa"):
        net = deploy(model, variables, image_shape, first_images(train, plan, CALIBRATED))
        certificate = certify(net, *first_images(test, plan, CERTIFIED), BATCH).as_dict()
        dense, _, _ = over(functools.partial(net, execution="dense"), test, plan)
        spiking = execution(functools.partial(net, execution="spiking"), net.model.num_steps, False, test, plan)
        about = {"images": CERTIFIED, "differing": differing(certificate), "drift": certificate["drift"]["share"]}
        return {"executed": [spiking], "dense": dense, "certificate": about}
    if config.neuron == "qcfs":
        ann = execution(trained(model), 0, False, test, plan, RATE_IMAGES)
        runs = [
            execution(trained(rate_coded(model, steps)), steps, True, test, plan, RATE_IMAGES) for steps in RATE_STEPS
        ]
        return {"executed": runs, "dense": ann["accuracy"]}
    steps = model.num_steps if config.neuron in TIMED else 0
    return {"executed": [execution(trained(model), steps, config.neuron in TIMED, test, plan)]}


def history(run_dir, points: int = 20) -> list[dict]:
    """What a run's metrics said on the way: means over equal parts of its steps, and its evaluations."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    made = [
        {"step": part[-1]["step"]} | {key: float(np.mean([line[key] for line in part])) for key in ("loss", "accuracy")}
        for part in np.array_split(np.asarray(steps, object), min(points, len(steps)))
    ]
    tests = [{"step": line["step"], "test_accuracy": line["test"]["accuracy"]} for line in lines if "test" in line]
    return made + tests
