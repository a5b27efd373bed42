import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from levitax.data import Arrays, eval_batches, read_image, Shard, Split, steps_per_epoch, train_batches, Transform


class Corrupt(NamedTuple):
    """Images of which some cannot be read. At module level, like the transforms, so that workers can unpickle it."""

    images: np.ndarray
    labels: np.ndarray
    corrupt: tuple[int, ...]

    def read(self, index: int) -> np.ndarray:
        if index in self.corrupt:
            raise OSError("broken off")
        return self.images[index]

    def name(self, index: int) -> str:
        return f"file-{index}.png"


class AppendNoise:
    """Appends random noise to the right of the image."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([image, rng.integers(256, size=image.shape, dtype=np.uint8)], 1)


class Unchanged:
    """Returns the image unchanged."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image


class Failing(NamedTuple):
    """Raises an error, like a transform of a user with a bug."""

    error: BaseException

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise self.error


class Changed(NamedTuple):
    """Applies a function to the image."""

    change: Callable[[np.ndarray], Any]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.change(image)


def numbered_images(number=13):
    """Returns images whose pixels are their number, in three classes."""
    images = np.arange(number, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 3, 1), np.uint8)
    return Arrays(images, np.arange(number) % 3)


def broken(*corrupt, number=13):
    return Corrupt(*numbered_images(number), corrupt)


def train(split=None, transform=None, **keywords):
    """Returns all training batches: 9 in 3 epochs."""
    options: dict[str, Any] = {"batch_size": 4, "steps": 9, "seed": 0} | keywords
    with train_batches(split or numbered_images(), transform or AppendNoise(), **options) as batches:
        return list(batches)


def evaluate(split=None, transform=None, **keywords):
    """Returns all evaluation batches: 4, with 3 rows of padding."""
    options: dict[str, Any] = {"batch_size": 4} | keywords
    with eval_batches(split or numbered_images(), transform or AppendNoise(), **options) as batches:
        return list(batches)


def same(ours, theirs):
    """Whether the batches are equal, number for number."""
    pairs = [pair for batches in zip(ours, theirs, strict=True) for pair in zip(*batches, strict=True)]
    return all(one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)


def joined(shards):
    """Concatenates the batches of several processes."""
    return [type(parts[0])(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shards, strict=True)]


def indices(batches):
    return np.array([batch.indices for batch in batches])


def test_batches_have_images_with_their_labels_and_indices():
    batches = train() + evaluate()
    for batch in batches:
        assert batch.images.shape == (4, 4, 6, 1) and batch.images.dtype == np.uint8
        assert batch.labels.shape == batch.indices.shape == batch.weights.shape == (4,)
        assert batch.weights.dtype == np.float32
        assert np.array_equal(batch.images[:, 0, 0, 0], batch.indices)
        assert np.array_equal(batch.labels, batch.indices % 3)
    assert all((batch.weights == 1).all() for batch in batches[:9])


def test_splits_and_transforms_match_the_documented_protocols():
    assert isinstance(numbered_images(), Split) and isinstance(broken(), Split)
    assert isinstance(AppendNoise(), Transform)


# The order and the random draws.


@pytest.mark.parametrize("repeats", (1, 3))
@pytest.mark.parametrize("start", (1, 3, 5, 8))
def test_a_batch_depends_on_its_number_alone(start, repeats):
    whole = train(repeats=repeats)
    assert len(whole) == 9
    assert same(train(repeats=repeats, start=start), whole[start:])
    # It does not depend on the number of batches after it either.
    assert same(train(repeats=repeats, start=start, steps=start + 1), whole[start : start + 1])


@pytest.mark.parametrize(("start", "steps"), [(0, 0), (9, 9), (12, 9)])
def test_there_are_no_batches_past_the_end(start, steps):
    assert train(start=start, steps=steps) == []


def test_the_seed_decides_order_and_draws():
    first, again, other = train(), train(), train(seed=1)
    assert same(again, first)
    assert not np.array_equal(indices(other), indices(first))
    # The draws differ for the same image in the same place too.
    whole = {"batch_size": 1, "steps": 4}
    alike = [train(numbered_images(1), **whole, seed=seed) for seed in (0, 1)]
    assert np.array_equal(indices(alike[0]), indices(alike[1])) and not same(*alike)


def test_every_image_is_augmented_anew_each_time():
    noise = {image[:, 3:].tobytes() for batch in train(steps=15) for image in batch.images}
    assert len(noise) == 60


def test_orders_do_not_depend_on_labels_or_transforms():
    ones = Arrays(numbered_images().images, np.ones(13, int))
    assert np.array_equal(indices(train(ones, Unchanged())), indices(train()))


# Epochs.


@pytest.mark.parametrize(("number", "batch_size", "steps"), [(13, 4, 3), (12, 4, 3), (4, 4, 1), (13, 1, 13)])
def test_an_epoch_has_the_full_batches(number, batch_size, steps):
    assert steps_per_epoch(numbered_images(number), batch_size) == steps


@pytest.mark.parametrize(("number", "batch_size"), [(13, 4), (12, 4), (13, 1), (1000, 100)])
def test_images_are_distinct_in_an_epoch_and_reshuffled_in_the_next(number, batch_size):
    steps = steps_per_epoch(numbered_images(number), batch_size)
    batches = train(numbered_images(number), Unchanged(), batch_size=batch_size, steps=4 * steps)
    orders = [tuple(order) for order in indices(batches).reshape(4, -1).tolist()]
    assert all(len(set(order)) == steps * batch_size for order in orders)
    assert all(set(order) <= set(range(number)) for order in orders)
    assert len({*orders, tuple(range(steps * batch_size))}) == 5


def test_every_order_is_equally_likely():
    # Whole epochs of 200 images; with few images, grain takes much longer.
    orders = indices(train(numbered_images(200), Unchanged(), batch_size=200, steps=20))
    quarters = np.zeros((4, 4), int)
    np.add.at(quarters, (np.broadcast_to(np.arange(200) // 50, orders.shape), orders // 50), 1)
    # Each quarter of an epoch has 250 images of each quarter of the split, give or take 12.
    assert np.abs(quarters - 250).max() < 60
    # Neighbours stay neighbours 20 times, give or take 4.
    assert abs((np.diff(orders) == 1).sum() - 20) < 18


def test_epochs_leave_out_different_images():
    orders = indices(train(steps=30)).reshape(10, 12)
    assert len({(set(range(13)) - set(order)).pop() for order in orders.tolist()}) > 3


# Repeated augmentation.


@pytest.mark.parametrize(("number", "batch_size", "repeats"), [(13, 6, 3), (13, 12, 3), (20, 8, 2), (13, 3, 3)])
def test_copies_are_in_one_batch_and_spread_over_it(number, batch_size, repeats):
    for batch in train(numbered_images(number), batch_size=batch_size, repeats=repeats):
        copies = batch.indices.reshape(repeats, batch_size // repeats)
        assert (copies == copies[0]).all() and len(set(copies[0].tolist())) == batch_size // repeats
        # Each copy is augmented differently.
        assert len({image[:, 3:].tobytes() for image in batch.images}) == batch_size


@pytest.mark.parametrize(("number", "batch_size", "repeats"), [(13, 6, 3), (12, 4, 3), (60, 4, 3), (60, 10, 2)])
def test_an_epoch_has_fewer_images_and_repeats_each_equally_often(number, batch_size, repeats):
    steps = steps_per_epoch(numbered_images(number), batch_size)
    batches = train(numbered_images(number), batch_size=batch_size, repeats=repeats, steps=2 * steps)
    seen = [np.unique(order, return_counts=True) for order in indices(batches).reshape(2, -1)]
    assert all((counts == repeats).all() for _, counts in seen)
    assert not np.array_equal(*(indices(batches)[[0, steps]]))


# Several processes.


@pytest.mark.parametrize("repeats", (1, 2))
@pytest.mark.parametrize("count", (2, 4))
def test_the_shards_of_a_batch_to_train_on_put_together_are_the_batch(count, repeats):
    keywords = {"batch_size": 8, "repeats": repeats, "start": 1, "steps": 5}
    shards = [train(numbered_images(20), shard=Shard(index, count), **keywords) for index in range(count)]
    assert {len(batch.labels) for batches in shards for batch in batches} == {8 // count}
    assert same(joined(shards), train(numbered_images(20), **keywords))


@pytest.mark.parametrize("number", (13, 16, 17))
@pytest.mark.parametrize("count", (2, 4))
def test_the_shards_of_a_batch_to_evaluate_on_put_together_are_the_batch(count, number):
    shards = [evaluate(numbered_images(number), batch_size=8, shard=Shard(index, count)) for index in range(count)]
    # All processes take the same number of steps, even if some have no images left.
    assert {len(batches) for batches in shards} == {-(-number // 8)}
    assert same(joined(shards), evaluate(numbered_images(number), batch_size=8))


def test_a_shard_reads_its_own_images_only():
    read = []

    class Noted(NamedTuple):
        images: np.ndarray
        labels: np.ndarray

        def read(self, index: int) -> np.ndarray:
            read.append(index)
            return self.images[index]

        def name(self, index: int) -> str:
            return str(index)

    evaluate(Noted(*numbered_images(16)), batch_size=8, shard=Shard(1, 2))
    assert sorted(read) == [4, 5, 6, 7, 12, 13, 14, 15]


# Evaluation.


@pytest.mark.parametrize("batch_size", (1, 4, 13, 30))
@pytest.mark.parametrize("number", (1, 12, 13))
def test_every_image_is_evaluated_once_and_in_order(number, batch_size):
    batches = evaluate(numbered_images(number), batch_size=batch_size)
    assert {batch.images.shape for batch in batches} == {(batch_size, 4, 6, 1)}
    weights = np.concatenate([batch.weights for batch in batches])
    assert weights.tolist() == [1] * number + [0] * (-number % batch_size)
    assert np.concatenate([batch.indices for batch in batches])[weights == 1].tolist() == list(range(number))


def test_evaluation_is_the_same_each_time():
    assert same(evaluate(), evaluate())


# Corrupt images.


@pytest.mark.parametrize(("corrupt", "instead"), [(5, 6), (12, 0)])
@pytest.mark.parametrize("repeats", (1, 2))
def test_in_training_the_next_image_replaces_a_corrupt_one(corrupt, instead, repeats):
    message = f"^`file-{corrupt}.png`: broken off. Skipped; 1 so far.$"
    with pytest.warns(UserWarning, match=message) as caught:
        batches = train(broken(corrupt), steps=15, repeats=repeats)
    expected = indices(train(steps=15, repeats=repeats))
    # One warning, although the image is drawn several times.
    assert len(caught) == 1 and (expected == corrupt).sum() > 1
    expected[expected == corrupt] = instead
    assert np.array_equal(indices(batches), expected)
    for batch in batches:
        assert np.array_equal(batch.images[:, 0, 0, 0], batch.indices) and (batch.weights == 1).all()
        assert np.array_equal(batch.labels, batch.indices % 3)


@pytest.mark.parametrize("corrupt", ((5,), (12,), (4, 5, 6), (0,)))
def test_in_evaluation_a_corrupt_image_has_no_weight(corrupt):
    with pytest.warns(UserWarning) as caught:
        batches = evaluate(broken(*corrupt))
    messages = [str(warning.message) for warning in caught]
    assert messages == [
        f"`file-{index}.png`: broken off. Skipped; {number} so far." for number, index in enumerate(corrupt, 1)
    ]
    weights = np.concatenate([batch.weights for batch in batches])
    assert np.flatnonzero(weights == 0).tolist() == [*corrupt, 13, 14, 15]
    counted = np.concatenate([batch.indices for batch in batches])[weights == 1]
    assert counted.tolist() == [index for index in range(13) if index not in corrupt]


def test_warnings_point_at_the_loop():
    with pytest.warns(UserWarning, match="Skipped") as caught, eval_batches(broken(5), Unchanged(), batch_size=4) as it:
        list(it)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("read", (train, evaluate))
def test_as_many_corrupt_images_as_asked_for_are_tolerated(read):
    split = broken(1, 5, 9)
    with pytest.warns(UserWarning) as caught:
        read(split, max_corrupt=3)
    assert [str(warning.message)[-9:] for warning in caught] == ["1 so far.", "2 so far.", "3 so far."]
    message = r"More than 2 images cannot be read. The last one is `file-[159].png`: broken off. Fix .* `max_corrupt`"
    with pytest.warns(UserWarning) as caught, pytest.raises(OSError, match=message):
        read(split, max_corrupt=2)
    assert len(caught) == 2
    with pytest.raises(OSError, match="More than 0 images cannot be read"):
        read(split, max_corrupt=0)


@pytest.mark.parametrize("read", (train, evaluate))
def test_corrupt_images_in_a_row_count_each(read):
    with warnings.catch_warnings(), pytest.raises(OSError, match="More than 2 images cannot be read"):
        warnings.simplefilter("ignore")
        read(broken(4, 5, 6, 7), max_corrupt=2)


@pytest.mark.parametrize("read", (train, evaluate))
def test_a_split_of_corrupt_images_is_refused_without_miscounting_them(read):
    message = r"None of the 13 images can be read. `file-\d+.png`: broken off."
    with pytest.raises(OSError, match=message):
        read(broken(*range(13)))


def test_padding_is_not_counted_as_corrupt():
    with pytest.warns(UserWarning) as caught:
        evaluate(broken(0), max_corrupt=1)
    assert len(caught) == 1


class Files(NamedTuple):
    """A split of image files."""

    paths: tuple[str, ...]
    labels: np.ndarray

    def read(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], channels=1)

    def name(self, index: int) -> str:
        return self.paths[index]


def files(folder):
    """Makes four paths: a valid file, a truncated one, one with too many pixels, and one that does not exist."""
    paths = [str(folder / f"{name}.png") for name in ("sound", "cut", "large", "missing")]
    for path, shape in zip(paths[:3], ((16, 16), (16, 16), (20, 30)), strict=True):
        Image.fromarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)).save(path)
    with open(paths[1], "r+b") as file:
        file.truncate(200)
    return Files(tuple(paths), np.arange(4))


REASONS = (
    r"cut.png` cannot be read as an image: .*truncated.*\. Skipped; 1 so far\.",
    r"large.png` cannot be read as an image: .*600 pixels.* limit of 598 .*MAX_IMAGE_PIXELS.*\. Skipped; 2 so far\.",
    r"\[Errno 2\] No such file or directory: '.*missing.png'\. Skipped; 3 so far\.",
)


@pytest.mark.parametrize("workers", (0, pytest.param(2, marks=pytest.mark.slow)))
def test_warnings_name_the_file_once_and_keep_the_reason(tmp_path, monkeypatch, workers):
    # Workers use the limit of this process.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.warns(UserWarning) as caught:
        batches = evaluate(files(tmp_path), Unchanged(), batch_size=2, workers=workers)
    assert np.concatenate([batch.weights for batch in batches]).tolist() == [1, 0, 0, 0]
    for warning, reason, path in zip(caught, REASONS, files(tmp_path).paths[1:], strict=True):
        assert re.search(reason, str(warning.message)) and str(warning.message).count(path) == 1
    with pytest.warns(UserWarning) as caught:
        train(files(tmp_path), Unchanged(), batch_size=4, repeats=2, steps=10, workers=workers)
    assert len(caught) == 3


# Refused arguments and transforms.


@pytest.mark.parametrize("batch_size", (14, 100))
def test_a_batch_larger_than_the_split(batch_size):
    message = f"`batch_size` is {batch_size}, but there are only 13 images to train on, less than one batch"
    with pytest.raises(ValueError, match=message):
        steps_per_epoch(numbered_images(), batch_size)
    with pytest.raises(ValueError, match=message):
        train(batch_size=batch_size)


@pytest.mark.parametrize("read", (train, evaluate))
def test_a_batch_that_the_processes_do_not_divide(read):
    with pytest.raises(ValueError, match="`batch_size` is 4; expected a multiple of 3, the number of processes"):
        read(shard=Shard(0, 3))


@pytest.mark.parametrize("read", (train, evaluate))
def test_a_batch_size_of_zero(read):
    with pytest.raises(ValueError, match="batch_size"):
        read(batch_size=0)


@pytest.mark.parametrize("read", (train, evaluate))
@pytest.mark.parametrize("error", (KeyError("my own mistake"), OSError("my own mistake")))
def test_mistakes_in_a_transform_are_not_taken_for_corrupt_images(read, error):
    with pytest.raises(type(error), match="my own mistake") as caught:
        read(broken(), Failing(error))
    assert re.match(r"While transforming `file-\d+.png`", caught.value.__notes__[0])


@pytest.mark.parametrize("read", (train, evaluate))
def test_a_transform_cannot_end_the_iteration(read):
    with pytest.raises(RuntimeError, match=r"StopIteration was raised while transforming `file-\d+\.png`"):
        read(broken(), Failing(StopIteration()))


def test_mistakes_in_a_split_name_the_image():
    class Wrong(Corrupt):
        def read(self, index: int) -> np.ndarray:
            return self.images[index + 13]

    with pytest.raises(IndexError, match="out of bounds") as caught:
        evaluate(Wrong(*broken()))
    assert caught.value.__notes__[0] == "While reading `file-0.png`."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image / 255, r"returned an array of shape \(4, 3, 1\) and dtype float64; expected a uint8"),
        (lambda image: image[..., 0], r"returned an array of shape \(4, 3\) and dtype uint8; expected a uint8 array"),
        (lambda image: image.tolist(), r"returned a value of type `list`; expected a uint8 array"),
        (lambda image: None, r"returned a value of type `NoneType`; expected a uint8 array"),
    ],
)
def test_a_transform_that_gives_no_image(change, message):
    with pytest.raises(TypeError, match=message) as caught:
        evaluate(transform=Changed(change))
    assert caught.value.__notes__[0] == "While transforming `image 0`."


def test_a_transform_that_gives_images_of_several_shapes():
    transform = Changed(lambda image: image[: 1 + image[0, 0, 0] // 3])
    message = r"images of several shapes: \(1, 3, 1\) of `image 2`, \(2, 3, 1\) of `image 3`; expected one"
    with pytest.raises(ValueError, match=message):
        evaluate(transform=transform)


def test_leaving_before_the_first_batch():
    with train_batches(numbered_images(), Unchanged(), batch_size=4, steps=9, seed=0, workers=2):
        assert multiprocessing.active_children() == []


# Workers.


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fails a test that hangs."""

    def give_up(*_):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("workers", (1, 2, 3))
def test_workers_give_the_same_batches(workers):
    keywords = {"repeats": 3, "start": 1, "shard": Shard(1, 2)}
    with at_most(180):
        assert same(train(**keywords, workers=workers), train(**keywords))
        assert same(evaluate(shard=Shard(1, 2), workers=workers), evaluate(shard=Shard(1, 2)))


@pytest.mark.slow
def test_batches_of_workers_stay_as_they_are():
    # The loader copies batches out of the memory that it shares with the workers.
    with at_most(180):
        with train_batches(numbered_images(), AppendNoise(), batch_size=4, steps=40, seed=0, workers=1) as batches:
            kept = [(batch, batch.images.copy()) for batch in batches]
    assert all(np.array_equal(batch.images, copy) for batch, copy in kept)
    assert all(batch.images.flags.writeable for batch, _ in kept)


@pytest.mark.slow
def test_corrupt_images_in_workers():
    with at_most(180):
        with pytest.warns(UserWarning, match="`file-5.png`: broken off. Skipped") as caught:
            batches = evaluate(broken(5), workers=2)
        assert len(caught) == 1 and sum(batch.weights.sum() for batch in batches) == 12
        message = r"More than 0 images cannot be read. The last one is `file-5.png`: broken off"
        with pytest.raises(OSError, match=message):
            evaluate(broken(5), workers=2, max_corrupt=0)
    assert multiprocessing.active_children() == []


class Awkward(Exception):
    """An error that cannot be rebuilt from its arguments."""

    def __init__(self, number: int, text: str):
        super().__init__(f"{text} number {number}")


class Locked(Exception):
    """An error that cannot be pickled."""

    def __init__(self):
        super().__init__("a lock")
        self.lock = threading.Lock()


def fail_awkwardly(image):
    raise Awkward(3, "mistake")


def fail_locked(image):
    raise Locked()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "kind", "message"),
    [
        (Failing(KeyError("my own mistake")), KeyError, "my own mistake"),
        (Failing(SystemExit(0)), SystemExit, "0"),
        (Changed(fail_awkwardly), RuntimeError, "Awkward: mistake number 3"),
        (Changed(fail_locked), RuntimeError, "Locked: a lock"),
        (Changed(lambda image: os._exit(0)), RuntimeError, "A worker process died with exit code 0"),
        (Changed(lambda image: os._exit(7)), RuntimeError, "A worker process died with exit code 7"),
    ],
    ids=["error", "exit", "unlike", "unpicklable", "death", "failure"],
)
def test_mistakes_in_workers(transform, kind, message):
    with at_most(180), pytest.raises(kind, match=message) as caught:
        evaluate(broken(), transform, workers=1)
    raised = "".join(traceback.format_exception_only(caught.value))
    assert "died" in message or kind is SystemExit or "While transforming `file-0.png`" in raised
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_leaving_early_stops_the_workers():
    with at_most(180):
        with train_batches(numbered_images(), AppendNoise(), batch_size=4, steps=100_000, seed=0, workers=2) as batches:
            next(batches)
            children = multiprocessing.active_children()
            assert len(children) == 2
    assert multiprocessing.active_children() == []
    assert not any(os.path.exists(f"/proc/{child.pid}") for child in children)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported():
    killed = 0.0
    with (
        at_most(180),
        pytest.raises(RuntimeError, match=r"A worker process died with exit code -9.*fewer `workers`"),
        train_batches(numbered_images(), AppendNoise(), batch_size=4, steps=100_000_000, seed=0, workers=2) as batches,
    ):
        for number, _ in enumerate(batches):
            if number == 3:
                pid = multiprocessing.active_children()[0].pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
    assert time.monotonic() - killed < 60
    assert multiprocessing.active_children() == []


SCRIPT = """
import sys
{top}
import numpy as np
from levitax.data import Arrays, eval_batches, Preprocessing

class Own:
    def __call__(self, image, rng):
        return Preprocessing(image_size=8, crop_ratio=1.0, mean=(0.5,), std=(0.5,)).resize(image)

# A batch that does not fit in a pipe.
split = Arrays(np.zeros((9000, 8, 8, 1), np.uint8), np.arange(9000) % 3)
with eval_batches(split, Own(), batch_size=3000, workers=2) as batches:
    print(sum(batch.weights.sum() for batch in batches), "read")
"""


def indented(script):
    return "\n".join(f"    {line}" if line else "" for line in script.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "top"),
    [
        ("file", ""),
        ("file", "sys.exit(0) if __name__ != '__main__' else None"),
        ("file", "import os; os._exit(0) if __name__ != '__main__' else None"),
        ("input", ""),
    ],
    ids=["unguarded", "exit", "sudden exit", "standard input"],
)
def test_a_worker_that_dies_at_its_start_is_reported(tmp_path, source, top):
    (tmp_path / "script.py").write_text(SCRIPT.format(top=top))
    command = {"file": "script.py", "input": "-"}[source]
    with open(tmp_path / "script.py") as script:
        result = subprocess.run(
            [sys.executable, command], stdin=script, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert result.returncode == 1
    assert "RuntimeError: A worker process ended with exit code" in result.stderr
    assert 'if __name__ == "__main__":' in result.stderr and "`workers=0`" in result.stderr
    assert "read" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("source", ("guarded", "argument", "interactive"))
def test_workers_read_for_scripts(tmp_path, source):
    """Workers run transforms that a script defines, also if the script is no module to import."""
    script, typed = SCRIPT.format(top=""), None
    if source == "guarded":
        (tmp_path / "script.py").write_text(f"if __name__ == '__main__':\n{indented(script)}\n")
    if source == "interactive":
        script, typed = "", script + "\n"
    command = {"guarded": ["script.py"], "argument": ["-c", script], "interactive": ["-iqc", ""]}[source]
    result = subprocess.run(
        [sys.executable, *command], input=typed, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout.strip()) == (0, "9000.0 read")
    assert result.stderr.replace(">>> ", "").replace("... ", "").strip() == ""


@pytest.mark.slow
def test_workers_of_an_unclosed_loader_end_with_the_script(tmp_path):
    script = SCRIPT.format(top="").replace("with eval_batches(", "batches = eval_batches(").split(" as batches:")[0]
    script = (
        f"if __name__ == '__main__':\n{indented(script)}.__enter__()\n    print(next(batches).weights.sum(), 'read')\n"
    )
    (tmp_path / "script.py").write_text(script)
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "3000.0 read", "")
