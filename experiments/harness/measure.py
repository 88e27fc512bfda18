"""What a row of the trilemma is measured on: its training's cost, accuracy as trained and as executed, energy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ge2mst_jax.convert import LOSSLESS, certify, deploy, rate_coded
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.data import BatchPlan
from ge2mst_jax.energy import CONVENTIONS, energy
from ge2mst_jax.nn import TIMED, NeuronRecord
from ge2mst_jax.report import differing
from ge2mst_jax.train.deployed import count_over, first_images
from ge2mst_jax.train.metrics import read_metrics
from harness.timing import medians, one_core_clock, temporary_bytes, training_step

#: Steps of a rate-coded run, and images that it is measured on.
RATE_STEPS, RATE_IMAGES = (2, 4, 8, 16, 32, 64), 1_000
CERTIFIED, CALIBRATED = 200, 500
#: Images at a time, and times their steps where they are rate-coded: 100 images of 64 steps take 8 GB.
BATCH, RATE_BATCH = 100, 800


def cost(config, image_shape, classes: int, rounds: int = 5) -> dict:
    """Of the trainer's own step: bytes of its temporary arrays, seconds, and the ANN's seconds in turns with it.

    On one core, seconds of that core spent in the steps alone (`one_core_clock`).
    """
    compiled, run = training_step(config, image_shape, classes)
    ann = dataclasses.replace(config, neuron="relu", code="1x4", qk_code="1x2", remat="none", spike_budget=None)
    runs = {"row": run} | ({} if ann == config else {"relu": training_step(ann, image_shape, classes)[1]})
    clock = one_core_clock()
    seconds = medians(runs, rounds, clock)
    return {
        "clock": clock.__name__,
        "bytes": temporary_bytes(compiled),
        "batch_size": config.batch_size,
        "seconds": seconds["row"],
        "relu_seconds": seconds.get("relu", seconds["row"]),
    }


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


class Runner:
    """Runs networks over a test split.

    Args:
        test: from `open_source`.
        plan: of its batches.
        console: for the bars.
    """

    def __init__(self, test, plan: BatchPlan, console: Console):
        self.test, self.plan, self.console = test, plan, console

    def counted(self, network, title: str, limit: int | None = None):
        """`(accuracy, SpikeCounter)` of a network, from images to `(logits, aux)`."""
        scores, counter = count_over(network, self.test, self.plan, title, limit, self.console)
        return scores.accuracy, counter

    def executed(self, network, steps: int, timed: bool, limit: int | None = None) -> dict:
        """One way to run a network: accuracy, spikes, energy of an image, and the steps from image to logits.

        Args:
            network: from images to `(logits, aux)`.
            steps: `T`, 0 of real numbers.
            timed: whether layers fire at every step, and not one after the other.
            limit: the first so many images alone.
        """
        accuracy, counter = self.counted(network, f"test, {steps or 'real'}", limit)
        image = jax.ShapeDtypeStruct((1, *self.plan.shape(self.test)), jnp.uint8)
        layers = 1 if timed else depth(jax.eval_shape(network, image)[1])
        return {
            "steps": steps,
            "latency": steps * layers,
            "accuracy": accuracy,
            "images": counter.images,
            "spikes_per_neuron": counter.spikes_per_neuron,
            "energy_mj": {name: energy(counter, c, max(steps, 1))["total_mj"] for name, c in CONVENTIONS.items()},
        }


def executions(config, model, variables, image_shape, train, test, console) -> dict:
    """How a trained network runs, by its neuron: `{"executed": [...]}`, and its certificate where it has one."""
    plan = BatchPlan(BATCH, decode=config.decode)
    runner = Runner(test, plan, console)
    if config.neuron in LOSSLESS:
        net = deploy(model, variables, image_shape, first_images(train, plan, CALIBRATED))
        made = certify(net, *first_images(test, plan, CERTIFIED), BATCH).as_dict()
        dense, _ = runner.counted(functools.partial(net, execution="dense"), "test, dense")
        about = {"images": CERTIFIED, "differing": differing(made), "drift": made["drift"]["share"]}
        spiking = runner.executed(functools.partial(net, execution="spiking"), net.model.num_steps, False)
        return {"executed": [spiking], "dense": dense, "certificate": about}
    variables = jax.device_put(variables)
    if config.neuron == "qcfs":
        ann, _ = runner.counted(functools.partial(forward, model, variables), "test, as trained", RATE_IMAGES)
        runs = []
        for steps in RATE_STEPS:
            rated = functools.partial(forward, rate_coded(model, steps), variables)
            runner.plan = dataclasses.replace(plan, batch_size=min(BATCH, RATE_BATCH // steps))
            runs.append(runner.executed(rated, steps, True, RATE_IMAGES))
        return {"executed": runs, "dense": ann}
    timed = config.neuron in TIMED
    return {"executed": [runner.executed(functools.partial(forward, model, variables), timed * model.num_steps, timed)]}


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
