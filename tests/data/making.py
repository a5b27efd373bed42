"""Numbered images for the data sets of tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from levitax.data import Split


def png(number: int) -> bytes:
    """Returns a PNG file of one colour, which encodes `number`, 8 rows by 6 columns."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 6, 3), (number, 2 * number, 100), np.uint8)).save(file, "png")
    return file.getvalue()


def numbers(split: Split) -> list[int]:
    """Returns the number of each image."""
    return [int(split.read(index)[0, 0, 0]) for index in range(len(split.labels))]


def names(split: Split) -> list[str]:
    return [Path(split.name(index)).name for index in range(len(split.labels))]
