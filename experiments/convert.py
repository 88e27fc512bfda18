"""Makes a deployed spiking network of a training run, of an ANN's too, and says what each stage of that costs.

    python experiments/convert.py RUN [--codes 1x4 2x2 1x8] [--finetune-epochs 2]

RUN is the folder of a run of relu neurons (any of our models), or of expg or sfa neurons, which is deployed as it is.
From an ANN every threshold is the one of least mean squared error on activations of training batches, BatchNorm's
statistics are measured anew, and the network trains on for --finetune-epochs (0: not at all). Then it is deployed,
certified and counted. OUT/CODE holds a deployed network, which evaluate.py and predict.py read, and a report;
OUT/convert.json has the table. Interrupted, the same command goes on.

A run of qcfs neurons is not deployed: integrate-and-fire neurons run it for each number of --rate-steps, and the table
says what that loses and costs.

The queries and keys of an ANN are real numbers; spiking ones have the levels of --qk-code and a threshold a head.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import contextlib
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ge2mst_jax.checks import check_number, check_whole, one_line
from ge2mst_jax.convert import LOSSLESS, certify, deploy, rate_coded, save_net
from ge2mst_jax.convert.deploy import forward
from ge2mst_jax.data import BatchPlan, open_source
from ge2mst_jax.energy import CONVENTIONS, audit, energy
from ge2mst_jax.files import write_whole
from ge2mst_jax.folders import as_folders, make
from ge2mst_jax.report import build_report, differing, write_report
from ge2mst_jax.spiking import SpikeCode
from ge2mst_jax.train import as_json, evaluate, from_json, load_averaged, make_mesh, set_up, train
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.deployed import about_images, count_over, first_images, run_over
from ge2mst_jax.train.sharding import batch_sharding
from ge2mst_jax.train.start import batches_of, from_another_run


@dataclasses.dataclass(frozen=True)
class Convert:
    """Makes a deployed spiking network of a training run, of an ANN's too, and says what each stage costs."""

    run: tyro.conf.Positional[Path]
    """Folder of a training run of relu, expg, sfa or qcfs neurons."""
    codes: tuple[str, ...] = ()
    """Of the spiking neurons, from an ANN, one network each; 1x4 if none."""
    qk_code: str = "1x2"
    """Of the spiking neurons of queries and keys, from an ANN."""
    finetune_epochs: float = 2.0
    """Passes over the training images after an ANN was converted; 0 is none."""
    finetune_rate: float = 0.1
    """Peak learning rate of these, as a share of the run's own."""
    step: int | None = None
    """Of the run's checkpoint; the best one if none, and of an ANN."""
    rate_steps: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Time steps for which a qcfs run's network is run rate-coded."""
    calibrate: int = 500
    """Training images on which deployment may cost no accuracy, and attention's rates are measured."""
    certify: int = 500
    """Test images certified, the first ones: both executions compared spike by spike."""
    limit: int | None = None
    """Test only so many images, the first ones."""
    batch_size: int = 100
    """Images at a time, when they are tested."""
    out: Path | None = None
    """Folder for all that is made; RUN/converted if none."""

    def __post_init__(self):
        as_folders(self, "run", "out")
        for code in (*self.codes, self.qk_code):
            SpikeCode.parse(code)
        check_number("finetune_epochs", self.finetune_epochs, 0, 1e6)
        check_number("finetune_rate", self.finetune_rate, 0, 1e3, above=True)
        for name in ("calibrate", "certify", "batch_size"):
            check_whole(name, getattr(self, name), 1, 2**20)
        if not self.rate_steps:
            raise ValueError("rate_steps is empty: give at least one number of time steps")
        for steps in self.rate_steps:
            check_whole("rate_steps", steps, 1, 255)
        for name in ("limit", "step"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, 2**40)


class Conversion:
    """One run, and all that is made of it."""

    def __init__(self, options: Convert, console: Console):
        self.options, self.console = options, console
        self.model, self.variables, self.about = load_averaged(
            options.run, "best" if options.step is None else options.step
        )
        self.config = from_json(self.about["config"])
        self.train, self.test = (
            open_source(self.config.data, split, self.config.data_dir, self.config.on_corrupt)
            for split in ("train", "test")
        )
        self.out = options.out or options.run / "converted"

    def rows(self):
        """A row of the table for each network made."""
        neuron, options = self.config.neuron, self.options
        kinds = {"relu": self.from_anns, "qcfs": self.rate_coded} | dict.fromkeys(LOSSLESS, self.as_it_is)
        if neuron not in kinds:
            raise ValueError(
                f"run: its neurons are {neuron}: {' and '.join(LOSSLESS)} ones are deployed, qcfs ones are run "
                "rate-coded, and an ANN of relu is converted"
            )
        if neuron != "relu" and options.codes:
            raise ValueError(f"codes: this run's neurons are {neuron} ones of code {self.config.code}: leave codes out")
        if neuron == "relu" and options.step is not None:
            raise ValueError("step: an ANN is converted from its best checkpoint: leave step out")
        make(self.out)
        yield from kinds[neuron]()

    def as_it_is(self):
        """A network of neurons that are lossless."""
        trained = self.accuracy(self.model, self.variables)
        yield self.deployed(self.config, self.model, self.variables, {"trained": trained})

    def rate_coded(self):
        """A network of QCFS neurons beside what integrate-and-fire neurons make of it, at each number of steps."""
        trained, _ = self.counted(self.model, "as trained")
        for steps in self.options.rate_steps:
            made = rate_coded(self.model, steps)
            found, counter = self.counted(made, f"{steps} steps")
            yield {
                "code": self.config.code, "qk_code": self.config.qk_code, "rate_steps": steps, "trained": trained,
                "rate_coded": found, "test_images": counter.images, "spikes_per_neuron": counter.spikes_per_neuron,
                "exact_mj": energy(counter, CONVENTIONS["exact"], made.num_steps)["total_mj"],
            }  # fmt: skip

    def counted(self, model, title: str):
        """Accuracy and counts of a network that is not deployed, on the test images."""
        options, plan = self.options, BatchPlan(self.options.batch_size, decode=self.config.decode)
        network = functools.partial(forward, model, jax.device_put(jax.device_get(self.variables)))
        scores, counter = count_over(network, self.test, plan, f"test, {title}", options.limit, self.console)
        return scores.accuracy, counter

    def from_anns(self):
        """A network of ExpG-IF neurons for each code."""
        ann = self.accuracy(self.model, self.variables)
        for code in self.options.codes or ("1x4",):
            yield self.from_ann(code, ann)

    def from_ann(self, code: str, ann: float) -> dict:
        """Thresholds, fine-tuning, deployment: a row with the accuracy after each."""
        epochs = self.options.finetune_epochs
        config = dataclasses.replace(
            self.config, neuron="expg", code=code, qk_code=self.options.qk_code, init_from=self.options.run, steps=None,
            epochs=max(epochs, 1e-6), warmup_epochs=0.1 * epochs, distill_from=None, freeze=None, extra_steps=0,
            seed=self.config.seed + 1,
            base_learning_rate=self.options.finetune_rate * self.config.base_learning_rate,
        )  # fmt: skip
        decay = 1 - 10 / config.num_steps(len(self.train))  # the average forgets in a tenth of the run
        config = dataclasses.replace(config, ema_decay=min(config.ema_decay, max(decay, 0.0)))
        setup = set_up(config, self.about["image_shape"], len(self.train.classes), len(self.train))
        state = from_another_run(
            setup, setup.init(), self.train.classes, lambda: batches_of(setup, self.train), self.say
        )
        found = {"ann": ann, "converted": self.accuracy(setup.model, state.ema), "finetuned": None, "steps": None}
        self.say(f"{code}: {100 * ann:.2f} % of the ANN, {100 * found['converted']:.2f} % converted")
        if epochs:
            trained = train(config, self.out / code / "run", self.console)
            if trained.signal is not None:
                sys.exit(128 + trained.signal)
            state, steps = trained.state, config.num_steps(len(self.train))
            found |= {"finetuned": self.accuracy(setup.model, state.ema), "steps": steps}
        return self.deployed(config, setup.model, jax.device_get(state.ema), found)

    def accuracy(self, model, variables) -> float:
        """Of a training network, on the test images, by the first device."""
        place, size = batch_sharding(make_mesh(1, 1, jax.devices()[:1])), self.options.batch_size
        return evaluate(model, jax.device_get(variables), self.test, size, place, self.config.decode)["accuracy"]

    def deployed(self, config, model, variables, found: dict) -> dict:
        """Deploys, certifies, counts and writes a network; a row of the table."""
        options, place, seconds = self.options, self.out / config.code, {}
        plan = BatchPlan(options.batch_size, decode=config.decode)
        about = about_images(self.about | {"config": as_json(config)})
        calibration = first_images(self.train, plan, options.calibrate)
        with timed(seconds, "convert"):
            net = deploy(model, variables, self.about["image_shape"], calibration, about=about)
        images, labels = first_images(self.test, plan, options.certify)
        with timed(seconds, "certify"), Progress(console=self.console) as progress:
            task = progress.add_task("certify", total=len(images))
            made = certify(net, images, labels, options.batch_size, lambda done: progress.update(task, completed=done))
        with timed(seconds, "count"):
            right = {}
            for execution in ("dense", "spiking"):
                scores, counter = run_over(net, self.test, plan, execution, options.limit, self.console)
                right[execution] = scores.accuracy
        products = audit(net)
        make(place)
        save_net(place / "network", net, config.model)
        report = build_report(
            dataset=(config.data, len(self.train), counter.images), model_name=config.model, net=net, certificate=made,
            counter=counter, audit=products, seconds=seconds, training=as_json(config),
        )  # fmt: skip
        write_report(place, report, net, images, [])
        return found | {
            "code": config.code, "qk_code": config.qk_code, "dense": right["dense"], "spiking": right["spiking"],
            "test_images": counter.images, "certified_images": len(images), "differing": differing(made.as_dict()),
            "drift": made.as_dict()["drift"]["share"], "spikes_per_neuron": counter.spikes_per_neuron,
            "exact_mj": energy(counter, CONVENTIONS["exact"], net.model.num_steps)["total_mj"], "digest": net.digest,
        }  # fmt: skip

    def say(self, line: str) -> None:
        self.console.print(Text(one_line(line)), soft_wrap=True)


@contextlib.contextmanager
def timed(seconds: dict, phase: str):
    """Adds what runs in it to `seconds`."""
    start = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - start, 2)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


#: What the table says of each network, in this order: a key of its row, and how it is written.
SAID = {
    "ann": ("ANN", percent), "converted": ("converted, no training", percent), "finetuned": ("fine-tuned", percent),
    "steps": ("steps of that", str), "trained": ("as trained", percent),
    "rate_coded": ("rate-coded", percent), "dense": ("deployed, dense", percent),
    "spiking": ("deployed, spiking", percent), "differing": ("spikes, levels, logits that differ", str),
    "drift": ("levels unlike the trained network's", lambda share: f"{100 * share:.4f} %"),
    "spikes_per_neuron": ("spikes per neuron and image", "{:.3f}".format),
    "exact_mj": ("energy an image, exact", lambda mj: f"{1e3 * mj:.3f} µJ"),
}  # fmt: skip


def table_of(run: Path, rows: list[dict]) -> Table:
    """A column for each network: test accuracies after each stage, and what the spiking execution costs."""
    table = Table("code (of q, k)", title=Text(one_line(f"{run}, {rows[0]['test_images']} test images")))
    for row in rows:
        steps = f", T = {row['rate_steps']}" if "rate_steps" in row else ""
        table.add_column(f"{row['code']} ({row['qk_code']}){steps}", justify="right")
    for key, (name, written) in SAID.items():
        if rows[0].get(key) is not None:
            table.add_row(name, *(written(row[key]) for row in rows))
    return table


def main(options: Convert) -> None:
    console, rows = Console(), []
    conversion = Conversion(options, console)
    for row in conversion.rows():
        rows.append(row)
        found = {"run": str(options.run), "config": conversion.about["config"], "rows": rows}
        write_whole(conversion.out / "convert.json", json.dumps(found, indent=1) + "\n")
    console.print(table_of(options.run, rows))
    console.print(Text(one_line(f"networks, reports and convert.json: {conversion.out}")), soft_wrap=True)


if __name__ == "__main__":
    run_command(main, Convert)
