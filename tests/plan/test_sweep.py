"""Sweeps: every combination once, kept as it is made, taken up where it was left."""

import importlib
import json

import plan as script
import pytest
from plans import POD, a_plan

from ge2mst_jax.plan import CHIPS, OutOfMemory, Pod, cheapest, make_points, ranked, read_rows, sweep
from ge2mst_jax.train import TrainConfig

module = importlib.import_module("ge2mst_jax.plan.sweep")
DATA = ((8, 8, 1), 10, 1_437)
HALF = Pod("v5e:2x2", CHIPS["v5e"], POD.devices[:4])


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled, by a compiler that takes an hour of all chips for the recipe and refuses more than 512."""
    done = []

    def make_plan(config, pod, data):
        if config.batch_size > 512:
            raise OutOfMemory(f"batch {config.batch_size} does not fit: [HBM]")
        done.append((pod.topology, config.batch_size, config.remat))
        return a_plan(topology=pod.topology, chips=len(pod.devices), batch=config.batch_size, seconds=0.5)

    monkeypatch.setattr(module, "make_plan", make_plan)
    return done


def points_of(*batches, remats=()):
    return make_points(TrainConfig(), [POD, HALF], batches, remats)


def test_points_are_every_combination_once():
    points = points_of(64, 128, 64, remats=("none", "dots_saveable"))
    assert len(points) == 8
    assert points[1].name == "v5e:2x4, batch 64, remat dots_saveable"
    assert [point.config.batch_size for point in points_of()] == [64, 64]


def test_batch_that_one_of_the_pods_cannot_share_is_refused():
    with pytest.raises(ValueError, match="sweep: on v5e:2x4 batch_size is 12: 8 devices along data"):
        points_of(12)


def test_cheapest_comes_first_and_what_does_not_fit_last(compiled):
    rows = [row for row, _ in sweep(points_of(1024, 64), DATA, None, lambda point: None)]
    assert [(row.topology, row.config["batch_size"]) for row in ranked(rows)] == [
        ("v5e:2x2", 64), ("v5e:2x4", 64), ("v5e:2x4", 1024), ("v5e:2x2", 1024),
    ]  # fmt: skip
    assert cheapest(rows) == "cheapest: v5e:2x2, batch 64, remat none: 4 chip-hours (1.0 h)"
    assert cheapest(rows[:1]) == "cheapest: none fits"


def test_interrupted_sweep_goes_on_where_it_was(compiled, tmp_path):
    path, told = tmp_path / "sweep.json", []

    def interrupt(point):
        told.append(point.name)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(sweep(points_of(64, 1024), DATA, path, interrupt))
    assert len(read_rows(path)) == 2
    again = list(sweep(points_of(64, 1024), DATA, path, lambda point: told.append(point.name)))
    assert [kept for _, kept in again] == [True, True, False, False]
    assert compiled == [("v5e:2x4", 64, "none"), ("v5e:2x2", 64, "none")]
    assert all(kept for _, kept in sweep(points_of(64, 1024), DATA, path, lambda point: None))
    assert [row.refused for row in read_rows(path)][1] == "batch 1024 does not fit: [HBM]"


@pytest.mark.parametrize("what", ["code", "config", "tools"])
def test_what_another_version_planned_is_planned_again(compiled, tmp_path, what, monkeypatch):
    path = tmp_path / "sweep.json"
    list(sweep(points_of(64), DATA, path, lambda point: None))
    config = TrainConfig()
    if what == "code":
        monkeypatch.setattr(module, "digest_of_code", lambda: "another")
    elif what == "tools":
        monkeypatch.setenv("LIBTPU_INIT_ARGS", "--another")
    else:
        config = TrainConfig(neuron="relu")
    again = list(sweep(make_points(config, [POD], (), ()), DATA, path, lambda point: None))
    assert [kept for _, kept in again] == [False]
    assert len(read_rows(path)) == (3 if what == "config" else 2)  # another config stands beside, others are replaced


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3}', '{"rows": [{"topology": "v5e:2x2"}]}'])
def test_file_of_something_else_is_not_written_over(compiled, tmp_path, text):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"sweep.json"):
        list(sweep(points_of(64), DATA, path, lambda point: None))
    assert path.read_text() == text
    assert not compiled


def test_row_whose_plan_was_damaged_is_refused(compiled, tmp_path):
    path = tmp_path / "sweep.json"
    list(sweep(points_of(64), DATA, path, lambda point: None))
    found = json.loads(path.read_text())
    found["rows"][0]["plan"]["hbm"] = None
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="holds a plan whose hbm is None: move it"):
        read_rows(path)


def test_script_shows_the_sweep(compiled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "open_topology", lambda text: {"v5e:2x4": POD, "v5e:2x2": HALF}[text])
    arguments = ["digits", "--sweep", "True", "--topologies", "v5e:2x4", "v5e:2x2", "--batches", "64", "1024",
                 "--json", str(tmp_path / "sweep.json")]  # fmt: skip
    for said in ("3 of 4: v5e:2x2, batch 64, remat none: 500.0 ms", "compiled in 1 s, was in the file"):
        script.run_command(script.main, script.Options, arguments=arguments)
        found = capsys.readouterr().out
        assert said in found
        assert "2 of 4: v5e:2x4, batch 1,024, remat none: batch 1024 does not fit: [HBM]" in found
        assert "cheapest: v5e:2x2, batch 64, remat none: 4 chip-hours (1.0 h)" in found
