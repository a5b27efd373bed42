import contextlib
import dataclasses
import functools
import sys
import warnings
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from .._checks import as_integer
from .._extras import extra, require
from ._sets import check_labels, Split
from ._transforms import Transform
from ._workers import compute_ahead


class Batch(NamedTuple):
    """A batch of images of one size, in uint8, ready to send to the accelerator.

    **Attributes:**

    - `images`: `(batch, height, width, channels)`, pixels from 0 to 255.
    - `labels`: `(batch,)`, the class of each image, from 0.
    - `indices`: `(batch,)`, the index of each image in the split.
    - `weights`: `(batch,)`, normally 1. In an evaluation, 0 for corrupt images and for those that pad the last batch.
    """

    images: UInt8[np.ndarray, "batch height width channels"]
    labels: Int[np.ndarray, " batch"]
    indices: Int[np.ndarray, " batch"]
    weights: Float[np.ndarray, " batch"]


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's share of every batch.

    **Arguments:**

    - `index`: the number of this process, from 0: `jax.process_index()`.
    - `count`: the number of processes: `jax.process_count()`.

    **Raises:** `TypeError` or `ValueError` unless `index` is an integer from 0 to `count - 1`.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if as_integer("index", self.index, minimum=0) >= as_integer("count", self.count):
            raise ValueError(
                f"`index` is {self.index} and `count` is {self.count}; expected an `index` from 0 to `count - 1`."
            )

    def rows(self, batch_size: int) -> int:
        """The number of rows that this process reads of each batch of `batch_size`.

        **Raises:** `ValueError` unless the number of processes divides `batch_size`.
        """
        if batch_size % self.count:
            raise ValueError(
                f"`batch_size` is {batch_size}; expected a multiple of {self.count}, the number of processes."
            )
        return batch_size // self.count

    def place(self, position: int, batch_size: int) -> tuple[int, int]:
        """Finds the batch and the row of an image that this process reads.

        **Arguments:**

        - `position`: the number of the image among those that this process reads, from 0.
        - `batch_size`: the batch size over all processes.

        **Returns:** the number of the batch, from 0, and the row in the whole batch.

        **Raises:** `ValueError` unless the number of processes divides `batch_size`.
        """
        batch, row = divmod(position, self.rows(batch_size))
        return batch, row + self.index * self.rows(batch_size)


_ALONE = Shard()


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Counts the full batches in an epoch.

    **Arguments:**

    - `split`: the images to train on.
    - `batch_size`: the batch size over all processes.

    **Returns:** the number of batches, at least 1.

    **Raises:** `ValueError` if the split has fewer images than one batch. `TypeError` or `ValueError` unless
    `batch_size` is a positive integer.
    """
    steps = len(split.labels) // as_integer("batch_size", batch_size)
    if steps == 0:
        raise ValueError(
            f"`batch_size` is {batch_size}, but there are only {len(split.labels)} images to train on, less than one "
            "batch. Choose a smaller `batch_size`."
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
    max_corrupt: int = 100,
) -> contextlib.closing[Generator[Batch]]:
    """Makes batches to train on, reshuffled in every epoch: `with train_batches(...) as batches: ...`.

    Batch `n` depends only on `seed` and `n`. To resume a run, pass the number of completed steps as `start`. The number
    of workers and the machines may change.

    A corrupt image triggers a warning with its name and the reason, and is replaced by the next image of the split. An
    exception in `transform` ends the iterator; a note on the exception names the image.

    **Arguments:**

    - `split`: the images to train on.
    - `transform`: applied to each image, with a separate `numpy.random.Generator`.
    - `batch_size`: the batch size over all processes. An epoch has [`levitax.data.steps_per_epoch`][] batches and skips
        the remaining images.
    - `steps`: the number of batches over all epochs, including those before `start`.
    - `seed`: the seed of the order and of the transforms.
    - `repeats`: how often each image appears in an epoch, which then has fewer different images. If `repeats` divides
        `batch_size`, the copies of an image are in one batch, `batch_size / repeats` rows apart.
    - `start`: the number of the first batch, counted from 0 over all epochs.
    - `shard`: this process's share of every batch; by default the whole batch.
    - `workers`: the number of processes that read and transform images; 0 uses a thread of this process. Workers import
        the main script, so put the code that it runs under `if __name__ == "__main__":`.
    - `max_corrupt`: the number of corrupt images tolerated per call and process before an `OSError`.

    **Returns:** a context manager. It provides an iterator of [`levitax.data.Batch`][] with the rows of this process,
    and ends the workers on exit.

    **Raises:** `ValueError` unless the number of processes divides `batch_size`, and if a batch is larger than the
    split. `TypeError` or `ValueError` if the labels are not class numbers. From the iterator: `OSError` after more than
    `max_corrupt` corrupt images, `RuntimeError` if a worker dies, and `ModuleNotFoundError` without grain, or without
    cloudpickle for `workers`.
    """
    as_integer("repeats", repeats)
    for name, value in (("start", start), ("seed", seed), ("workers", workers), ("max_corrupt", max_corrupt)):
        as_integer(name, value, minimum=0)
    check_labels(split)
    plan = _TrainPlan(
        len(split.labels), batch_size, steps_per_epoch(split, batch_size), steps, seed, repeats, start, shard
    )
    return contextlib.closing(_batches(plan, split, transform, shard.rows(batch_size), workers, max_corrupt))


def eval_batches(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    shard: Shard = _ALONE,
    workers: int = 0,
    max_corrupt: int = 100,
) -> contextlib.closing[Generator[Batch]]:
    """Makes batches of all images, once and in order: `with eval_batches(...) as batches: ...`.

    Images of weight 0 pad the last batch. Corrupt images also have weight 0.

    **Arguments:**

    - `split`, `transform`: as in [`levitax.data.train_batches`][].
    - `batch_size`: the batch size over all processes.
    - `shard`, `workers`, `max_corrupt`: as in [`levitax.data.train_batches`][].

    **Returns:** a context manager, as in [`levitax.data.train_batches`][].

    **Raises:** `ValueError` unless the number of processes divides `batch_size`. `TypeError` or `ValueError` if the
    labels are not class numbers. From the iterator: `OSError` after more than `max_corrupt` corrupt images,
    `RuntimeError` if a worker dies, and `ModuleNotFoundError` without cloudpickle for `workers`.
    """
    as_integer("batch_size", batch_size)
    for name, value in (("workers", workers), ("max_corrupt", max_corrupt)):
        as_integer(name, value, minimum=0)
    check_labels(split)
    plan = _EvalPlan(len(split.labels), batch_size, shard)
    return contextlib.closing(_batches(plan, split, transform, shard.rows(batch_size), workers, max_corrupt))


class _Place(NamedTuple):
    """A row of a batch: the index of its image in the split, the seed of its transform, whether it counts or only pads
    the batch, and whether the next image may replace it."""

    image: int
    seed: tuple[int, int]
    counts: bool
    replaceable: bool


@dataclasses.dataclass(frozen=True)
class _TrainPlan:
    images: int
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
        index = grain.index_shuffle(int(drawn), max_index=self.images - 1, seed=seed, rounds=4)
        return _Place(int(index), (self.seed, step * self.batch_size + row), counts=True, replaceable=True)


@dataclasses.dataclass(frozen=True)
class _EvalPlan:
    images: int
    batch_size: int
    shard: Shard

    def __len__(self):
        return -(-self.images // self.batch_size) * self.shard.rows(self.batch_size)

    def __getitem__(self, position):
        step, row = self.shard.place(position, self.batch_size)
        index = step * self.batch_size + row
        counts = index < self.images
        return _Place(index if counts else 0, (0, index), counts=counts, replaceable=False)


@functools.lru_cache(maxsize=1)
def _epoch_seed(seed, epoch):
    """The seed of the shuffle, which takes 32 bits."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@functools.lru_cache(maxsize=1)
def _spread_copies(batch_size, repeats):
    """Maps each row of a batch to its position in an order where the copies of an image are adjacent."""
    return np.concatenate([np.arange(copy, batch_size, repeats) for copy in range(repeats)])


class _Corrupt(NamedTuple):
    """An image that cannot be read: its index in the split, and the reason."""

    image: int
    reason: str

    def named(self, split: Split) -> str:
        """The reason, which names the image."""
        name, reason = split.name(self.image), self.reason.rstrip(".")
        return reason if name in reason else f"`{name}`: {reason}"


@dataclasses.dataclass(frozen=True)
class _ReadBatch:
    """Reads and transforms a batch. Runs in workers, so it does not use JAX."""

    plan: _TrainPlan | _EvalPlan
    split: Split
    transform: Transform
    rows: int
    max_corrupt: int

    def __call__(self, number: int) -> tuple[Batch, list[_Corrupt]]:
        places = [self.plan[position] for position in range(number * self.rows, (number + 1) * self.rows)]
        indices, images, corrupt = zip(*map(self._read, places), strict=True)
        shapes = {image.shape: index for index, image in zip(indices, images, strict=True)}
        if len(shapes) > 1:
            listed = ", ".join(f"{shape} of `{self.split.name(index)}`" for shape, index in shapes.items())
            raise ValueError(f"The transform returned images of several shapes: {listed}; expected one shape.")
        weights = [
            place.counts and (place.replaceable or not found) for place, found in zip(places, corrupt, strict=True)
        ]
        batch = Batch(
            np.stack(images),
            np.asarray(self.split.labels)[list(indices)].astype(np.int32),
            np.array(indices, np.int64),
            np.array(weights, np.float32),
        )
        return batch, [found for found in corrupt if found]

    def _read(self, place: _Place) -> tuple[int, np.ndarray, _Corrupt | None]:
        """Reads an image for a row. Returns its index, the image, and the corrupt image that it replaces, if any."""
        images, found = len(self.split.labels), None
        for tried in range(min(self.max_corrupt + 1, images)):
            index = (place.image + tried) % images
            with _noting("reading", self.split, index):
                try:
                    image = self.split.read(index)
                except OSError as error:
                    found = found or _Corrupt(index, str(error) or type(error).__name__)
                    continue
            with _noting("transforming", self.split, index):
                image = self.transform(image, np.random.default_rng(place.seed))
                if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
                    raise TypeError(
                        f"The transform returned {_described(image)}; expected a uint8 array of shape "
                        "(height, width, channels)."
                    )
            return index, image, found
        assert found is not None
        if images <= self.max_corrupt:
            raise OSError(f"None of the {images} images can be read. {found.named(self.split)}.")
        raise OSError(_too_many(self.max_corrupt, self.split, found))


@contextlib.contextmanager
def _noting(doing, split, index):
    """Adds the name of the image to exceptions from the caller's own code."""
    try:
        yield
    except StopIteration:
        # A `StopIteration` would silently end the caller's loop. As the cause, `contextlib` would raise it again.
        raise RuntimeError(f"A StopIteration was raised while {doing} `{split.name(index)}`.") from None
    except Exception as error:
        error.add_note(f"While {doing} `{split.name(index)}`.")
        raise


def _batches(plan, split, transform, rows, workers, max_corrupt):
    read = _ReadBatch(plan, split, transform, rows, max_corrupt)
    if workers:
        read = functools.partial(_with_settings, _pillow_settings(), read)
    seen: set[int] = set()
    with contextlib.closing(compute_ahead(read, range(len(plan) // rows), workers)) as results:
        for batch, corrupt in results:
            for found in corrupt:
                if found.image in seen:
                    continue
                seen.add(found.image)
                if len(seen) > max_corrupt:
                    raise OSError(_too_many(max_corrupt, split, found))
                warnings.warn(f"{found.named(split)}. Skipped; {len(seen)} so far.", stacklevel=2)
            yield batch


def _described(value):
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"a value of type `{type(value).__name__}`"


def _pillow_settings():
    """Pillow settings that the user may have changed. Workers import Pillow afresh and need them, too."""
    names = ("PIL.Image", "MAX_IMAGE_PIXELS"), ("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES")
    return [(module, name, getattr(sys.modules[module], name)) for module, name in names if module in sys.modules]


def _with_settings(settings, read, number):
    for module, name, value in settings:
        setattr(require(module, "Reading in workers", extra("data")), name, value)
    return read(number)


def _too_many(max_corrupt, split, found):
    return (
        f"More than {max_corrupt} images cannot be read. The last one is {found.named(split)}. Fix the data, or raise "
        "`max_corrupt`."
    )
