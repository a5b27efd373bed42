from functools import cache

import numpy as np
from jaxtyping import Array

from .._config import LeViTConfig
from ._recognise import differences
from ._tree import Reader


def adapted(read: Reader, old: LeViTConfig, new: LeViTConfig, fresh: Reader) -> Reader:
    """Converts a reader of the arrays of a model with configuration `old` into one for configuration `new`.

    `fresh` reads the arrays that `old` does not have: new heads, and classifiers for other classes.

    **Raises:** `ValueError` if the two differ in more than images and heads.
    """
    different = differences(old, new)
    if different:
        raise ValueError(
            "The weights are from a model of other sizes: "
            + "; ".join(f"`{name}` is {getattr(old, name)} there and {getattr(new, name)} here" for name in different)
            + ". Make the model with the sizes of the weights; only `image_size`, `num_classes`, `in_channels` and "
            "`distillation` may differ."
        )

    # Cached, since two heads may read the same array, and each array of a merged head reads all arrays of both.
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
    """Resizes a table of attention biases `(heads, rows, columns)` to another grid.

    Entry `(y, x)` belongs to an offset of `y` rows and `x` columns. The smallest and the largest offset of one grid
    become those of the other; the values between are interpolated linearly. So offset 0, the bias of a token towards
    itself, keeps its value. With half-pixel centres it would not.
    """

    def along(axis, size, table):
        old = np.arange(table.shape[axis])
        new = np.linspace(0, old[-1], size)
        return np.apply_along_axis(lambda values: np.interp(new, old, values), axis, table)

    return along(2, grid[1], along(1, grid[0], table))


def _spread_channels(weight: np.ndarray, channels: int) -> np.ndarray:
    """Converts filters `(out, in, kernel, kernel)` to another number of channels. An image with equal channels, such as
    a grey one, gives the same result.

    For fewer channels, filters are added up: the three of red, green and blue for one channel. For more channels, the
    filters repeat in order, and channels that share a filter get equal parts of it.
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
    """Merges two heads into one that computes the mean of their logits.

    Both heads have seen the same features, so the merged head takes the running statistics of the first. Everything
    else goes into the linear layer.
    """

    def both(leaf):
        return [np.asarray(read(f"head.{name}.{leaf}"), np.float64) for name in ("classification", "distillation")]

    weights, biases = both("weight"), both("bias")
    if not has_norm:
        return {"weight": np.mean(weights, 0), "bias": np.mean(biases, 0)}
    means, variances, norm_weights, norm_biases = (both(f"norm.{leaf}") for leaf in ("mean", "var", "weight", "bias"))
    deviations = [np.sqrt(var + 1e-5) for var in variances]  # The epsilon of every normalisation in a LeViT.
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
