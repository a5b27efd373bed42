import math
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

from ._checkpoint import Checkpoints
from ._step import Metrics


Item = TypeVar("Item")


class Losses:
    """The losses of an epoch. Each is read a step late, so that the device need not wait for this process."""

    def __init__(self, values: list[float], checkpoints: Checkpoints):
        self.values = list(values)
        self._checkpoints = checkpoints
        self._unread: tuple[int, Metrics] | None = None

    def add(self, number: int, metrics: Metrics) -> None:
        """Adds the metrics of step `number`, and reads those of the step before."""
        self.read()
        self._unread = number, metrics

    def read(self) -> None:
        """Reads the metrics that `add` added. Checkpoints are only saved after that, so none holds weights that are not
        finite."""
        if self._unread is None:
            return
        number, metrics = self._unread
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        # A gradient that is not finite spoils the weights one step before the loss shows it.
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"The loss of step {number} is {loss}, the norm of its gradient {norm}. Training stops; the last good "
                f"checkpoint is `{self._checkpoints.latest}`. Try a lower `learning_rate`, or `clipping` 0.01."
            )
        self._unread = None
        self.values.append(loss)


class Clock(Generic[Item]):
    """Passes an iterator on, and measures how long each lap took and how much of it was spent waiting for items."""

    def __init__(self, items: Iterator[Item]):
        self._items = items
        self._start, self._waiting = time.perf_counter(), 0.0

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self._waiting += time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """The seconds since the last lap, and the share of them spent waiting for items. Starts the next lap."""
        seconds = time.perf_counter() - self._start
        lap = {"seconds": round(seconds, 2), "waiting": round(self._waiting / seconds, 4)}
        self._start, self._waiting = time.perf_counter(), 0.0
        return lap
