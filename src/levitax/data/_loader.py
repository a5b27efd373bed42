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
    """Images of one size in uint8, as they go to the accelerator.

    **Attributes:**

    - `images`: `(batch, height, width, channels)`, pixels from 0 to 255.
    - `labels`: `(batch,)`, the class of each, from 0.
    - `indices`: `(batch,)`, the number of each image in the split.
    - `weights`: `(batch,)`, 1; in an evaluation 0 for corrupt images and for those that fill up the last batch.
    """

    images: UInt8[np.ndarray, "batch height width channels"]
    labels: Int[np.ndarray, " batch"]
    indices: Int[np.ndarray, " batch"]
    weights: Float[np.ndarray, " batch"]


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's share of every batch.

    **Arguments:**

    - `index`: of this process, from 0: `jax.process_index()`.
    - `count`: of processes: `jax.process_count()`.

    **Raises:** `TypeError` or `ValueError` if `index` is no integer from 0 to below `count`.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if as_integer("index", self.index, minimum=0) >= as_integer("count", self.count):
            raise ValueError(f"`index` is {self.index} of {self.count} processes, which count from 0.")

    def rows(self, batch_size: int) -> int:
        """The number of this process's rows in a batch of `batch_size`.

        **Raises:** `ValueError` if the processes do not divide them.
        """
        if batch_size % self.count:
            raise ValueError(f"`batch_size` is {batch_size}, which {self.count} processes do not divide.")
        return batch_size // self.count

    def place(self, position: int, batch_size: int) -> tuple[int, int]:
        """The place of an image that this process reads.

        **Arguments:**

        - `position`: counts the images that this process reads, from 0.
        - `batch_size`: over all processes.

        **Returns:** the batch, from 0, and the row in the whole batch.

        **Raises:** `ValueError` if the processes do not divide `batch_size`.
        """
        batch, row = divmod(position, self.rows(batch_size))
        return batch, row + self.index * self.rows(batch_size)


_ALONE = Shard()


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """The number of full batches in an epoch.

    **Arguments:**

    - `split`: images to train on.
    - `batch_size`: over all processes.

    **Returns:** their number.

    **Raises:** `ValueError` if there is none; `TypeError` or `ValueError` if `batch_size` is no positive integer.
    """
    steps = len(split.labels) // as_integer("batch_size", batch_size)
    if steps == 0:
        raise ValueError(
            f"`batch_size` is {batch_size}, and there are {len(split.labels)} images to train on: not one batch. "
            "Choose a smaller `batch_size`."
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
    """Batches to train on, shuffled anew in each epoch: `with train_batches(...) as batches: ...`.

    Batch `n` depends only on `seed` and `n`. To resume a run, with other workers or on other machines too, the number
    of steps done is enough.

    A corrupt image triggers a warning with its name and the reason, and is replaced by the next image of the split.
    What `transform` raises ends the iterator, with a note that names the image.

    **Arguments:**

    - `split`: the images.
    - `transform`: applied to each image, with a `numpy.random.Generator` for each.
    - `batch_size`: over all processes. An epoch has [`levitax.data.steps_per_epoch`][] batches; it leaves out the rest
        of the images.
    - `steps`: the number of batches, over all epochs.
    - `seed`: of order and transforms.
    - `repeats`: how often an image comes in an epoch, which then has fewer images. Its copies are in one batch,
        `batch_size / repeats` apart.
    - `start`: the first batch, counted from 0 and over all epochs.
    - `shard`: of this process; by default the whole batch.
    - `workers`: the number of processes that read and transform; 0 uses a thread of this process. Workers import the
        main script, so what it runs belongs under `if __name__ == "__main__":`.
    - `max_corrupt`: the number of corrupt images tolerated per call and process.

    **Returns:** a context manager. It gives an iterator of [`levitax.data.Batch`][] with the rows of this process, and
    ends the workers on exit.

    **Raises:** `ValueError` if the processes do not divide `batch_size`, or a batch is larger than the split;
    `TypeError` or `ValueError` for labels that are no class numbers. From the iterator: `OSError` for more than
    `max_corrupt` corrupt images, `RuntimeError` if a worker dies, and `ModuleNotFoundError` without grain.
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
    """All images once, in order: `with eval_batches(...) as batches: ...`.

    The last batch is filled up with images of weight 0. Corrupt images have weight 0, too.

    **Arguments:**

    - `split`, `transform`: as in [`levitax.data.train_batches`][].
    - `batch_size`: over all processes.
    - `shard`, `workers`, `max_corrupt`: as in [`levitax.data.train_batches`][].

    **Returns:** what [`levitax.data.train_batches`][] returns.

    **Raises:** `ValueError` if the processes do not divide `batch_size`; `TypeError` or `ValueError` for labels that
    are no class numbers; from the iterator, what that of [`levitax.data.train_batches`][] raises.
    """
    as_integer("batch_size", batch_size)
    for name, value in (("workers", workers), ("max_corrupt", max_corrupt)):
        as_integer(name, value, minimum=0)
    check_labels(split)
    plan = _EvalPlan(len(split.labels), batch_size, shard)
    return contextlib.closing(_batches(plan, split, transform, shard.rows(batch_size), workers, max_corrupt))


class _Place(NamedTuple):
    """An image's place in a run: its number in the split, the seed of its transform, whether it counts or fills up a
    batch, and whether the next image may replace it."""

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
    """32 bits, as the shuffle takes."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@functools.lru_cache(maxsize=1)
def _spread_copies(batch_size, repeats):
    """For each row of a batch, its place in an order with the copies of an image next to each other."""
    return np.concatenate([np.arange(copy, batch_size, repeats) for copy in range(repeats)])


class _Corrupt(NamedTuple):
    """An image that cannot be read: its number in the split, and why."""

    image: int
    reason: str

    def named(self, split: Split) -> str:
        """The reason, with the name of the image."""
        name, reason = split.name(self.image), self.reason.rstrip(".")
        return reason if name in reason else f"`{name}`: {reason}"


@dataclasses.dataclass(frozen=True)
class _ReadBatch:
    """Reads and transforms a batch. It runs in workers, and touches nothing of JAX."""

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
            raise ValueError(f"The transform gave images of several shapes: {listed}; expected one for all images.")
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
        """An image with its number, and why it is not the one of the place."""
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
                        f"The transform gave {_described(image)}; expected an array (height, width, channels) in uint8."
                    )
            return index, image, found
        assert found is not None
        if images <= self.max_corrupt:
            raise OSError(f"None of the {images} images can be read. {found.named(self.split)}.")
        raise OSError(_too_many(self.max_corrupt, self.split, found))


@contextlib.contextmanager
def _noting(doing, split, index):
    """Adds the name of the image to what the caller's own code raises."""
    try:
        yield
    except StopIteration:
        # It would end the iteration that calls this. As the cause, `contextlib` would raise it again.
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
    """What a user may have set in Pillow, which workers import anew."""
    names = ("PIL.Image", "MAX_IMAGE_PIXELS"), ("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES")
    return [(module, name, getattr(sys.modules[module], name)) for module, name in names if module in sys.modules]


def _with_settings(settings, read, number):
    for module, name, value in settings:
        setattr(require(module, "Reading in workers", extra("data")), name, value)
    return read(number)


def _too_many(max_corrupt, split, found):
    return (
        f"More than {max_corrupt} images cannot be read, the last being {found.named(split)}. Fix the data, or raise "
        "`max_corrupt`."
    )
