"""Samples, stores and compares records of named arrays."""

import hashlib
from pathlib import Path

import numpy as np

from .numbers import Arrays


GOLDENS = Path(__file__).parent / "goldens"


def sample(record: Arrays, samples: int) -> Arrays:
    """At most `samples` evenly spaced elements of each array, and under `<name>:scale` its largest magnitude."""
    kept = {}
    for name, array in record.items():
        positions = np.linspace(0, array.size - 1, min(array.size, samples)).round().astype(np.int64)
        kept[name] = array.ravel()[positions]
        kept[f"{name}:scale"] = np.abs(array).max()
    return kept


def errors(ours: Arrays, theirs: Arrays) -> Arrays:
    """For each array the largest error over the largest magnitude of theirs, whole or as sampled by `sample`.

    The gradient of a bias is compared relative to the gradient of its layer's weight if that is larger: before a
    normalisation, it is zero except for rounding.
    """
    if any(name.endswith(":scale") for name in theirs):
        names = {name for name in theirs if not name.endswith(":scale")}
        assert ours.keys() == names, ours.keys() ^ names
        ours = {name: sample({name: array}, theirs[name].size)[name] for name, array in ours.items()}
    else:
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    scales = {name: float(np.abs(theirs.get(f"{name}:scale", theirs[name])).max()) for name in ours}
    for name in ours:
        if name.startswith("gradient:") and name.endswith(".bias"):
            scales[name] = max(scales[name], scales[name.removesuffix("bias") + "weight"])
    # If the reference is all zeros, ours must be exactly zero: the gradient of the bias table of a single token, say.
    tiny = np.finfo(np.float32).tiny
    return {
        name: np.abs(array.ravel() - theirs[name].ravel()).max() / max(scales[name], tiny)
        for name, array in ours.items()
    }


def digest(record: Arrays) -> bytes:
    """Returns a hash of all names, shapes, dtypes and numbers."""
    sha = hashlib.sha256()
    for name in sorted(record):
        array = np.ascontiguousarray(record[name])
        sha.update(f"{name} {array.shape} {array.dtype}\n".encode() + array.tobytes())
    return sha.digest()


def save(name: str, record: Arrays) -> None:
    """Writes a record to the goldens."""
    GOLDENS.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS / f"{name}.npz", allow_pickle=False, **record)


def load(name: str) -> Arrays:
    """Reads a record from the goldens."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)
