"""Batches: one order whatever the processes and workers, exact evaluation, resumption, corrupt images, prefetching."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import psutil
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
        (dict(batch_size=4, workers=10**6), "workers is 1000000"),
        (dict(batch_size=4, workers=True), "workers is True"),
        (dict(batch_size=4.0), "batch_size is 4.0"),
        (dict(batch_size=True), "batch_size is True"),
        (dict(batch_size=1e20), "batch_size is 1e.20"),
        (dict(batch_size=10**20), "batch_size is 10{20}"),
        (dict(batch_size="4"), "batch_size is '4'"),
        (dict(batch_size=4, process_count=0), "process_count is 0"),
        (dict(batch_size=4, process_index=-1), "process_index is -1"),
        (dict(batch_size=4, process_index=0.0), "process_index is 0.0"),
    ],
)
def test_a_plan_that_cannot_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        BatchPlan(**arguments)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.0, 1e20, float("nan"), True, None, "0"])
def test_a_seed_out_of_range(source, seed):
    with pytest.raises(ValueError, match=r"seed is .*: it must be a whole number, 0 to 4294967295"):
        train_batches(source, BatchPlan(2), seed=seed)


@pytest.mark.parametrize("steps", [-1, 2.5, True, 10**20, "3"])
def test_a_number_of_steps_that_is_none(source, steps):
    with pytest.raises(ValueError, match="steps is "):
        train_batches(source, BatchPlan(2), seed=0, steps=steps)


@pytest.mark.parametrize(
    "change", [dict(step=-1), dict(step=2**62), dict(step=1.5), dict(step=True), dict(step=None), dict(seed="0")]
)
def test_a_state_that_is_none(source, change):
    iterator = train_batches(source, BatchPlan(4, decode=SMALL), seed=0)
    with pytest.raises(ValueError, match=r"(step|seed) .*batches to go on with"):
        iterator.set_state(iterator.get_state() | change)
    for name in ("step", "seed"):
        with pytest.raises(ValueError, match=f"{name} .*batches to go on with.* None"):
            iterator.set_state({key: value for key, value in iterator.get_state().items() if key != name})
    assert iterator.get_state()["step"] == 0


# Worker processes


def workers_of(folder, steps=None, decode=SMALL):
    """Batches from two worker processes, and these, once they have begun."""
    before = set(psutil.Process().children())
    batches = train_batches(open_source(f"folder:{folder}", "train"), BatchPlan(4, workers=2, decode=decode), 0, steps)
    next(batches)
    made = set(psutil.Process().children()) - before
    return batches, [child for child in made if "spawn_main" in " ".join(child.cmdline())]


def until_it_ends(batches):
    deadline = time.monotonic() + 60
    for _ in batches:
        assert time.monotonic() < deadline, "goes on for ever"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "says"),
    [(signal.SIGKILL, "exit code -9: killed, as where memory runs out"), (signal.SIGBUS, "-7: /dev/shm is too small")],
)
def test_a_worker_process_that_dies_is_one_line(folder, number, says):
    batches, workers = workers_of(folder)
    assert len(workers) == 2
    workers[0].send_signal(number)
    with pytest.raises(DataError, match=f"^a worker process that decodes images died .*{says}"):
        until_it_ends(batches)
    batches.close()
    assert not psutil.wait_procs(workers, timeout=30)[1]


@pytest.mark.slow
def test_worker_processes_outlive_the_signals_of_an_orderly_end(folder):
    """A cluster, or Ctrl-C, signals all processes of a job; the reader must still be able to save its state."""
    expected = take(train_batches(open_source(f"folder:{folder}", "train"), BatchPlan(4, decode=SMALL), seed=0), 31)
    batches, workers = workers_of(folder)
    for worker in workers:
        worker.send_signal(signal.SIGINT)
        worker.terminate()
    for batch, again in zip(take(batches, 30), expected[1:], strict=True):
        assert_equal(batch, again)
    del batches
    gc.collect()
    assert not psutil.wait_procs(workers, timeout=30)[1]


READER = """
import os, sys
from test_pipeline import workers_of
if __name__ == "__main__":
    batches, workers = workers_of(sys.argv[1])
    print(*[worker.pid for worker in workers], flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_worker_processes_do_not_outlive_their_reader(folder, tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    paths = os.pathsep.join([os.path.dirname(__file__), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, script, folder], stdout=subprocess.PIPE, text=True, env=environment, check=False, timeout=100
    )
    assert result.returncode == -9
    workers = [int(number) for number in result.stdout.split()]
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 2 and not any(map(psutil.pid_exists, workers))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "says"), [("1k", "is /dev/shm full"), ("256k", "/dev/shm is too small")])
def test_a_small_shared_memory_is_one_line(tmp_path, size, says):
    """In a mount namespace of its own, where this system lets one make it."""
    write_folder(tmp_path / "set", train=20, side=20)
    script = tmp_path / "reader.py"
    script.write_text(
        "import sys\nfrom test_pipeline import DecodeConfig, workers_of, until_it_ends\n"
        'if __name__ == "__main__":\n'
        "    until_it_ends(workers_of(sys.argv[1], decode=DecodeConfig(224))[0])\n"
    )
    mounted = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"', "sh"]
    try:
        subprocess.run([*mounted, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mount namespaces here")
    paths = os.pathsep.join([os.path.dirname(__file__), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*mounted, sys.executable, script, tmp_path / "set"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": paths}, timeout=100,
    )  # fmt: skip
    assert result.returncode == 1
    assert re.search(rf"DataError: .*worker process.*{says}", result.stderr), result.stderr


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
    assert list(batches) == [] and not prefetch_threads() and batches._ready.empty()
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
    for depth in (0, -1, 2.0, True, 10**20):
        with pytest.raises(ValueError, match="depth is "):
            prefetch_to_device(iter(()), None, depth=depth)


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
    for batch_size in (0, -8, 8.0, True, 10**20):
        with pytest.raises(ValueError, match="batch_size is "):
            local_part(TwoProcesses([(4, 8)]), batch_size)
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
