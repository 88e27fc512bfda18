"""Batches: one order whatever the processes and workers, exact evaluation, resumption, corrupt images, prefetching."""

import gc
import json
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_sets import encoded, picture, write_folder

from ge2mst_jax.data.decode import DRAWS, CorruptImageError, DataError, DecodeConfig, decode
from ge2mst_jax.data.pipeline import eval_batches, train_batches
from ge2mst_jax.data.plan import BatchPlan, epoch_order, example_draws
from ge2mst_jax.data.prefetch import local_part, prefetch_to_device
from ge2mst_jax.data.source import MemorySource
from ge2mst_jax.data.sources import open_source

SMALL = DecodeConfig(image_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten training and six test images of two classes."""
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(params=["memory", "files"])
def source(request, folder):
    if request.param == "files":
        return open_source(f"folder:{folder}", "train")
    images = np.stack([picture(i) for i in range(10)])
    return MemorySource("ten", "train", images, np.arange(10) % 3, ("a", "b", "c"))


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def joined(batches):
    """Dicts of arrays, one after the other along the batch's axis."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert np.array_equal(left[name], right[name]), name


def test_every_image_comes_once_an_epoch_and_batches_straddle_epochs(source):
    batches = joined(take(train_batches(source, BatchPlan(4, decode=SMALL), seed=3), 15))  # six epochs of ten
    epochs = batches["index"].reshape(6, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert np.array_equal(epochs[2], np.random.default_rng((3, 2)).permutation(10))
    assert np.array_equal(batches["label"], source.labels[batches["index"]])
    assert not batches["skipped"].any()


def test_a_batch_holds_the_images_it_names(source, folder):
    batch = next(train_batches(source, BatchPlan(4, decode=SMALL), seed=0))
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    draws = np.random.Generator(np.random.Philox(key=0)).random((4, DRAWS))
    for j, index in enumerate(batch["index"]):
        data = source.read(int(index)).data
        expected = decode(data, SMALL, where="", draws=draws[j]) if isinstance(data, bytes) else data
        assert np.array_equal(batch["image"][j], expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_slices_are_the_batch(source, processes):
    whole = take(train_batches(source, BatchPlan(8, decode=SMALL), seed=1), 4)
    plans = [BatchPlan(8, index, processes, decode=SMALL) for index in range(processes)]
    parts = [take(train_batches(source, plan, seed=1), 4) for plan in plans]
    for step in range(4):
        assert_equal(joined([part[step] for part in parts]), whole[step])


def test_randomness_depends_on_the_position_alone():
    rows = np.array(example_draws(7, 0, 1000))
    assert rows.shape == (1000, DRAWS)
    assert np.array_equal(rows[10:13], example_draws(7, 10, 3))
    assert np.array_equal(rows[999:], example_draws(7, 999, 1))
    assert not np.any(rows == np.array(example_draws(8, 0, 1000)))
    assert abs(rows.mean() - 0.5) < 0.005 and rows.min() >= 0 and rows.max() < 1
    # An image is cropped otherwise in the next epoch.
    assert len(np.unique(rows[:, 0])) == 1000


def test_the_order_is_a_permutation_of_seed_and_epoch():
    assert sorted(epoch_order(0, 5, 100)) == list(range(100))
    assert not np.array_equal(epoch_order(0, 0, 100), epoch_order(0, 1, 100))
    assert not np.array_equal(epoch_order(0, 0, 100), epoch_order(1, 0, 100))


def test_an_interrupted_iterator_goes_on_with_the_same_batches(source):
    expected = take(train_batches(source, BatchPlan(4, decode=SMALL), seed=0), 9)
    first = train_batches(source, BatchPlan(4, decode=SMALL), seed=0)
    take(first, 4)
    state = json.loads(json.dumps(first.get_state()))
    assert state == {"step": 4, "seed": 0, "batch_size": 4, "examples": 10}
    second = train_batches(source, BatchPlan(4, decode=SMALL), seed=0)
    second.set_state(state)
    assert second.get_state() == state
    for batch, again in zip(take(second, 5), expected[4:], strict=True):
        assert_equal(batch, again)
    second.set_state(state | {"step": 0})  # also one that has begun
    assert_equal(next(second), expected[0])


def test_worker_processes_make_the_same_batches_and_resume(folder):
    source = open_source(f"folder:{folder}", "train")
    expected = take(train_batches(source, BatchPlan(4, decode=SMALL), seed=0), 8)
    # From here on with two workers, from there with one process of two: the state holds for all.
    iterator = train_batches(source, BatchPlan(4, workers=2, decode=SMALL), seed=0, steps=8)
    iterator.set_state({"step": 3, "seed": 0, "batch_size": 4, "examples": 10})
    batches = take(iterator, 3)
    for batch, again in zip(batches, expected[3:], strict=False):
        assert_equal(batch, again)
    half = train_batches(source, BatchPlan(4, 1, 2, decode=SMALL), seed=0)
    half.set_state(iterator.get_state())
    assert_equal(next(half), {name: value[2:] for name, value in expected[6].items()})
    # On the devices, though the host's arrays are shared memory that the workers use again.
    sharding = NamedSharding(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    with prefetch_to_device(iterator, sharding) as prefetched:
        rest = list(prefetched)
    assert len(rest) == 2
    for batch, again in zip(rest, expected[6:], strict=True):
        assert_equal(jax.device_get(batch), again)


def test_a_state_of_another_run_is_refused(source):
    iterator = train_batches(source, BatchPlan(4, decode=SMALL), seed=0)
    for name, value in (("seed", 1), ("batch_size", 8), ("examples", 11)):
        with pytest.raises(ValueError, match=f"{name} is .*, but the batches to go on with had {value}"):
            iterator.set_state(iterator.get_state() | {name: value})


def test_a_number_of_steps(source):
    assert len(list(train_batches(source, BatchPlan(4, decode=SMALL), seed=0, steps=3))) == 3
    iterator = train_batches(source, BatchPlan(4, decode=SMALL), seed=0, steps=3)
    iterator.set_state(iterator.get_state() | {"step": 3})
    assert list(iterator) == []


@pytest.mark.parametrize(("batch_size", "processes"), [(4, 1), (4, 2), (5, 1), (20, 4)])
def test_evaluation_is_exact(source, batch_size, processes):
    plans = [BatchPlan(batch_size, index, processes, decode=SMALL) for index in range(processes)]
    parts = [eval_batches(source, plan) for plan in plans]
    steps = [list(part) for part in parts]
    assert {len(part) for part in parts} == {len(step) for step in steps} == {-(-10 // batch_size)}
    everything = joined([part[i] for i in range(len(steps[0])) for part in steps])
    seen = everything["mask"] == 1
    assert everything["index"][seen].tolist() == list(range(10))
    assert np.array_equal(everything["label"][seen], source.labels)
    assert np.all(everything["index"][~seen] == -1) and not everything["image"][~seen].any()
    assert_equal(next(iter(parts[0])), steps[0][0])  # again


# Corrupt images


@pytest.fixture
def damaged(tmp_path):
    """Two of ten images are cut in half: numbers 2 and 7."""
    write_folder(tmp_path)
    for name in ("ant", "bee"):
        file = tmp_path / "train" / name / "002.png"
        file.write_bytes(file.read_bytes()[:100])
    return tmp_path


def test_a_corrupt_image_is_an_error_that_names_it(damaged):
    source = open_source(f"folder:{damaged}", "train")
    plan = BatchPlan(10, decode=SMALL)
    with pytest.raises(CorruptImageError, match=r"train/(ant|bee)/002.png: not a readable image"):
        next(train_batches(source, plan, seed=0))
    with pytest.raises(CorruptImageError, match=r"train/ant/002.png: not a readable image"):
        next(iter(eval_batches(source, plan)))


def test_a_corrupt_image_is_passed_over_and_counted(damaged):
    source = open_source(f"folder:{damaged}", "train", on_corrupt="skip")
    clean = take(train_batches(open_source(f"folder:{damaged}", "train", on_corrupt="skip"), BatchPlan(10), 0), 1)
    assert clean[0]["image"].shape == (10, 224, 224, 3)
    batches = joined(take(train_batches(source, BatchPlan(10, decode=SMALL), seed=0), 3))
    order = np.concatenate([epoch_order(0, epoch, 10) for epoch in range(4)])
    expected, skipped = [], []
    for position in range(30):
        place = position
        while order[place] in (2, 7):
            place += 1
        expected.append(order[place])
        skipped.append(place - position)
    assert batches["index"].tolist() == expected
    assert batches["skipped"].tolist() == skipped and sum(skipped) >= 6
    assert np.array_equal(batches["label"], source.labels[expected])
    parts = [take(train_batches(source, BatchPlan(10, i, 2, decode=SMALL), seed=0), 3) for i in range(2)]
    assert_equal(joined([part[i] for i in range(3) for part in parts]), batches)


def test_a_corrupt_image_is_masked_in_evaluation(damaged):
    source = open_source(f"folder:{damaged}", "train", on_corrupt="skip")
    everything = joined(list(eval_batches(source, BatchPlan(4, decode=SMALL))))
    assert everything["mask"].tolist() == [1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0]
    assert everything["skipped"].tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_corrupt_images_in_memory_are_passed_over_too():
    images = np.stack([picture(i) for i in range(4)])
    source = MemorySource("four", "train", images, np.arange(4), tuple("abcd"), "skip", {1: "record 1: cut"})
    everything = joined(take(train_batches(source, BatchPlan(4), seed=0), 2))
    assert 1 not in everything["index"] and everything["skipped"].sum() >= 2
    assert joined(list(eval_batches(source, BatchPlan(4))))["mask"].tolist() == [1, 0, 1, 1]


def test_a_set_without_one_readable_image_is_an_error():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    source = MemorySource("two", "train", images, np.arange(2), ("a", "b"), "skip", {0: "cut", 1: "cut"})
    with pytest.raises(DataError, match="two: not one image of the train split can be decoded"):
        next(train_batches(source, BatchPlan(2), seed=0))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(batch_size=0), "batch_size is 0"),
        (dict(batch_size=4, process_index=2, process_count=2), "process_index is 2: it must be a whole number, 0 to 1"),
        (dict(batch_size=4, process_count=3), "batch_size is 4: 3 processes can't share it equally"),
        (dict(batch_size=4, workers=-1), "workers is -1"),
    ],
)
def test_a_plan_that_cannot_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        BatchPlan(**arguments)


def test_a_seed_out_of_range(source):
    with pytest.raises(ValueError, match="seed is -1"):
        train_batches(source, BatchPlan(2), seed=-1)


# Prefetching to devices


@pytest.fixture
def sharding():
    return NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))


def test_batches_arrive_sharded_and_in_order(source, sharding):
    expected = take(train_batches(source, BatchPlan(8, decode=SMALL), seed=0), 5)
    with prefetch_to_device(train_batches(source, BatchPlan(8, decode=SMALL), seed=0, steps=5), sharding) as batches:
        arrived = list(batches)
    assert len(arrived) == 5
    for batch, again in zip(arrived, expected, strict=True):
        assert all(value.sharding.spec == PartitionSpec("data") for value in batch.values())
        assert len(batch["image"].addressable_shards) == 8
        assert_equal(jax.device_get(batch), again)


def test_the_state_is_that_of_the_batch_handed_out(source, sharding):
    iterator = train_batches(source, BatchPlan(8, decode=SMALL), seed=0)
    with prefetch_to_device(iterator, sharding, depth=3) as batches:
        assert batches.get_state()["step"] == 0
        take(batches, 2)
        deadline = time.monotonic() + 10
        while iterator.get_state()["step"] < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert iterator.get_state()["step"] >= 5  # three are ready
        assert batches.get_state()["step"] == 2
        state = batches.get_state()
        third = next(batches)
    resumed = train_batches(source, BatchPlan(8, decode=SMALL), seed=0)
    resumed.set_state(state)
    with prefetch_to_device(resumed, sharding) as batches:
        assert_equal(jax.device_get(next(batches)), jax.device_get(third))


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_reaches_the_consumer_and_the_thread_ends(damaged):
    source = open_source(f"folder:{damaged}", "train")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = prefetch_to_device(train_batches(source, BatchPlan(10, decode=SMALL), seed=0), device)
    for _ in range(2):
        with pytest.raises(CorruptImageError, match=r"002.png: not a readable image"):
            next(batches)
    batches.close()
    assert not prefetch_threads()


def test_a_prefetcher_stops_when_it_is_closed_or_forgotten(source):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = prefetch_to_device(train_batches(source, BatchPlan(2, decode=SMALL), seed=0), device)
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == [] and not prefetch_threads()
    batches = prefetch_to_device(train_batches(source, BatchPlan(2, decode=SMALL), seed=0), device)
    next(batches)
    del batches
    gc.collect()
    assert not prefetch_threads()


def test_waiting_is_measured():
    def slow():
        for i in range(3):
            time.sleep(0.1)
            yield {"label": np.array([i])}

    with prefetch_to_device(slow(), jax.sharding.SingleDeviceSharding(jax.devices()[0])) as batches:
        assert [int(batch["label"][0]) for batch in batches] == [0, 1, 2]
        assert 0.1 < batches.wait_seconds < 10
    with pytest.raises(ValueError, match="depth is 0"):
        prefetch_to_device(iter(()), None, depth=0)


def test_the_local_part_of_a_sharded_batch():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    for spec in (PartitionSpec("data"), PartitionSpec(("data", "model")), PartitionSpec()):
        assert local_part(NamedSharding(mesh, spec), 8) == (0, 1)


class TwoProcesses:
    """A sharding over the devices of two processes, this being the second."""

    def __init__(self, rows):
        self.rows = rows

    def addressable_devices_indices_map(self, shape):
        return {i: (slice(*row),) for i, row in enumerate(self.rows)}


def test_the_local_part_with_several_processes():
    assert local_part(TwoProcesses([(4, 6), (6, 8)]), 8) == (1, 2)
    assert local_part(TwoProcesses([(4, 8), (4, 8)]), 8) == (1, 2)
    with pytest.raises(ValueError, match="are no slice of a batch"):
        local_part(TwoProcesses([(0, 2), (4, 6)]), 8)
    with pytest.raises(ValueError, match="are no slice of a batch"):
        local_part(TwoProcesses([(2, 6)]), 8)


def test_a_folder_of_greyscale_and_colour_images(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "ant" / "000.png").write_bytes(encoded(np.full((9, 7), 99, np.uint8)))
    batch = next(iter(eval_batches(open_source(f"folder:{tmp_path}", "train"), BatchPlan(2, decode=SMALL))))
    assert np.all(batch["image"][0] == 99) and batch["image"].shape == (2, 6, 6, 3)
