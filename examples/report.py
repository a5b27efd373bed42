"""What the scripts here leave behind: metrics, curves and pictures."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from command_line import needs_examples, replacing
from levitax.data import Batch


with needs_examples():
    import matplotlib
    from filelock import FileLock, Timeout
    from tensorboardX import SummaryWriter
    from tqdm import tqdm

    from levitax.train import Evaluation

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt


plt.style.use(Path(__file__).with_name("transparent.mplstyle"))

Item = TypeVar("Item")


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, until this one ends, however it does; on Ctrl-C it says how to go on."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"`{folder}` is a file; `--out` must be a folder, or a path where one can be made.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(f"Another run writes to `{folder}`: wait for its end, or pass another `--out`.") from None
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from the newest checkpoint in `{folder}`, or begins anew")
        raise
    finally:
        lock.release()


def progress_bar(total: int, *, done: int = 0, shown: bool = True) -> tqdm:
    """Of so many images."""
    # `None`: not where the output goes into a file.
    return tqdm(total=total, initial=done, unit="img", disable=None if shown else True)


class Log:
    """The metrics of each epoch: in memory, and if it `writes` also in `metrics.jsonl`, for TensorBoard, and on the
    screen."""

    def __init__(self, folder: Path, history: list[dict[str, float]], *, writes: bool):
        self.history = list(history)
        self.writes = writes
        if writes:
            self.file = folder / "metrics.jsonl"
            told = len(self.file.read_text().splitlines()) if self.file.exists() else 0
            if told:
                print(f"going on after epoch {len(history)} of the newest checkpoint; metrics were told up to {told}")
            # What came after the checkpoint that training goes on from will come again.
            with replacing(self.file) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in history))
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history) + 1)

    def add(self, **metrics: float) -> None:
        """Adds an epoch."""
        self.history.append(metrics)
        if self.writes:
            with self.file.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            for name, value in metrics.items():
                self.board.add_scalar(name, value, int(metrics["epoch"]))
            self.board.flush()
            line = "epoch {epoch}: train loss {train_loss:.4f}, test accuracy {test_accuracy:.2%}"
            tqdm.write(line.format(**metrics))


class Timed(Generic[Item]):
    """An iterator that knows how many seconds it was waited for."""

    def __init__(self, iterator: Iterator[Item]):
        self.iterator = iterator
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return next(self.iterator)
        finally:
            self.seconds += time.perf_counter() - start


def plot_curves(path: Path, history: list[dict[str, float]]) -> None:
    """Losses and test error over the epochs."""
    epochs = [line["epoch"] for line in history]
    figure, (losses, errors) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    losses.plot(epochs, [line["train_loss"] for line in history], label="training, augmented and smoothed")
    losses.plot(epochs, [line["test_loss"] for line in history], label="test")
    losses.set(xlabel="epoch", ylabel="cross-entropy", ylim=0)
    losses.legend(frameon=False)
    errors.semilogy(epochs, [100 * (1 - line["test_accuracy"]) for line in history], color="C1")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    errors.set_yticks(ticks, labels=map(str, ticks))
    errors.minorticks_off()
    errors.set(xlabel="epoch", ylabel="test error, %")
    figure.savefig(path)
    plt.close(figure)


def plot_predictions(path: Path, classified: Iterable[tuple[Batch, np.ndarray]], classes: Sequence[str]) -> None:
    """Pictures with what a model's logits say of them, those that it gets wrong first."""
    rows = [
        (picture, label, guess)
        for batch, logits in classified
        for picture, label, guess, weight in zip(
            batch.images, batch.labels, logits.argmax(-1), batch.weights, strict=True
        )
        if weight > 0
    ]
    pictures, labels, guesses = zip(*rows, strict=True)
    wrong = np.array(guesses) != np.array(labels)
    right = np.flatnonzero(~wrong)
    shown = np.concatenate([np.flatnonzero(wrong), right[:: max(1, len(right) // 24)]])[:40]
    figure, axes = plt.subplots(4, 10, figsize=(9, 4.2), layout="constrained")
    for axis, index in zip(axes.flat, shown, strict=False):
        axis.imshow(pictures[index].squeeze(), cmap="gray", vmin=0, vmax=255)
        guess, label = classes[guesses[index]], classes[labels[index]]
        axis.set_title(
            f"{guess}, not {label}" if wrong[index] else guess, color="C3" if wrong[index] else "C2", fontsize=9
        )
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(f"{(~wrong).mean():.1%} of {len(wrong):,} test pictures; the errors first", fontsize=10)
    figure.savefig(path)
    plt.close(figure)


def plot_confusion(path: Path, result: Evaluation, classes: Sequence[str]) -> None:
    """The share of each class that was taken for each, with numbers and names where there is room."""
    shares = result.confusion / np.maximum(result.confusion.sum(1, keepdims=True), 1)
    size = min(2.5 + 0.3 * len(classes), 12)
    figure, axis = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    if len(classes) <= 40:
        rotation = 90 if max(map(len, classes)) > 2 else 0
        axis.set_xticks(range(len(classes)), labels=classes, rotation=rotation)
        axis.set_yticks(range(len(classes)), labels=classes)
    if len(classes) <= 12:
        for row, column in zip(*np.nonzero(result.confusion), strict=True):
            color = "black" if shares[row, column] > 0.5 else "white"
            number = str(result.confusion[row, column])
            axis.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
    axis.set(xlabel="taken for", ylabel="class", title=f"top-1 {result.accuracy:.1%}")
    figure.colorbar(image, shrink=0.8, label="share of the class")
    figure.savefig(path)
    plt.close(figure)
