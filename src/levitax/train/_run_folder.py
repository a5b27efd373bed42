import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from .._extras import extra, require
from .._files import replacing
from .._progress import say


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder` until this one ends. Only the first process holds the lock.

    **Raises:** `NotADirectoryError` if `folder` is a file; `OSError` if another run holds the lock.
    """
    if jax.process_index() > 0:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"`{folder}` is a file; `out` must be a folder, or a path where one can be made.")
    folder.mkdir(parents=True, exist_ok=True)
    filelock = require("filelock", "`levitax.train.fit`", extra("train"))
    lock = filelock.FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OSError(f"Another run writes to `{folder}`: wait for its end, or pass another `out`.") from None
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; repeat the call to resume from the newest checkpoint in `{folder}`, or to start again")
        raise
    finally:
        lock.release()


class History:
    """The metrics of each epoch of a run of `length` epochs, in memory and in `metrics.jsonl`, which the first process
    writes."""

    def __init__(self, folder: Path, epochs: list[dict[str, float]], length: int):
        self.epochs = list(epochs)
        self._file = folder / "metrics.jsonl"
        if jax.process_index() > 0:
            return
        written = len(self._file.read_text().splitlines()) if self._file.exists() else 0
        if written and len(epochs) < length:
            say(f"continuing after epoch {len(epochs)} of the newest checkpoint; {written} epochs were logged")
        # Epochs after the checkpoint will be trained, and logged, again.
        with replacing(self._file) as (temporary,):
            temporary.write_text("".join(json.dumps(line) + "\n" for line in epochs))

    def add(self, metrics: dict[str, Any]) -> None:
        """Adds an epoch, and prints its loss and accuracy."""
        self.epochs.append(metrics)
        say(
            "epoch {epoch}: train loss {train_loss:.4f}, validation accuracy {validation_accuracy:.2%}".format(
                **metrics
            )
        )
        if jax.process_index() == 0:
            with self._file.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
