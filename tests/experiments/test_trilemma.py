"""The trilemma's rows, who runs them, and the tables made of what they left."""

import contextlib
import json
import signal
import time
import types

import pytest
import tables
import trilemma
from harness import rows
from rich.console import Console

from ge2mst_jax.convert import ConversionError
from ge2mst_jax.spiking import SpikeCode
from ge2mst_jax.train import as_json
from ge2mst_jax.train.command import run_command
from ge2mst_jax.train.loop import Interruption

ENERGY = {"field": 2e-3, "field_each_step": 2e-3, "lab": 1e-3, "exact": 1e-3}


def a_result(row) -> dict:
    """What a row could have left."""
    made = {"row": row.name, "table": row.table, "label": row.label, "config": as_json(row.config), "minutes": 2.0}
    if row.follows:
        about = {"qk_code": "1x2", "differing": "0, 0, 0", "spikes_per_neuron": 0.5, "exact_mj": 1e-3}
        return made | {"conversion": dict(ann=0.9, converted=0.8, finetuned=0.89, spiking=0.89) | about}
    made["cost"] = {"bytes": 2**26, "batch_size": 64, "seconds": 0.2, "relu_seconds": 0.1}
    if not row.trained:
        return made
    neuron, steps = row.config.neuron, SpikeCode.parse(row.config.code).num_steps
    run = {"latency": 8 * steps, "accuracy": 0.88, "images": 2000, "spikes_per_neuron": 0.7, "energy_mj": ENERGY}
    runs = {"qcfs": (2, 4, 64), "relu": (0,)}.get(neuron, (steps,))
    made |= {"accuracy": 0.89 + row.config.seed / 100, "executed": [run | {"steps": t} for t in runs], "dense": 0.89}
    certified = {"certificate": {"images": 200, "differing": "0, 0, 0", "drift": 0.0}}
    return made | (certified if neuron in ("expg", "sfa") else {})


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """A page with its sections, published figures, and a place for results; one small network of ours."""
    monkeypatch.setattr(tables, "OURS", (("imagenet", "ge2mst_nano", (8, 8, 1), 10),))
    folder = tmp_path / "docs"
    (folder / "results" / "trilemma").mkdir(parents=True)
    names = (*tables.SECTIONS, "pictures", "comparison")
    (folder / "results.md").write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names))
    (tmp_path / "README.md").write_text("<!-- summary -->\n<!-- /summary -->\n")
    peer = {"data": "imagenet", "model": "Peer", "parameters_m": 16.8, "steps": 4, "energy_mj": None, "top1": 70.24}
    about = {"source": "its README", "ann": False, "size": "peer_s"}
    (folder / "results" / "published.json").write_text(json.dumps({"rows": [peer | about]}))
    size = {"model": "peer_s", "ours": 17_200_000, "macs": 3.21e9}
    (folder / "results" / "peers.json").write_text(json.dumps({"sizes": [size]}))
    return folder


def sitting(tmp_path, **options):
    made = trilemma.Sitting(
        trilemma.Options(runs=tmp_path / "runs", results=tmp_path / "results", **options), Console(quiet=True)
    )
    made.order = []
    made.measured = lambda row: made.order.append(row.name) or {}
    made.converted = made.measured
    return made


def write(docs, *results):
    for made in results:
        (docs / "results" / "trilemma" / f"{made['row']}.json").write_text(json.dumps(made))
    run_command(tables.main, tables.Options, arguments=["--docs", str(docs)])
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in docs.parent.rglob("*.*")}


def test_every_row_has_a_name_of_its_own_and_a_network():
    found = rows.all_rows()
    assert len({row.name for row in found}) == len(found)
    assert {row.config.seed for row in found if row.label == "expg 2x2"} == set(rows.SEEDS)
    assert all(row.follows in {other.name for other in found} for row in found if row.follows)


def test_what_lif_costs_grows_with_its_steps():
    weights = {row.label: row.weight for row in rows.all_rows(["neurons"])}
    assert weights["relu"] == weights["expg 4x1"] == rows.EPOCHS
    assert weights["lif, T = 4"] == 2 * weights["lif, T = 2"] > 2 * weights["relu"]


def test_rows_that_are_done_are_not_run_again(tmp_path):
    first = sitting(tmp_path, tables=("conversion",), only="1x8")
    first.run()
    assert first.order == []  # the ANN that it starts from is not there
    ann = sitting(tmp_path, tables=("neurons",), only="neurons-relu-s0")
    ann.run()
    assert ann.order == ["neurons-relu-s0"]
    for expected in (["conversion-1x8-s0"], []):
        again = sitting(tmp_path, tables=("conversion",), only="1x8")
        again.run()
        assert again.order == expected
    assert again.left() == []


def test_a_row_that_another_process_has_is_passed_over(tmp_path):
    made = sitting(tmp_path, tables=("neurons",), only="relu-s")
    with trilemma.exclusive(tmp_path / "runs" / "locks" / "neurons-relu-s1"), contextlib.suppress(ValueError):
        made.run()
    assert made.order == ["neurons-relu-s0", "neurons-relu-s2"]


def test_a_network_that_is_not_deployed_keeps_no_other_row_from_being_run(tmp_path, monkeypatch, capsys):
    def measured(self, row):
        if row.config.seed == 1:
            raise ConversionError("no fraction bits are left")
        return {}

    monkeypatch.setattr(trilemma.Sitting, "measured", measured)
    where = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit) as stop:
        run_command(trilemma.main, trilemma.Options, arguments=["neurons", "--only", "relu-s", *where])
    said = capsys.readouterr()
    assert stop.value.code == 2 and "neurons-relu-s1: not deployed, for the reason above" in said.err
    assert "neurons-relu-s1: no fraction bits are left" in said.out and "1 rows left" in said.out
    assert {path.stem for path in (tmp_path / "results").iterdir()} == {"neurons-relu-s0", "neurons-relu-s2"}


def test_costs_are_measured_again_and_nothing_else_is_touched(tmp_path, monkeypatch):
    made = sitting(tmp_path, tables=("neurons", "conversion"), only="-s0")
    done = [row for row in made.rows if row.label in ("relu", "lif, T = 2", "1x8")]
    before = {row.name: a_result(row) for row in done}
    for row in done:
        made.write(row, before[row.name])
    asked = []
    monkeypatch.setattr(
        trilemma, "cost", lambda config, *about: asked.append(config) or dict(seconds=3, relu_seconds=2)
    )
    monkeypatch.setattr(made, "images", lambda config: (None, None, (28, 28, 1), 10))
    made.cost_again()
    after = {row.name: json.loads(made.result(row.name).read_text()) for row in done}
    assert made.order == [] and len(asked) == 2
    assert after["conversion-1x8-s0"] == json.loads(json.dumps(before["conversion-1x8-s0"]))
    for name in ("neurons-relu-s0", "neurons-lif_T_2-s0"):
        cost = after[name].pop("cost")
        assert cost["seconds"] == 3 and cost["environment"]["packages"]
        assert after[name] == json.loads(json.dumps({k: v for k, v in before[name].items() if k != "cost"}))


def test_out_of_minutes_nothing_new_is_begun(tmp_path):
    made = sitting(tmp_path, tables=("neurons",), budget_minutes=1.0)
    made.ends = time.monotonic() - 1
    made.run()
    assert made.order == []


def test_out_of_minutes_training_is_asked_to_stop(tmp_path, monkeypatch):
    made = sitting(tmp_path, budget_minutes=1.0)
    made.ends = time.monotonic() + 0.2

    def train(*_):
        with Interruption() as interruption:
            for _ in range(200):
                if interruption.asked:
                    return types.SimpleNamespace(signal=interruption.asked)
                time.sleep(0.05)
        raise AssertionError("nobody asked")

    monkeypatch.setattr(trilemma, "train", train)
    with pytest.raises(trilemma.Interrupted, match=str(int(signal.SIGTERM))):
        made.trained(made.rows[0].config, tmp_path)


def test_estimates_go_by_what_was_measured(tmp_path):
    made = sitting(tmp_path, tables=("neurons",), only="s0")
    row = made.rows[0]
    assert made.minutes(row) == trilemma.MINUTES * row.weight
    made.options.results.mkdir()
    made.result(row.name).write_text(json.dumps(a_result(row)))
    lif = next(row for row in made.rows if row.label == "lif, T = 4")
    assert made.minutes(lif) == 2.0 * lif.weight / row.weight


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["neuron"], "unknown table 'neuron': known are neurons, attentions, conversion"),
        (["--only", "nothing"], "only is nothing: no row's name holds it"),
        (["--budget-minutes", "0"], "budget_minutes is 0"),
    ],
)
def test_wrong_options_are_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(trilemma.main, trilemma.Options, arguments=arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_file_that_is_no_result_is_named(docs, capsys):
    with pytest.raises(SystemExit) as ended:
        write(docs, {"row": "neurons-relu-s0"})
    assert ended.value.code == 2
    assert "neurons-relu-s0.json is no result of a row (it lacks config)" in capsys.readouterr().err
    assert "not run" not in (docs / "results.md").read_text()


def test_tables_without_results_say_so(docs):
    write(docs)
    text = (docs / "results.md").read_text()
    assert "| lif, T = 4 | not run |" in text
    assert "| Peer | 17.2 M | 3.21 G | 4 |  | 70.24 % | not run | its README |" in text
    assert "| `ge2mst_nano` | 0.1 M |" in text
    assert ".png" not in text
    assert not list(docs.rglob("*.png"))


def test_tables_change_nothing_where_nothing_changed(docs):
    first = write(docs, *map(a_result, rows.all_rows()))
    text = (docs / "results.md").read_text()
    assert "| not run |" not in text.partition("**ImageNet")[0]
    assert "90.00 ± 1.00 %" in text  # three seeds
    assert "[1](results/trilemma/neurons-relu-s1.json)" in text
    summary = (docs.parent / "README.md").read_text()
    assert "| qcfs 4x1 | rate-coded, 2,000 images | 64 | 88.00 ± 0.00 % | 1.0 µJ | 64 MiB | 2.00 × |" in summary
    assert "budget 0.3" in summary and "plif" not in summary
    assert "![accuracy over energy](results/accuracy_energy.png)" in text
    again = write(docs)
    pictures = [path for path in first if path.suffix == ".png"]
    assert len(pictures) == 3
    assert {path: content for path, (content, _) in first.items()} == {p: c for p, (c, _) in again.items()}
    assert all(first[path] == again[path] for path in pictures)
