"""The trilemma, measured: rows of neurons, attentions and conversions, trained, executed and counted in one harness.

    python experiments/trilemma.py [neurons attentions conversion] [--only TEXT] [--budget-minutes 170]
    python experiments/trilemma.py --list-rows True

A row is a config and a seed (experiments/harness/rows.py). Its run lies in RUNS/ROW, what was measured in
RESULTS/ROW.json: a row that is there is not run again. Interrupted, or out of minutes, the same command goes on where
it was; several commands side by side share the rows. `make tables` writes docs/results.md from the results.
--costs-again True measures the training step of the rows that are done once more, such as when the machine is quiet.
"""

import signals  # noqa: F401  # before all that takes time

# isort: split
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import tyro
from convert import Conversion, Convert
from harness.measure import cost, executions, history
from harness.rows import TABLES, Row, all_rows, read_result
from rich.console import Console
from rich.table import Table

from ge2mst_jax.checks import check_choice, check_number, one_line
from ge2mst_jax.convert import ConversionError
from ge2mst_jax.data import BatchPlan, open_source
from ge2mst_jax.files import write_whole
from ge2mst_jax.provenance import environment
from ge2mst_jax.train import as_json, train
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.lock import InUse, exclusive
from ge2mst_jax.train.metrics import read_metrics

#: Minutes of a row of weight 1 where none was run yet.
MINUTES = 12.0


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs rows of the trilemma's tables; goes on where it was."""

    tables: tyro.conf.Positional[tuple[str, ...]] = ()
    """neurons, attentions, conversion; all if none."""
    only: str = ""
    """Rows alone whose name holds this."""
    budget_minutes: float | None = None
    """Stop in good order after so many minutes."""
    data: str | None = None
    """Another place of the data set, as of train.py."""
    runs: Path = Path("runs/trilemma")
    """Folder of the runs."""
    results: Path = Path("docs/results/trilemma")
    """Folder of what was measured."""
    costs_again: bool = False
    """Train nothing: measure again what a step of the rows that are done costs."""
    list_rows: bool = False
    """Run nothing: show what is done and left."""

    def __post_init__(self):
        for name in self.tables:
            check_choice("table", name, TABLES)
        if self.budget_minutes is not None:
            check_number("budget_minutes", self.budget_minutes, 0, 1e6, above=True)


class Interrupted(Exception):
    """A signal, or the end of the budget, came while a row was trained; its number."""


class Sitting:
    """One call of the script."""

    def __init__(self, options: Options, console: Console):
        self.options, self.console = options, console
        self.ends = float("inf") if options.budget_minutes is None else time.monotonic() + 60 * options.budget_minutes
        self.refused = []
        self.rows = [row for row in all_rows(options.tables) if options.only in row.name]
        if not self.rows:
            raise ValueError(f"only is {one_line(options.only)}: no row's name holds it; --list-rows True shows them")
        if options.data is not None:
            self.rows = [
                dataclasses.replace(r, config=dataclasses.replace(r.config, data=options.data)) for r in self.rows
            ]

    def result(self, name: str) -> Path:
        return self.options.results / f"{name}.json"

    def done(self, row: Row) -> bool:
        return self.result(row.name).exists()

    def left(self) -> list[Row]:
        return [row for row in self.rows if not self.done(row)]

    def minutes(self, row: Row) -> float:
        """That a row will take: as those before it took, by weight."""
        found = [(r.weight, read_result(self.result(r.name))["minutes"]) for r in self.rows if self.done(r)]
        each = sum(m for _, m in found) / sum(w for w, _ in found) if found else MINUTES
        return row.weight * each

    def run(self) -> None:
        """Every row that is left, but those that another process has or that wait for another row.

        A network that cannot be deployed keeps no other row from being run: its name is kept in `refused`.
        """
        for row in self.rows:
            if self.done(row):
                continue
            if time.monotonic() > self.ends:
                break
            if row.follows is not None and not self.result(row.follows).exists():
                self.say(f"{row.name}: waits for {row.follows}")
                continue
            left = self.left()
            about = f"{len(left)} of {len(self.rows)} rows left, about {sum(map(self.minutes, left)):.0f} minutes"
            self.say(f"{row.name}: {about}")
            try:
                with exclusive(self.options.runs / "locks" / row.name):
                    if not self.done(row):
                        self.make(row)
            except InUse:
                self.say(f"{row.name}: another process runs it")
            except ConversionError as error:
                self.say(f"{row.name}: {error}")
                self.refused.append(row.name)

    def cost_again(self) -> None:
        """Of every row that is done and has one, as long as there are minutes; the rest of its result stays."""
        for row in self.rows:
            if time.monotonic() > self.ends:
                break
            if not self.done(row) or row.follows is not None:
                continue
            found = read_result(self.result(row.name))
            image_shape, classes = self.images(row.config)[2:]
            found["cost"] = cost(row.config, image_shape, classes) | {"environment": environment()}
            self.write(row, found)
            self.say(f"{row.name}: {found['cost']['seconds'] / found['cost']['relu_seconds']:.2f} of the ANN's time")

    def write(self, row: Row, found: dict) -> None:
        self.options.results.mkdir(parents=True, exist_ok=True)
        write_whole(self.result(row.name), json.dumps(found, indent=1) + "\n")

    def images(self, config):
        """`(train, test, shape, classes)`."""
        source, test = (open_source(config.data, s, config.data_dir, config.on_corrupt) for s in ("train", "test"))
        return source, test, BatchPlan(1, decode=config.decode).shape(source), len(source.classes)

    def make(self, row: Row) -> None:
        """Runs and measures a row, and writes its result."""
        start, seconds = time.monotonic(), seconds_of(self.options.runs / row.name)
        found = {"row": row.name, "table": row.table, "label": row.label, "config": as_json(row.config)}
        found |= self.converted(row) if row.follows else self.measured(row)
        seconds += time.monotonic() - start
        found |= {"minutes": seconds / 60, "environment": environment()}
        self.write(row, found)

    def measured(self, row: Row) -> dict:
        """Trained, executed, and what a step of its training costs."""
        config = row.config
        source, test, shape, classes = self.images(config)
        found = {}
        if row.trained:
            folder = self.options.runs / row.name
            trained = self.trained(config, folder)
            variables = jax.device_get(trained.state.ema)
            found = {"accuracy": trained.evaluation["accuracy"], "history": history(folder)}
            found |= executions(config, trained.setup.model, variables, shape, source, test, self.console)
        return found | {"cost": cost(config, shape, classes)}

    def trained(self, config, folder: Path):
        """A run, whole; out of minutes it is asked to stop as by SIGTERM, and saves."""
        ends = self.ends - time.monotonic()
        timer = (
            threading.Timer(max(ends, 0), os.kill, (os.getpid(), signal.SIGTERM))
            if ends < threading.TIMEOUT_MAX
            else None
        )
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            trained = train(config, folder, self.console)
        finally:
            if timer is not None:
                timer.cancel()
        if trained.signal is not None:
            raise Interrupted(trained.signal)
        return trained

    def converted(self, row: Row) -> dict:
        """The ANN of another row, made spiking by `convert.py`."""
        options = Convert(
            self.options.runs / row.follows, (row.config.code,), row.config.qk_code, row.config.epochs, certify=200,
            out=self.options.runs / row.name,
        )  # fmt: skip
        return {"conversion": next(iter(Conversion(options, self.console).rows()))}

    def table(self) -> Table:
        """What is done, and what is left with its estimate."""
        table = Table("row", "state")
        for row in self.rows:
            state = "done" if self.done(row) else f"about {self.minutes(row):.0f} minutes"
            table.add_row(row.name, state)
        return table

    def say(self, line: str) -> None:
        self.console.print(one_line(line), soft_wrap=True, highlight=False, markup=False)


def seconds_of(run: Path) -> float:
    """That the sittings before spent in the steps of a run."""
    path = run / "metrics.jsonl"
    return sum(line.get("seconds", 0.0) for line in read_metrics(path)) if path.exists() else 0.0


def main(options: Options) -> None:
    console = Console()
    sitting = Sitting(options, console)
    if options.list_rows:
        console.print(sitting.table())
        return
    if options.costs_again:
        sitting.cost_again()
        return
    try:
        sitting.run()
    except Interrupted as interrupted:
        if time.monotonic() < sitting.ends:
            sys.exit(128 + interrupted.args[0])
    left = sitting.left()
    says = f"{len(left)} rows left, about {sum(map(sitting.minutes, left)):.0f} minutes: the same command goes on"
    sitting.say(says if left else "every row is done: make tables")
    if sitting.refused:
        raise ValueError(f"{', '.join(sitting.refused)}: not deployed, for the reason above")


if __name__ == "__main__":
    run_command(main, Options)
