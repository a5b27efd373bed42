from functools import cache

import numpy as np
from jaxtyping import Array

from .._config import LeViTConfig
from ._recognise import differences
from ._tree import Reader


def adapted(read: Reader, old: LeViTConfig, new: LeViTConfig, fresh: Reader) -> Reader:
    """Reads the arrays of a model of configuration `new` from those of one of configuration `old`.

    `fresh` gives those for which there is nothing to take: heads that were not there, or for other classes.

    **Raises:** `ValueError` if the two differ in more than images and heads.
    """
    different = differences(old, new)
    if different:
        raise ValueError(
            "The weights are of a model of other sizes: "
            + "; ".join(f"`{name}` is {getattr(old, name)} there and {getattr(new, name)} here" for name in different)
            + ". Make the model with those of the weights; `image_size`, `num_classes`, `in_channels` and "
            "`distillation` may differ."
        )

    # What one head has may go into two, and what two have goes into each array of one.
    read_head = cache(read)

    def get(path: str):
        if path.startswith("head."):
            return _head(path, read_head, old, new, fresh)
        if path == "stem.convolutions.0.weight" and old.in_channels != new.in_channels:
            return _spread_channels(np.asarray(read(path)), new.in_channels)
        if path.endswith(".bias.table") and old.image_size != new.image_size:
            stage, block = (int(part) for part in path.split(".")[1:4:2])
            return _resize_bias(np.asarray(read(path)), new.block_sizes(stage)[block].grid)
        return read(path)

    return get


def _resize_bias(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A table of attention biases `(heads, rows, columns)` for another grid.

    Entry `(y, x)` belongs to an offset of `y` rows and `x` columns. The smallest and the largest offset of the one grid
    become those of the other, and what is between is interpolated linearly: offset 0, the bias of a token towards
    itself, keeps its value, as it would not between half-pixel centres.
    """

    def along(axis, size, table):
        old = np.arange(table.shape[axis])
        new = np.linspace(0, old[-1], size)
        return np.apply_along_axis(lambda values: np.interp(new, old, values), axis, table)

    return along(2, grid[1], along(1, grid[0], table))


def _spread_channels(weight: np.ndarray, channels: int) -> np.ndarray:
    """The filters `(out, in, kernel, kernel)` for images of other channels, such that a picture of equal channels, as
    a grey one is, gives what it gave.

    Fewer channels add up the filters of those they stand for: one channel the three of red, green and blue. More
    channels begin anew after the last, and those that share a filter have equal parts of it.
    """
    old = weight.shape[1]
    weight = weight.astype(np.float64)
    if channels < old:
        return np.stack([weight[:, start::channels].sum(1) for start in range(channels)], axis=1)
    source = np.arange(channels) % old
    return weight[:, source] / np.bincount(source)[source][None, :, None, None]


def _head(path: str, read: Reader, old: LeViTConfig, new: LeViTConfig, fresh: Reader) -> Array | np.ndarray:
    leaf = path.removeprefix("head.").removeprefix("classification.").removeprefix("distillation.")
    same_classes = old.num_classes == new.num_classes
    if old.num_classes == 0 or (leaf in ("weight", "bias") and not same_classes):
        return fresh(path)
    if not old.distillation:
        return read(f"head.{leaf}")
    if new.distillation:
        return read(path)
    if not same_classes:
        return read(f"head.classification.{leaf}")
    return _merged(read, has_norm=old.network == "paper")[leaf]


def _merged(read: Reader, *, has_norm: bool) -> dict[str, np.ndarray]:
    """The one head that computes the mean of the logits of two: it has the running statistics of the first, which has
    seen the same features as the second, and all else goes into the linear map."""

    def both(leaf):
        return [np.asarray(read(f"head.{name}.{leaf}"), np.float64) for name in ("classification", "distillation")]

    weights, biases = both("weight"), both("bias")
    if not has_norm:
        return {"weight": np.mean(weights, 0), "bias": np.mean(biases, 0)}
    means, variances, norm_weights, norm_biases = (both(f"norm.{leaf}") for leaf in ("mean", "var", "weight", "bias"))
    deviations = [np.sqrt(var + 1e-5) for var in variances]  # As in every normalisation of a LeViT.
    merged = {
        "norm.mean": means[0],
        "norm.var": variances[0],
        "norm.weight": np.ones_like(means[0]),
        "norm.bias": np.zeros_like(means[0]),
        "weight": np.zeros_like(weights[0]),
        "bias": np.zeros_like(biases[0]),
    }
    for head in range(2):
        scale = norm_weights[head] / deviations[head]
        merged["weight"] += weights[head] * scale * deviations[0] / 2
        shift = norm_biases[head] + scale * (means[0] - means[head])
        merged["bias"] += (biases[head] + weights[head] @ shift) / 2
    return merged
