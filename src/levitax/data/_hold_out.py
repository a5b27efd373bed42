import math
from numbers import Real
from typing import Any

import numpy as np

from .._checks import as_integer
from ._sets import Split, Subset


def hold_out(split: Split, share: float, *, seed: int = 0) -> tuple[Subset, Subset]:
    """Divides a split in two, with the given share of each class in the second: images to train on, and to validate
    with.

    **Arguments:**

    - `split`: all images.
    - `share`: of each class, between 0 and 1, rounded. Classes of two or more images have at least one in each part;
        the image of a class with only one is in the first. If all classes have one image, the second part is empty.
    - `seed`: draws the images.

    **Returns:** the two parts, each in the order of `split`.

    **Raises:** `TypeError` or `ValueError` for a `share` or a `seed` out of range.
    """
    share, rng = as_open_share("share", share), np.random.default_rng(as_integer("seed", seed, minimum=0))
    labels = np.asarray(split.labels)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        count = min(max(round(share * len(images)), 1), len(images) - 1)
        held_out[rng.permutation(images)[:count]] = True
    return Subset(split, np.flatnonzero(~held_out)), Subset(split, np.flatnonzero(held_out))


def as_open_share(name: str, value: Any) -> float:
    """Converts `value` to a `float` between 0 and 1, without the two, or raises an error with `name`."""
    share = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 < share < 1:
        raise ValueError(f"`{name}` is {value!r}; expected a number between 0 and 1, such as 0.2.")
    return share
