"""A teacher's logits in a file, a row for each training image: `evaluate.py` writes it and `train.py` reads it."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from command_line import replacing
from levitax.data import Batch, Split


def logits_path(text: str) -> Path:
    """A path that logits can be written to, checked before the work starts."""
    path = Path(text).expanduser()
    if path.suffix != ".npy":
        raise argparse.ArgumentTypeError(f"{text} must end in .npy")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def collect_logits(
    split: Split,
    classes: int,
    classified: Iterable[tuple[Batch, np.ndarray]],
    *,
    advance: Callable[[int], object] = lambda images: None,
) -> np.ndarray:
    """The logits `(images, classes)` of a split in float16. The row of an image that cannot be read is NaN.

    **Raises:** `ValueError` for an image whose logits are not finite in float16.
    """
    logits = np.full((len(split.labels), classes), np.nan, np.float16)
    for batch, rows in classified:
        counts = batch.weights > 0
        indices, values = batch.indices[counts], rows[counts]
        with np.errstate(over="ignore"):
            logits[indices] = values
        if len(wrong := np.flatnonzero(~np.isfinite(logits[indices]).all(1))):
            largest = np.abs(values[wrong[0]]).max()
            raise ValueError(
                f"The logits of `{split.name(int(indices[wrong[0]]))}` reach {largest:g}; expected finite numbers up "
                f"to {np.finfo(np.float16).max:g}, the largest of float16. Check the weights and this image."
            )
        advance(len(indices))
    return logits


def write_logits(path: Path, logits: np.ndarray) -> None:
    """Writes logits, and says how many rows are NaN."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, logits)
    if missing := int(np.isnan(logits[:, 0]).sum()):
        print(f"{missing} of {len(logits)} images could not be read; their rows are NaN")


def read_logits(path: str) -> np.ndarray:
    """The logits in a file, which stay on disk.

    **Raises:** `FileNotFoundError`, and `ValueError` for another kind of file.
    """
    try:
        return np.lib.format.open_memmap(Path(path).expanduser(), mode="r")
    except ValueError as error:
        raise ValueError(f"`{path}` holds no logits: {error}. Write it with `evaluate.py --logits`.") from error


def check_logits(logits: np.ndarray, split: Split, classes: int) -> None:
    """Raises `ValueError` unless there is a row of finite logits for each image of a split that can be read."""
    expected = (len(split.labels), classes)
    if logits.shape != expected:
        raise ValueError(
            f"The teacher's logits have shape {logits.shape}; expected {expected}: a row for each training image, a "
            "column for each class."
        )
    if not np.issubdtype(logits.dtype, np.floating):
        raise ValueError(f"The teacher's logits have dtype {logits.dtype}; expected floating-point numbers.")
    missing = _rows_without_logits(logits)
    # Training skips the others.
    index = next((index for index in missing if _is_readable(split, index)), None)
    if index is not None:
        raise ValueError(
            f"The teacher's file has no logits for `{split.name(index)}`: row {index} is all 0 or not finite, one of "
            f"{len(missing)} such rows. Write the file again with `evaluate.py --logits`."
        )


def _rows_without_logits(logits, block=4096):
    missing = []
    for start in range(0, len(logits), block):
        rows = np.asarray(logits[start : start + block])
        missing += (start + np.flatnonzero(~np.isfinite(rows).all(1) | ~rows.any(1))).tolist()
    return missing


def _is_readable(split, index):
    try:
        split.read(index)
    except OSError:
        return False
    return True
