"""Plans by the TPU's compiler itself, where it is installed."""

import importlib.util
import json

import jax
import plan as script
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU's compiler"),
]


def planned(path, *arguments):
    """What the script wrote."""
    arguments = ["digits", *arguments, "--json", str(path)]
    script.run_command(script.main, script.Options, arguments=arguments)
    return json.loads(path.read_text())


@pytest.mark.parametrize("work", ["train", "evaluate", "dense", "spiking"])
def test_plan_of_the_digits(work, tmp_path, capsys):
    found = planned(tmp_path / "plan.json", "--topology", "v5e:2x2", "--work", work)
    assert found["fits"]
    assert found["cycles"] > 10_000
    assert found["bytes_accessed"] > 1e6
    assert sum(found["shares"]["stage"].values()) == pytest.approx(1)
    assert (found["hours"] is None) == (work != "train")
    assert "share of peak" in capsys.readouterr().out
    assert jax.default_backend() == "cpu"


def test_largest_batch_of_the_digits(tmp_path, capsys):
    found = planned(tmp_path / "plan.json", "--topology", "v5e:2x2", "--work", "evaluate", "--largest-batch", "True")
    assert found["largest_batch"]["batch"] == found["batch"] == 4 * 320  # no more than there are images
    assert found["largest_batch"]["verified"]
    assert "verified" in capsys.readouterr().out


def test_what_does_not_fit_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        script.run_command(
            script.main, script.Options,
            arguments=["digits", "--topology", "v5e:2x2", "--work", "evaluate", "--batch", str(2**24)],
        )  # fmt: skip
    assert ended.value.code == 2
    assert "batch 16,777,216 on v5e:2x2 does not fit: the compiler needs" in capsys.readouterr().err


def test_sweep_of_the_digits(tmp_path, capsys):
    path = tmp_path / "sweep.json"
    found = planned(path, "--sweep", "True", "--topologies", "v5e:2x2", "v6e:2x2", "--batches", "64")
    assert [row["topology"] for row in found["rows"]] == ["v5e:2x2", "v6e:2x2"]
    assert planned(path, "--sweep", "True", "--topologies", "v5e:2x2", "--batches", "64") == found
    assert "was in the file" in capsys.readouterr().out
