"""Host batches to global device arrays, ahead of time, in a background thread."""

import queue
import threading
import time
import weakref

import jax
import numpy as np

from ge2mst_jax.checks import check_whole
from ge2mst_jax.data.plan import MAX_BATCH

POLL_SECONDS = 0.1


def local_part(sharding, batch_size: int) -> tuple[int, int]:
    """`(process_index, process_count)` of a `BatchPlan`: which slice of a batch sharded so lives on this process.

    Processes that share a batch's slice (they hold different parts of the parameters) get the same answer.

    Args:
        sharding: of a batch's leading axis.
        batch_size: of the global batch.

    Raises:
        ValueError: this process holds no contiguous slice, or the batch can't be divided so.

    >>> device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> local_part(device, 8)
    (0, 1)
    """
    check_whole("batch_size", batch_size, 1, MAX_BATCH)
    rows = {
        index[0].indices(batch_size)[:2] for index in sharding.addressable_devices_indices_map((batch_size,)).values()
    }
    start, stop = min(rows)[0], max(rows)[1]
    size = stop - start
    if sum(end - begin for begin, end in rows) != size or batch_size % size or start % size:
        raise ValueError(
            f"batch_size {batch_size}: this process holds rows {sorted(rows)}, which are no slice of a batch"
        )
    return start // size, batch_size // size


class DevicePrefetch:
    """What `prefetch_to_device` returns: an iterator of batches on the devices."""

    def __init__(self, iterator, sharding, depth: int):
        check_whole("depth", depth, 1, 1024)
        self.wait_seconds = 0.0
        """How long the consumer has waited for batches, in all."""
        self._state = iterator.get_state() if hasattr(iterator, "get_state") else None
        self._ready, self._stop, self._end = queue.Queue(depth), threading.Event(), None
        arguments = (iterator, sharding, self._ready, self._stop)
        self._thread = threading.Thread(target=_fill, args=arguments, name="prefetch", daemon=True)
        self._finalize = weakref.finalize(self, _shut, self._thread, self._stop, self._ready, iterator)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, jax.Array]:
        if self._end is not None:
            raise self._end
        start = time.perf_counter()
        batch, state, error = self._ready.get()
        self.wait_seconds += time.perf_counter() - start
        if error is not None:
            self._end = error
            raise error
        self._state = state
        return batch

    def get_state(self):
        """The state after the batch handed out last: a new iterator that is given it goes on with the next one."""
        return self._state

    def close(self) -> None:
        """Stops the thread and the iterator's worker processes; what was prefetched is dropped."""
        self._end = self._end or StopIteration()
        self._finalize()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _fill(iterator, sharding, ready, stop) -> None:
    """The thread: it holds no reference to the `DevicePrefetch`, so that a forgotten one is collected and stops it."""
    while not stop.is_set():
        try:
            batch = next(iterator)
            item = to_devices(batch, sharding), iterator.get_state() if hasattr(iterator, "get_state") else None, None
        except BaseException as error:  # the consumer's: StopIteration, a DataError, an interruption
            item = None, None, error
        while not stop.is_set():
            try:
                ready.put(item, timeout=POLL_SECONDS)
                break
            except queue.Full:
                pass
        if item[2] is not None:
            return


def _shut(thread, stop, ready, iterator) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join()
    ready.queue.clear()  # shared memory of worker processes is given back now, not at the interpreter's end
    if hasattr(iterator, "close"):
        iterator.close()


def to_devices(batch: dict[str, np.ndarray], sharding) -> dict[str, jax.Array]:
    """This process's slices as global arrays, sharded along their leading axis.

    >>> sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> to_devices({"label": np.zeros(4, np.int32)}, sharding)["label"].shape
    (4,)
    """
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def prefetch_to_device(iterator, sharding, depth: int = 2) -> DevicePrefetch:
    """Batches as global arrays on the devices, `depth` of them ahead of the consumer.

    Args:
        iterator: of this process's slices, dicts of arrays with one leading axis: `train_batches(…)` or
            `iter(eval_batches(…))`.
        sharding: of the leading axis, such as `NamedSharding(mesh, P("data"))`; every process's slice must be the part
            that lives on its devices (`local_part`).
        depth: batches held ready, 1 to 1024.

    Returns:
        An iterator of dicts of `[B, …]` arrays, with `get_state()` (of the batch handed out last, not of the last one
        prefetched), `wait_seconds` and `close()`; also a context manager. What the iterator raises is raised here.

    >>> sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    >>> with prefetch_to_device(iter([{"label": np.arange(2)}]), sharding) as batches:
    ...     [batch["label"].tolist() for batch in batches]
    [[0, 1]]
    """
    return DevicePrefetch(iterator, sharding, depth)
