import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from .._checks import as_integer
from .._extras import extra, require
from ._sets import Split
from ._transforms import Transform


class Batch(NamedTuple):
    """Pictures of one size, in bytes, as they go to the accelerator.

    **Attributes:**

    - `images`: `(batch, height, width, channels)`, pixels from 0 to 255.
    - `labels`: `(batch,)`, the class of each, from 0.
    - `indices`: `(batch,)`, which picture of the split each is.
    - `weights`: `(batch,)`, 1, or 0 for what only fills up the last batch of an evaluation, and there for pictures that
        are damaged.
    """

    images: UInt8[np.ndarray, "batch height width channels"]
    labels: Int[np.ndarray, " batch"]
    indices: Int[np.ndarray, " batch"]
    weights: Float[np.ndarray, " batch"]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which of several processes this is: each reads its own part of every batch.

    **Arguments:**

    - `index`: which one, from 0, as `jax.process_index()` tells.
    - `count`: of how many, as `jax.process_count()` tells.

    **Raises:** `TypeError` or `ValueError` if `index` is no integer from 0 to below `count`.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if as_integer("index", self.index, minimum=0) >= as_integer("count", self.count):
            raise ValueError(f"`index` is {self.index} of {self.count} processes, which count from 0.")

    def rows(self, batch_size: int) -> int:
        """How many of the `batch_size` rows of a batch are this process's.

        **Raises:** `ValueError` if the processes do not divide them.
        """
        if batch_size % self.count:
            raise ValueError(f"`batch_size` is {batch_size}, which {self.count} processes do not divide.")
        return batch_size // self.count

    def place(self, position: int, batch_size: int) -> tuple[int, int]:
        """Where a picture that this process reads has its place.

        **Arguments:**

        - `position`: which one of those that this process reads, from 0.
        - `batch_size`: over all processes.

        **Returns:** the batch, from 0, and the row in all of it.

        **Raises:** `ValueError` if the processes do not divide `batch_size`.
        """
        batch, row = divmod(position, self.rows(batch_size))
        return batch, row + self.index * self.rows(batch_size)


_ALONE = Shard()


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """How many full batches an epoch has.

    **Arguments:**

    - `split`: pictures to train on.
    - `batch_size`: over all processes.

    **Returns:** their number.

    **Raises:** `ValueError` if there is none; `TypeError` or `ValueError` if `batch_size` is no positive integer.
    """
    steps = len(split.labels) // as_integer("batch_size", batch_size)
    if steps == 0:
        raise ValueError(
            f"`batch_size` is {batch_size}, and there are {len(split.labels)} pictures to train on: not one batch."
        )
    return steps


def train_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    repeats: int = 1,
    start: int = 0,
    shard: Shard = _ALONE,
    workers: int = 0,
    max_damaged: int = 100,
) -> contextlib.closing[Generator[Batch]]:
    """Batches to train on, shuffled anew in each epoch: `with train_batches(...) as batches: ...`.

    Batch `n` depends on `seed` and `n` alone, and on nothing that went before. So the number of steps done is all that
    has to be remembered to go on as if nothing had happened, with other workers and on other machines too.

    A damaged picture is named in a warning, and the next one of the split comes in its place.

    **Arguments:**

    - `split`, `transform`: pictures, and what is done to each; `transform` gets a `numpy.random.Generator` of its own
        for each picture.
    - `batch_size`: over all processes. An epoch has [`levitax.data.steps_per_epoch`][] batches; the rest of its
        pictures are left out.
    - `steps`: batches in all, over all epochs.
    - `seed`: of order and transforms.
    - `repeats`: how often a picture comes in an epoch, which then sees fewer of them. Its copies are in one batch,
        `batch_size / repeats` apart.
    - `start`: the first batch, counted from 0 and over all epochs.
    - `shard`: the part of this process; by default all is.
    - `workers`: processes that read and transform; 0 does so in a thread of this one.
    - `max_damaged`: how many damaged pictures to put up with, in this process and since this call.

    **Returns:** a context manager, which gives an iterator of [`levitax.data.Batch`][] with the rows of this process,
    and ends the workers when it is left.

    **Raises:** `ValueError` if the processes do not divide `batch_size`, or a batch is larger than the split; from the
    iterator, `OSError` for more damaged pictures than that, `RuntimeError` if a worker dies, and `ModuleNotFoundError`
    without grain.
    """
    as_integer("repeats", repeats)
    for name, value in (("start", start), ("seed", seed), ("workers", workers), ("max_damaged", max_damaged)):
        as_integer(name, value, minimum=0)
    plan = _TrainPlan(
        len(split.labels), batch_size, steps_per_epoch(split, batch_size), steps, seed, repeats, start, shard
    )
    return contextlib.closing(_batches(plan, split, transform, shard.rows(batch_size), workers, max_damaged))


def eval_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    shard: Shard = _ALONE,
    workers: int = 0,
    max_damaged: int = 100,
) -> contextlib.closing[Generator[Batch]]:
    """All pictures in their order, once: `with eval_batches(...) as batches: ...`.

    The last batch is filled up, with weights of 0. Damaged pictures have a weight of 0 too.

    **Arguments:**

    - `split`, `transform`: pictures, and what is done to each.
    - `batch_size`: over all processes.
    - `shard`, `workers`, `max_damaged`: as in [`levitax.data.train_batches`][].

    **Returns:** what [`levitax.data.train_batches`][] returns.

    **Raises:** `ValueError` if the processes do not divide `batch_size`; from the iterator, what that of
    [`levitax.data.train_batches`][] raises.
    """
    plan = _EvalPlan(len(split.labels), batch_size, shard)
    return contextlib.closing(_batches(plan, split, transform, shard.rows(batch_size), workers, max_damaged))


class _Place(NamedTuple):
    """A picture's place in a run: which one it is, what its draws start from, whether it is one of the data and not
    there to fill a batch, and whether another may stand in for it."""

    picture: int
    seed: tuple[int, int]
    counts: bool
    replaceable: bool


@dataclasses.dataclass(frozen=True)
class _TrainPlan:
    pictures: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    seed: int
    repeats: int
    start: int
    shard: Shard

    def __len__(self):
        return max(self.steps - self.start, 0) * self.shard.rows(self.batch_size)

    def __getitem__(self, position):
        step, row = self.shard.place(position, self.batch_size)
        step += self.start
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        drawn = (step_of_epoch * self.batch_size + _spread_copies(self.batch_size, self.repeats)[row]) // self.repeats
        grain = require("grain.experimental", "`levitax.data.train_batches`", extra("data"))
        seed = _epoch_seed(self.seed, epoch)
        index = grain.index_shuffle(int(drawn), max_index=self.pictures - 1, seed=seed, rounds=4)
        return _Place(int(index), (self.seed, step * self.batch_size + row), counts=True, replaceable=True)


@dataclasses.dataclass(frozen=True)
class _EvalPlan:
    pictures: int
    batch_size: int
    shard: Shard

    def __len__(self):
        return -(-self.pictures // self.batch_size) * self.shard.rows(self.batch_size)

    def __getitem__(self, position):
        step, row = self.shard.place(position, self.batch_size)
        index = step * self.batch_size + row
        counts = index < self.pictures
        return _Place(index if counts else 0, (0, index), counts=counts, replaceable=False)


@functools.lru_cache(maxsize=1)
def _epoch_seed(seed, epoch):
    """32 bits, all that the shuffling takes."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@functools.lru_cache(maxsize=1)
def _spread_copies(batch_size, repeats):
    """For each row of a batch its place in an order where the copies of a picture follow one another."""
    return np.concatenate([np.arange(copy, batch_size, repeats) for copy in range(repeats)])


@dataclasses.dataclass(frozen=True)
class _Read:
    """Reads and transforms the picture of a place. It runs in the workers, and touches nothing of JAX."""

    split: Split
    transform: Transform
    max_damaged: int

    def __call__(self, place: _Place) -> dict[str, Any]:
        pictures = len(self.split.labels)
        for tried in range(min(self.max_damaged + 1, pictures)):
            index = (place.picture + tried) % pictures
            try:
                image = self.split.read(index)
            except OSError:
                continue
            return {
                "image": self.transform(image, np.random.default_rng(place.seed)),
                "label": np.int32(self.split.labels[index]),
                "index": np.int64(index),
                "weight": np.float32(place.counts and (tried == 0 or place.replaceable)),
                "damaged": np.int64(place.picture if tried else -1),
            }
        if pictures <= self.max_damaged:
            name = self.split.name(place.picture)
            raise OSError(f"All {pictures} pictures are damaged, `{name}` for one; mend the data.")
        raise OSError(_too_many(self.max_damaged, self.split.name(place.picture)))


def _batches(plan, split, transform, rows, workers, max_damaged):
    grain = require("grain", "Reading batches", extra("data"))
    _settle_flags()
    steps = grain.MapDataset.source(plan).map(_Read(split, transform, max_damaged))
    steps = steps.batch(rows)
    # One batch ahead in each worker, or in this process.
    steps = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        steps = steps.mp_prefetch(options, worker_init_fn=_end_with_the_parent)
    iterator = iter(steps)
    damaged: set[int] = set()
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):
                    raise
                raise RuntimeError(
                    f"A worker that reads pictures has died ({error}). Most often memory ran out: use fewer `workers` "
                    f"than {workers}, or smaller batches."
                ) from error
            for index in set(batch["damaged"].tolist()) - damaged - {-1}:
                damaged.add(index)
                if len(damaged) > max_damaged:
                    raise OSError(_too_many(max_damaged, split.name(index)))
                warnings.warn(f"`{split.name(index)}` is damaged and skipped; {len(damaged)} so far.", stacklevel=2)
            # Those from workers lie in memory that is shared with them, and would keep it.
            batch = {name: np.array(array) if workers else array for name, array in batch.items()}
            yield Batch(batch["image"], batch["label"], batch["index"], batch["weight"])
    finally:
        iterator.close()


def _end_with_the_parent(index, count):
    """Called in a worker. If the process that it reads for is killed, it would else wait for it for ever; and a signal
    to end that goes to all of them, as clusters send it, is for that process to heed."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch():
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _settle_flags():
    """grain reads flags of absl, which refuse to be read before a command line has been."""
    flags = require("absl.flags", "Reading batches", extra("data")).FLAGS
    if not flags.is_parsed():
        flags.mark_as_parsed()


def _too_many(max_damaged, name):
    return (
        f"More than {max_damaged} pictures are damaged, `{name}` the last of them; mend the data, or raise "
        "`max_damaged`."
    )
