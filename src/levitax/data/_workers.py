"""Computes results ahead and in order, in a thread or in worker processes. A worker that dies never causes a hang."""

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


# Items per worker: it computes one while the result of the other waits.
_AHEAD = 2

# Seconds that workers get to finish their items before they are killed.
_PATIENCE = 5.0


def compute_ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Generator[Any]:
    """Yields `function(item)` for each of `items`, in order.

    **Arguments:**

    - `function`: applied to each item. With `workers`, cloudpickle must be able to pickle it.
    - `items`: small picklable values.
    - `workers`: the number of processes; 0 computes in a thread. The processes start with the first result and end when
        the iterator is exhausted or closed.

    **Raises:** from the iterator, the errors of `function`, and `RuntimeError` if a worker dies.
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

    # If the iterator is never closed, multiprocessing and its workers would wait for each other at exit.
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
    """The main process's end of a worker. A pipe carries items and answers, in order, and closes if either end dies."""

    def __init__(self, context):
        # Pass nothing but the pipe here: writing more than a pipe holds to a process that has died would hang.
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
        """Sends an item to the worker. Returns a function that waits for the result."""
        # At most `_AHEAD` items are pending, so the slot of the item `_AHEAD` places earlier is free.
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
            # Results have the same size, so the next ones can reuse shared memory, which is already warm.
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
        """Explains why a worker has died."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._process.join(_PATIENCE)
            code = self._process.exitcode
            if self._ready:
                raise RuntimeError(
                    f"A worker process died with exit code {code}. Most often memory ran out, or the shared memory of "
                    "a container (`docker run --shm-size`). Use fewer `workers` or smaller batches."
                ) from error
            raise RuntimeError(
                f"A worker process ended with exit code {code} before it was ready. Workers import the main script: "
                'put the code that it runs under `if __name__ == "__main__":`, and save a script from standard input '
                "to a file. Or use `workers=0`."
            ) from error

    def close(self) -> None:
        self._pipe.close()

    def join(self, deadline: float) -> None:
        # A worker that is still starting has nothing to finish.
        self._process.join(max(deadline - time.monotonic(), 0) if self._ready else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        for slot in self._slots:
            slot.close()
            slot.unlink()


def _send(pipe, value) -> None:
    # If `pipe.send` fails, its traceback holds a buffer that crashes the garbage collector of CPython 3.11 and 3.12.
    pipe.send_bytes(pickle.dumps(value, protocol=5))


def _receive(pipe) -> Any:
    return pickle.loads(pipe.recv_bytes())


def _serve(pipe) -> None:
    """Runs in a worker: answers items until the pipe closes."""
    # Clusters and terminals send signals to all processes. The main process handles them and ends its workers.
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
    """Pickles an exception. One that cannot be pickled and restored becomes a `RuntimeError` with the same text."""
    cloudpickle = require("cloudpickle", "Reading in workers", extra("data"))
    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        pickled = cloudpickle.dumps(error)
        cloudpickle.loads(pickled)
        return pickled
    except Exception:
        return cloudpickle.dumps(RuntimeError("".join(traceback.format_exception_only(error)).strip()))
