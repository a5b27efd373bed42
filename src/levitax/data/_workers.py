"""Computes ahead and in order, in a thread or in worker processes. A worker may die at any time without a hang."""

import atexit
import collections
import contextlib
import itertools
import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from .._extras import extra, require


# Items of each worker: it computes one while the result of the other waits.
_AHEAD = 2

# Seconds for workers to finish their items before they are killed.
_PATIENCE = 5.0


def compute_ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Generator[Any]:
    """Yields `function(item)` for each of `items`, in order.

    **Arguments:**

    - `function`: must be picklable by cloudpickle if there are `workers`.
    - `items`: small picklable values.
    - `workers`: the number of processes; 0 computes in a thread. They start with the first result and end when the
        iterator is exhausted or closed.

    **Raises:** from the iterator, whatever `function` raises, and `RuntimeError` if a worker dies.
    """
    with _processes(function, workers) if workers else _thread(function) as (submit, ahead):
        items = iter(items)
        pending = collections.deque(map(submit, itertools.islice(items, ahead)))
        while pending:
            result = pending.popleft()()
            pending.extend(map(submit, itertools.islice(items, 1)))
            yield result


@contextlib.contextmanager
def _thread(function):
    with ThreadPoolExecutor(1) as pool:
        try:
            yield lambda item: pool.submit(function, item).result, 1
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _processes(function, number):
    pickled = require("cloudpickle", "Reading in workers", extra("data")).dumps(function)
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []

    def stop():
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            worker.close()
        for worker in workers:
            worker.join(deadline)

    # If the iterator is never closed, multiprocessing waits for its workers at exit, and they for it.
    atexit.register(stop)
    try:
        for _ in range(number):
            workers.append(_Worker(context))
        for worker in workers:
            worker.start(pickled)
        turns = itertools.cycle(workers)
        yield lambda item: next(turns).submit(item), _AHEAD * number
    finally:
        atexit.unregister(stop)
        stop()


class _Worker:
    """The main process's end of a worker. Each item is answered, in order, through a pipe that ends with either."""

    def __init__(self, context):
        # Nothing else goes to the process when it starts: writing more than a pipe holds to a dead one never ends.
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._slots: list[SharedMemory] = []
        self._submitted = 0
        self._ready = False

    def start(self, pickled: bytes) -> None:
        with self._watched():
            self._pipe.send_bytes(pickled)

    def submit(self, item: Any) -> Callable[[], Any]:
        """Returns a function that waits for the result."""
        # With `_AHEAD` items at a time, the slot of the item that many before is free.
        slot = self._slots[self._submitted % _AHEAD].name if self._slots else None
        self._submitted += 1
        with self._watched():
            _send(self._pipe, (item, slot))
        return self._result

    def _result(self) -> Any:
        with self._watched():
            while (answer := _receive(self._pipe)) is None:
                self._ready = True
        kind, content = answer
        if kind == "error":
            raise require("cloudpickle", "Reading in workers", extra("data")).loads(content)
        if kind == "whole":
            # Results have one size, so memory that is shared and warm can take the next ones.
            if not self._slots:
                self._slots = [SharedMemory(create=True, size=len(content)) for _ in range(_AHEAD)]
            return pickle.loads(content)
        head, name, sizes = content
        shared = next(slot.buf for slot in self._slots if slot.name == name)
        assert shared is not None
        ends = zip(itertools.accumulate(sizes), sizes, strict=True)
        return pickle.loads(head, buffers=[bytearray(shared[end - size : end]) for end, size in ends])

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Says why a worker is not there any more."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._process.join(_PATIENCE)
            code = self._process.exitcode
            if self._ready:
                raise RuntimeError(
                    f"A worker process died with exit code {code}. Most often memory ran out, or the shared memory of "
                    "a container (`docker run --shm-size`): use fewer `workers` or smaller batches."
                ) from error
            raise RuntimeError(
                f"A worker process ended with exit code {code} before it was ready. Workers import the main script: "
                'put the code that it runs under `if __name__ == "__main__":`, and save a script from standard input '
                "to a file; or use `workers=0`."
            ) from error

    def close(self) -> None:
        self._pipe.close()

    def join(self, deadline: float) -> None:
        # One that still starts has nothing to finish.
        self._process.join(max(deadline - time.monotonic(), 0) if self._ready else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        for slot in self._slots:
            slot.close()
            slot.unlink()


def _send(pipe, value) -> None:
    # Not `pipe.send`: where it fails, its traceback holds a buffer that crashes the collector of CPython 3.11 and 3.12.
    pipe.send_bytes(pickle.dumps(value, protocol=5))


def _receive(pipe) -> Any:
    return pickle.loads(pipe.recv_bytes())


def _serve(pipe) -> None:
    """Runs in a worker."""
    # Clusters and terminals send signals to all processes; the main one ends its workers when it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    slots: dict[str | None, SharedMemory | None] = {None: None}
    with contextlib.suppress(EOFError, ConnectionError):
        pickled = pipe.recv_bytes()
        try:
            function = require("cloudpickle", "Reading in workers", extra("data")).loads(pickled)
        except Exception as error:
            _send(pipe, ("error", _portable(error)))
            return
        _send(pipe, None)
        while True:
            item, name = _receive(pipe)
            if name not in slots:
                slots[name] = SharedMemory(name)
            _send(pipe, _answer(function, item, slots[name]))


def _answer(function, item, slot):
    try:
        result = function(item)
        buffers = []
        head = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        sizes = [part.nbytes for part in parts]
        if slot is None or sum(sizes) > slot.size:
            return "whole", pickle.dumps(result, protocol=5)
        for part, end in zip(parts, itertools.accumulate(sizes), strict=True):
            slot.buf[end - part.nbytes : end] = part
        return "parts", (head, slot.name, sizes)
    except BaseException as error:
        return "error", _portable(error)


def _portable(error: BaseException) -> bytes:
    """An exception as bytes; one that cannot be pickled or built again becomes a `RuntimeError` of the same text."""
    cloudpickle = require("cloudpickle", "Reading in workers", extra("data"))
    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        pickled = cloudpickle.dumps(error)
        cloudpickle.loads(pickled)
        return pickled
    except Exception:
        return cloudpickle.dumps(RuntimeError("".join(traceback.format_exception_only(error)).strip()))
