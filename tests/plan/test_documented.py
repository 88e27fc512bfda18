"""The plans that docs/performance.md shows are those that are kept, and those that the compiler makes."""

import importlib.util

import documented
import pytest

from ge2mst_jax.plan import Plan

libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU's compiler")


def test_the_page_shows_what_is_kept():
    rows = documented.kept_rows()
    page = documented.PAGE.read_text()
    assert f"<!-- plans -->\n{documented.section(rows)}\n<!-- /plans -->" in page


def test_every_row_is_wanted_and_readable():
    names = [wanted.name for wanted in documented.WANTED]
    assert len(set(names)) == len(names)
    for name, row in documented.kept_rows().items():
        assert name in names
        assert row["refused"] if row["plan"] is None else Plan.from_dict(row["plan"]).cycles > 0


@libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet-50 | v5e:4x4 | 2048", "imagenet_s | v5e:4x4 | 2048"])
def test_the_compiler_still_says_so(name):
    """Where it does not: python tests/plan/documented.py."""
    (wanted,) = (wanted for wanted in documented.WANTED if wanted.name == name)
    kept, now = documented.kept_rows()[name]["plan"], documented.made(wanted)["plan"]
    assert now["cycles"] == pytest.approx(kept["cycles"], rel=0.01)
    assert now["flops"] == pytest.approx(kept["flops"], rel=0.001)
