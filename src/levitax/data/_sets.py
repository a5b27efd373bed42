import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from .._array_checks import check_each, check_form
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


def check_labels(split: Split, *, classes: int | None = None) -> None:
    """Raises unless the labels of a split are class numbers, one for each image where their number is known."""
    images: int | str = "images"
    if isinstance(split, Arrays):
        images = len(split.images)
    elif isinstance(split, Relabelled):
        images = len(split.split.labels)
    check_form("labels", labels := np.asarray(split.labels), {jnp.integer: (images,)})
    highest = np.iinfo(np.int32).max if classes is None else classes - 1
    expected = f"class numbers, from 0{'' if classes is None else f' to {highest}'}."
    check_each("labels", labels, lambda labels: (labels >= 0) & (labels <= highest), expected)


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

        **Raises:** `ValueError` if the two have different classes, with those that only one of them has, and for labels
        that number none of them.
        """
        names = tuple(class_names)
        if names == self.classes:
            return self
        numbers = match_classes(self.classes, names)
        for split in (self.train, self.validation):
            check_labels(split, classes=len(numbers))
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


def match_classes(names: Sequence[str], others: Sequence[str]) -> Int[np.ndarray, " classes"]:
    """Finds the classes of a data set among those of a model.

    **Arguments:**

    - `names`: the class names of the data.
    - `others`: those of the model.

    **Returns:** `(classes,)`, for each of `names` its position in `others`.

    **Raises:** `ValueError` if one of the two has classes that the other has not, with both lists.
    """
    return positions(names, others, "data", "model")


def positions(names: Sequence[str], others: Sequence[str], where: str, elsewhere: str) -> Int[np.ndarray, " classes"]:
    """As `match_classes`, for messages that say where the two are from."""
    if set(names) != set(others):
        only = lambda one, other: listed(name for name in one if name not in other) or "none"
        alike = lambda names: {unicodedata.normalize("NFC", name).casefold() for name in names}
        hint = " They differ only in case, or in Unicode's forms of letters." if alike(names) == alike(others) else ""
        raise ValueError(
            f"{where} and {elsewhere} have different classes: only in {where} {only(names, others)}, only in "
            f"{elsewhere} {only(others, names)}."
            f"{hint} Their numbers would not mean the same."
        )
    numbers = {name: number for number, name in enumerate(others)}
    return np.array([numbers[name] for name in names], np.int32)
