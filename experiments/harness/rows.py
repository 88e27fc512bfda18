"""The rows of the trilemma's tables: every one a config and a seed, nothing else."""

import dataclasses
import re

from train import load_config

from ge2mst_jax.checks import one_line
from ge2mst_jax.files import read_json
from ge2mst_jax.nn import TIMED
from ge2mst_jax.spiking import SpikeCode
from ge2mst_jax.train import TrainConfig

#: One recipe for all rows: half an epoch of Fashion-MNIST.
EPOCHS = 0.5
RECIPE = dataclasses.replace(
    load_config("fashion_mnist"),
    epochs=EPOCHS,
    warmup_epochs=0.1,
    eval_every_epochs=EPOCHS,
    checkpoint_every_epochs=0.1,
)
#: Of the rows that stand for their kind.
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Args:
        table: one of `TABLES`.
        label: as it is called in the table.
        config: of its run.
        follows: of a conversion, the row whose ANN it starts from.
        trained: whether it is trained; rows that only cost something are compiled and timed.
    """

    table: str
    label: str
    config: TrainConfig
    follows: str | None = None
    trained: bool = True

    @property
    def name(self) -> str:
        """Of its files.

        >>> Row("neurons", "expg 2x3/1, budget 0.3", RECIPE).name
        'neurons-expg_2x3.1_budget_0.3-s0'
        """
        words = re.sub(r"[^\w.]+", "_", self.label.replace("/", ".")).strip("_")
        return f"{self.table}-{words}-s{self.config.seed}"

    @property
    def weight(self) -> float:
        """What its training costs, roughly, in runs of one epoch in one pass."""
        if not self.trained:
            return 0.05
        timed = self.config.neuron in TIMED
        return self.config.epochs * (1.25 * SpikeCode.parse(self.config.code).num_steps if timed else 1)


def row(table: str, label: str, seed: int = 0, follows: str | None = None, trained: bool = True, **changes) -> Row:
    """A row from what differs from the recipe."""
    return Row(table, label, dataclasses.replace(RECIPE, seed=seed, **changes), follows, trained)


def neurons():
    """Neuron × code, with and without a budget; the main five with three seeds."""
    rate, step = dict(code="4x1", qk_code="4x1"), dict(qk_code="1x1")
    main = {
        "relu": dict(neuron="relu"),
        "expg 1x4": {},
        "expg 2x2": dict(code="2x2"),
        "sfa 4x1": dict(neuron="sfa", **rate),
        "qcfs 4x1": dict(neuron="qcfs", **rate),
        "lif, T = 4": dict(neuron="lif", code="1x4", **step),
    }
    for seed in SEEDS:
        yield from (row("neurons", label, seed, **changes) for label, changes in main.items())
    for code in ("4x1", "2x3/1"):
        yield row("neurons", f"expg {code}", code=code)
    for code in ("1x4", "2x2", "4x1", "2x3/1"):
        yield row("neurons", f"expg {code}, budget 0.3", code=code, spike_budget=0.3)
    for code in ("1x4", "2x2"):
        yield row("neurons", f"expg {code}, budget 0.12", code=code, spike_budget=0.12)
    for neuron in ("lif", "plif"):
        for steps in (1, 2, 4) if neuron == "plif" else (1, 2):
            yield row("neurons", f"{neuron}, T = {steps}", neuron=neuron, code=f"1x{steps}", **step)
        yield row("neurons", f"{neuron}, T = 8, a quarter", neuron=neuron, code="1x8", epochs=EPOCHS / 4, **step)
        for steps in (1, 2, 4, 8):
            changes = dict(neuron=neuron, code=f"1x{steps}", remat="nothing_saveable", **step)
            yield row("neurons", f"{neuron}, T = {steps}, rematerialised", trained=False, **changes)
    for code in ("2x4", "4x4"):
        yield row("neurons", f"expg {code}", trained=False, code=code)


def attentions():
    """Attention × convolution branch, `expg` neurons."""
    kinds = {
        "gw_ssa": {},
        "gw_ssa, block alone": dict(scales=("block2",)),
        "gw_ssa, grid alone": dict(scales=("grid2",)),
        "ssa": dict(attention="ssa"),
        "sdsa": dict(attention="sdsa"),
        "sdsa_v1": dict(attention="sdsa_v1"),
        "qk_token": dict(attention="qk_token"),
    }
    for label, changes in kinds.items():
        yield row("attentions", label, **changes)
        yield row("attentions", f"{label}, no convolution branch", local=False, **changes)


def conversions():
    """The finished ANN made spiking: without training, and after a tenth of its steps (`convert.py`)."""
    ann = row("neurons", "relu").name
    for code in ("1x4", "2x2", "1x8"):
        yield row("conversion", code, follows=ann, code=code, epochs=EPOCHS / 10)


TABLES = {"neurons": neurons, "attentions": attentions, "conversion": conversions}


def all_rows(tables=()) -> list[Row]:
    """Of the named tables, all if none, in their order."""
    return [made for name in tables or TABLES for made in TABLES[name]()]


def read_result(path) -> dict:
    """What `trilemma.py` left of a row.

    Raises:
        ValueError: the file is damaged, or another's.
    """
    found = read_json(path)
    if missing := {"row", "table", "label", "config", "minutes"} - found.keys():
        raise ValueError(f"{one_line(path)} is no result of a row (it lacks {min(missing)}): move it away")
    return found
