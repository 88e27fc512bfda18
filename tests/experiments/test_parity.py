"""Our peers beside PyTorch's: the same spikes, logits, gradients. Needs the extra `peer`, and the authors' code."""

import json
import os
import subprocess
import sys

import numpy as np
import peers
import pytest
from harness import parity
from harness.parity_cases import AUTHORS, ZOO, Case

#: Folder of checkouts of the authors' repositories, where there is one.
CHECKOUTS = os.environ.get("GE2MST_AUTHORS")
CASE = Case(lambda: None, "spikformer_4_384", {})


def sent(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).random((4, 2, *shape)) < 0.5)


def test_neuron_layers_are_compared_channel_by_channel_whatever_they_fire_together():
    q, k, v = (sent(2, 3, 5, seed=i) for i in range(3))
    packed = np.concatenate([np.moveaxis(x, -1, 2) for x in (q, k, v)], 2)
    assert parity.differing([q, k, v], [packed.reshape(4, 2, 15, 6)], CASE) == (1, 0, packed.size, 0)
    packed[0, 0, 7] = 1 - packed[0, 0, 7]
    assert parity.differing([q, k, v], [packed], CASE) == (1, 1, packed.size, 6)


def test_neuron_layers_that_fire_as_the_one_before_are_passed_over_and_none_of_ours_may_be_left():
    one, two = sent(2, 2, 4), sent(2, 2, 4, seed=1)
    theirs = [np.moveaxis(x, -1, 2) for x in (one, one, two)]
    case = Case(lambda: None, "spikformer_4_384", {}, twice=(1,))
    assert parity.differing([one, two], theirs, case)[:2] == (2, 0)
    with pytest.raises(AssertionError, match="1 neuron layers of ours are none of theirs"):
        parity.differing([one, two], theirs[:1], CASE)


def test_tokens_may_come_last_or_first():
    ours = sent(2, 3, 5)
    tokens = ours.reshape(4, 2, 6, 5)
    case = Case(lambda: None, "spikformer_4_384", {}, tokens_last=True)
    assert parity.differing([ours], [tokens], case)[3] == 0
    assert parity.differing([ours], [tokens], CASE)[3] > 0


def check(found):
    """The issue's bounds: a rounding may flip a spike, of which others may follow."""
    assert found["differ"] <= 1e-5 * found["sent"]
    assert found["logits"] <= 1e-4 and found["loss"] <= 1e-4 and found["gradient"] <= 1e-3
    assert found["spikes_per_neuron"] > 0.5  # or nothing was compared
    assert found.get("synops") == found.get("synops_theirs")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `experiments/peers.py` finds, in a process of its own: it compares on one core."""
    for module in ("torch", "spikingjelly"):
        pytest.importorskip(module, reason="the extra 'peer' is not installed")
    docs = tmp_path_factory.mktemp("docs")
    (docs / "results").mkdir()
    (docs / "peers.md").write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in peers.PARTS))
    more = ["authors", "batch", "--authors", CHECKOUTS] if CHECKOUTS else []
    command = [sys.executable, peers.__file__, "--docs", str(docs), "--parts", "neurons", "zoo", *more]
    subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": ""})
    made = json.loads((docs / "results" / "peers.json").read_text())
    return made | {part: {row["case"]: row for row in made.get(part, ())} for part in ("zoo", "authors")}


@pytest.mark.slow
def test_neurons_alone_fire_as_spikingjellys(found):
    assert [row["sent"] for row in found["neurons"]] == [36_000] * 4
    for row in found["neurons"]:
        assert row["differ"] == 0 and row["gradient"] < 1e-5, row


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_zoos_networks_do_what_ours_do(found, name):
    check(found["zoo"][name])


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUTS, reason="GE2MST_AUTHORS names no folder of the authors' repositories")
@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_networks_do_what_ours_do(found, name):
    check(found["authors"][name])


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUTS, reason="GE2MST_AUTHORS names no folder of the authors' repositories")
def test_only_the_authors_neurons_are_integrated_over_the_batch(found):
    assert found["batch"]["ours"]["by"] == 0 < found["batch"]["theirs"]["by"]
