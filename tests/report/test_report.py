"""The report: what it holds, that its page needs nothing from outside, that files are written whole."""

import base64
import html
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tiny_networks import SHAPE, random_images, random_variables, tiny_model

from ge2mst_jax.checks import one_line
from ge2mst_jax.convert import certify, deploy
from ge2mst_jax.energy import SpikeCounter, audit
from ge2mst_jax.files import write_whole
from ge2mst_jax.nn import NeuronRecord
from ge2mst_jax.report import build_report, figures, render_page, summary_table, write_report

IMAGES = random_images(8)
LABELS = np.arange(8, dtype=np.int32) % 5
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def net():
    model = tiny_model("2x2")
    return deploy(model, random_variables(model), SHAPE)


@pytest.fixture(scope="module")
def report(net):
    counter = SpikeCounter()
    counter.add(net(jnp.asarray(IMAGES), execution="spiking")[1])
    return build_report(
        dataset=("noise <digits>", 8, 8), model_name="ge2mst_nano", net=net,
        certificate=certify(net, IMAGES, LABELS, batch_size=8), counter=counter, audit=audit(net),
        seconds={"train": 1.0}, training={"epochs": 1, "spike_budget": None},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(net, report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    test = {"accuracy": 0.2, "spikes_per_neuron": 0.5}
    history = [{"epoch": 1, "loss": 2.0, "accuracy": 0.1}, {"epoch": 2, "loss": 1.0, "accuracy": 0.2, "test": test}]
    write_report(folder, report, net, IMAGES, history)
    return folder


def test_report_holds_what_the_schema_says(report):
    expected = "schema environment dataset model accuracy certificate energy spikes_per_neuron audit seconds"
    assert set(expected.split()) <= set(report)
    assert report["dataset"] == {"name": "noise <digits>", "train": 8, "test": 8, "image_shape": [8, 8, 2]}
    assert report["model"]["code"] == "2x2"
    assert report["model"]["parameters"] == sum(
        a.size for a in jax.tree.leaves(random_variables(tiny_model())["params"])
    )
    assert set(report["accuracy"]) == {"training", "dense", "spiking", "change"}
    layer = report["certificate"]["layers"][1]
    assert {"name", "fraction_bits", "bound", "spikes_compared"} <= set(layer)
    assert set(report["energy"]) == {"field", "field_each_step", "lab", "exact"}
    for energy in report["energy"].values():
        assert energy["total_mj"] == pytest.approx(sum(layer["mj"] for layer in energy["layers"]))
        assert energy["total_mj"] >= energy["stem_mj"] >= 0
    assert report["audit"]["real_x_real"] == 0


def test_files_are_all_there_and_say_the_same(run_dir, report):
    assert json.loads((run_dir / "report.json").read_text()) == json.loads(json.dumps(report))
    pictures = sorted(p.stem for p in (run_dir / "figures").iterdir())
    assert pictures == ["energy", "groups", "levels", "raster", "training"]
    assert all(p.read_bytes().startswith(PNG) for p in (run_dir / "figures").iterdir())


def test_page_needs_nothing_from_outside_and_escapes_what_it_shows(run_dir):
    page = (run_dir / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in page
    assert "noise &lt;digits&gt;" in page
    assert "<digits>" not in page
    shown = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert sorted(shown) == sorted(p.read_bytes() for p in (run_dir / "figures").iterdir())


def test_summary_says_what_differs(report):
    cells = [list(column.cells) for column in summary_table(report).columns]
    assert cells[1][cells[0].index("spikes, levels, logits that differ")] == "0, 0, 0"


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(TypeError):
        write_whole(path, object())
    assert path.read_text() == "old"
    write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"new"


def test_layers_fire_once_all_that_they_listen_to_has_fired(net):
    times = figures.firing_times(net.layers)
    assert times["stem/image"] == (0, 8)
    assert times["stage_0/block_0/neuron_0"] == (8, 12)
    block = "stage_1/block_0/attention"
    start = times[f"{block}/neuron"][1]
    assert times[f"{block}/neuron_q"] == times[f"{block}/neuron_k"] == (start, start + 1)
    assert times[f"{block}/neuron_v"] == (start, start + 4)
    assert times[f"{block}/neuron_out"] == (start + 4, start + 8)


def test_levels_of_every_neuron_and_image_are_counted_once(net, monkeypatch):
    monkeypatch.setattr(figures, "BATCH", 4)
    counts = figures.level_counts(net, IMAGES)
    aux = net(jnp.asarray(IMAGES), capture="levels")[1]
    for name, record in aux.items():
        if isinstance(record, NeuronRecord) and record.parts:
            assert counts[name].tolist() == [
                int(np.sum(np.asarray(record.levels) == level)) for level in range(record.code.max_level + 1)
            ]
    assert "stem/image" not in counts


def test_network_without_attention_has_no_groups():
    model = tiny_model(stages=(("conv", 8, 1),))
    assert figures.groups_figure(deploy(model, random_variables(model), SHAPE), IMAGES[0]) is None


ODD = ["$x_$", "\\frac{", "a\nb", "\x1b[31m\x00", "[/x]", "<b>&\"'", "a\udcff", "漢 \U0001f600", "long " * 60, "%s{}"]


def test_names_in_figures_are_literal():
    names = [*ODD, "a", "b"]
    assert figures.confusion_figure(np.eye(len(names), dtype=int), names).startswith(PNG)
    layers = [{"name": name, "mj": 1e-9, "role": "hidden"} for name in names]
    assert figures._png(figures.energy_figure({"layers": layers})).startswith(PNG)
    assert figures._png(figures.levels_figure({name: np.array([1, 2]) for name in names})).startswith(PNG)


def test_a_dollar_is_drawn_as_a_dollar():
    axes = figures.Figure().subplots()
    figures._names(axes.set_yticks, range(2), ["$x_$", "a\nb"])
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == ["$x_$", "a b"]
    assert not any(label.get_parse_math() for label in labels)


@pytest.mark.parametrize("name", ODD)
def test_page_and_table_hold_any_name(report, name, capsys):
    odd = report | {"dataset": report["dataset"] | {"name": name}, "training": {name: name}}
    page = render_page(odd, {})
    shown = one_line(name)
    assert html.escape(f"ge2mst_nano on {shown}") in page
    assert f"{html.escape(shown)}</td>" in page
    assert "<b>&" not in page and all(c.isprintable() or c == "\n" for c in page)
    Console(width=400).print(summary_table(odd))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"ge2mst_nano on {shown}" in printed and printed.encode()
