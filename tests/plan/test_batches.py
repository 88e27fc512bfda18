"""The largest batch: few measurements where memory is a line, the right answer where it is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import POD, a_plan

from ge2mst_jax.plan import OutOfMemory, batches, largest_batch, search
from ge2mst_jax.plan.batches import TRIES, step_above, step_below
from ge2mst_jax.train import TrainConfig

DATA = ((8, 8, 1), 10, 100_000)


def steps_to(most):
    steps = [1]
    while step_above(steps[-1]) <= most:
        steps.append(step_above(steps[-1]))
    return steps


def test_steps_follow_each_other():
    assert steps_to(20) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]
    assert [step_below(size) for size in (1, 9, 15, 16, 19)] == [1, 8, 14, 16, 16]


def test_a_line_takes_three_measurements():
    found = search(lambda size: 100.0 + 7 * size, 16_000.0, 16, 10**6)
    assert (found.size, found.verified, list(found.tried)) == (2048, True, [16, 8, 2048])


@given(
    st.floats(0, 120), st.floats(1e-3, 50), st.floats(0.8, 1.2), st.sampled_from([105.0, 1e12]), st.integers(1, 5000),
    st.data(),
)  # fmt: skip
def test_what_is_verified_fits_and_the_next_step_does_not(fixed, slope, bend, limit, most, data):
    def measure(size):
        assert 1 <= size <= most
        taken = fixed + slope * size**bend
        return None if taken > limit else taken

    found = search(measure, 100.0, data.draw(st.integers(1, most)), most)
    assert len(found.tried) <= TRIES
    if found.verified:
        assert found.tried[found.size] <= 100.0
    elif not found.size:
        assert fixed + slope > 100.0
    if bend == 1.0 and found.verified:
        assert found.size == max(step for step in steps_to(most) if fixed + slope * step <= 100.0)


def test_a_search_ends_and_says_that_nothing_was_verified(monkeypatch):
    monkeypatch.setattr(batches, "TRIES", 2)
    found = search(lambda size: 10.0 + size, 100.0, 16, 1000)
    assert (found.size, found.verified, list(found.tried)) == (80, False, [16, 8])


def compiler(fixed, an_image):
    """A `make_plan` of so many bytes a chip."""

    def make_plan(config, pod, work, data):
        size = fixed + an_image * config.batch_size // len(pod.devices)
        if size > 15.75 * 2**30:
            raise OutOfMemory("no room")
        return a_plan(batch=config.batch_size, memory={"temporary": size}, hbm=pod.chip.hbm, work=work)

    return make_plan


def test_largest_batch_is_planned(monkeypatch):
    monkeypatch.setattr(batches, "make_plan", compiler(10**9, 10**7))
    said = []
    found = largest_batch(TrainConfig(batch_size=512), POD, "train", DATA, said.append)
    assert (found.batch, found.verified, found.plan.batch) == (8 * 1280, True, 8 * 1280)
    assert not found.takes_all
    assert said == ["batch 512, try 1", "batch 256, try 2", "batch 10,240, try 3"]
    assert found.as_dict()["tried"][-1] == {"batch": 10_240, "bytes": 10**9 + 1280 * 10**7}


def test_batch_that_the_pod_cannot_share_is_no_start(monkeypatch):
    monkeypatch.setattr(batches, "make_plan", compiler(10**9, 10**7))
    found = largest_batch(TrainConfig(batch_size=100), POD, "evaluate", DATA, lambda line: None)
    assert next(iter(found.tried)) == 96


def test_largest_batch_is_no_more_than_there_are_images(monkeypatch):
    monkeypatch.setattr(batches, "make_plan", compiler(10**9, 1))
    found = largest_batch(TrainConfig(batch_size=64), POD, "train", ((8, 8, 1), 10, 1437), lambda line: None)
    assert (found.batch, found.verified, found.takes_all) == (8 * 160, True, True)


def test_where_not_one_image_fits(monkeypatch):
    monkeypatch.setattr(batches, "make_plan", compiler(10**11, 1))
    with pytest.raises(OutOfMemory, match="not even batch 16 fits v5e:2x4"):
        largest_batch(TrainConfig(batch_size=64, accumulate=2), POD, "train", DATA, lambda line: None)
    with pytest.raises(ValueError, match="8 parts of a batch are more than the 7 training images"):
        largest_batch(TrainConfig(batch_size=64), POD, "train", ((8, 8, 1), 10, 7), lambda line: None)
