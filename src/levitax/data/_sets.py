import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from ._listing import listed
from ._preprocessing import Preprocessing


@runtime_checkable
class Split(Protocol):
    """Images of any size, each with the number of its class."""

    @property
    def labels(self) -> Int[np.ndarray, " images"]:
        """The class of each image, from 0, `(images,)`."""
        ...

    def read(self, index: int, /) -> UInt8[np.ndarray, "height width channels"]:
        """The image of number `index`, `(height, width, channels)`, pixels from 0 to 255.

        **Raises:** `OSError` if it is corrupt.
        """
        ...

    def name(self, index: int, /) -> str:
        """The source of the image of number `index`, for messages."""
        ...


class Arrays(NamedTuple):
    """A [`levitax.data.Split`][] in memory.

    **Arguments:**

    - `images`: `(images, height, width, channels)`, pixels from 0 to 255.
    - `labels`: `(images,)`, the class of each image, from 0.
    """

    images: UInt8[np.ndarray, "images height width channels"]
    labels: Int[np.ndarray, " images"]

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """The image of number `index`, `(height, width, channels)`."""
        return self.images[index]

    def name(self, index: int) -> str:
        """The number `index`, for messages."""
        return f"image {index}"


class DataSet(NamedTuple):
    """Images in classes, to train on and to validate with.

    **Attributes:**

    - `train`, `validation`: a [`levitax.data.Split`][] each.
    - `preprocessing`: how to prepare the images for a model that is trained on them from scratch. Its `class_names` are
        in the order of the labels, and its `channels` are those of the images.
    """

    train: Split
    validation: Split
    preprocessing: Preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.preprocessing.class_names

    def in_order_of(self, class_names: Sequence[str]) -> "DataSet":
        """The same images, with labels that number the classes in the order of a model's.

        **Arguments:**

        - `class_names`: those of the model, such as `levitax.load_preprocessing(source).class_names`.

        **Returns:** the data set, as it is if the order is the same.

        **Raises:** `ValueError` if the two have different classes, with those that only one of them has.
        """
        ours, names = self.classes, tuple(class_names)
        if ours == names:
            return self
        if set(ours) != set(names):
            only = lambda one, other: listed(name for name in one if name not in other) or "none"
            raise ValueError(
                f"The classes of the data differ from those of the model: only in the data {only(ours, names)}, only "
                f"in the model {only(names, ours)}. Their numbers would not mean the same."
            )
        numbers = np.array([names.index(name) for name in ours], np.int32)
        train, validation = (Relabelled(split, numbers[split.labels]) for split in (self.train, self.validation))
        return DataSet(train, validation, dataclasses.replace(self.preprocessing, class_names=names))


class Relabelled(NamedTuple):
    """A [`levitax.data.Split`][] with other labels.

    **Arguments:**

    - `split`: the images.
    - `labels`: `(images,)`, the class of each image, from 0.
    """

    split: Split
    labels: Int[np.ndarray, " images"]

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """The image of number `index`, `(height, width, channels)`, pixels from 0 to 255."""
        return self.split.read(index)

    def name(self, index: int) -> str:
        """The source of the image of number `index`, for messages."""
        return self.split.name(index)
