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
    """Images of any size with their labels, which are class numbers."""

    @property
    def labels(self) -> Int[np.ndarray, " images"]:
        """The class of each image, from 0, `(images,)`."""
        ...

    def read(self, index: int, /) -> UInt8[np.ndarray, "height width channels"]:
        """Reads image number `index`, `(height, width, channels)`, with pixels from 0 to 255.

        **Raises:** `OSError` if the image is corrupt.
        """
        ...

    def name(self, index: int, /) -> str:
        """The source of image number `index`, for messages."""
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
        """Reads image number `index`, `(height, width, channels)`."""
        return self.images[index]

    def name(self, index: int) -> str:
        """A name with the number `index`, for messages."""
        return f"image {index}"


def check_labels(split: Split, *, classes: int | None = None) -> None:
    """Raises unless the labels of a split are class numbers, one for each image if the split shows how many it has."""
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
    """Labelled images to train on and to validate with.

    **Attributes:**

    - `train`, `validation`: a [`levitax.data.Split`][] each.
    - `preprocessing`: prepares the images for a model that is trained on them from scratch. Its `class_names` are in
        the order of the labels. Its `channels` match the images.
    """

    train: Split
    validation: Split
    preprocessing: Preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.preprocessing.class_names

    def in_order_of(self, class_names: Sequence[str]) -> "DataSet":
        """Renumbers the labels to follow the class order of a model.

        **Arguments:**

        - `class_names`: the class names of the model, such as `levitax.load_preprocessing(source).class_names`.

        **Returns:** the data set with the new labels, or this data set if the order is already the same.

        **Raises:** `ValueError` if the data set and the model have different classes, listing the differences, or if a
        label is not the number of a class.
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
    """A [`levitax.data.Split`][] with replaced labels.

    **Arguments:**

    - `split`: the images.
    - `labels`: `(images,)`, the class of each image, from 0.
    """

    split: Split
    labels: Int[np.ndarray, " images"]

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Reads image number `index`, `(height, width, channels)`, with pixels from 0 to 255."""
        return self.split.read(index)

    def name(self, index: int) -> str:
        """The source of image number `index`, for messages."""
        return self.split.name(index)


@dataclasses.dataclass(frozen=True)
class Subset:
    """A [`levitax.data.Split`][] with some images of another.

    **Arguments:**

    - `split`: the images.
    - `indices`: `(images,)`, the numbers of the images that are kept, in their order, from 0.

    **Raises:** `TypeError` or `ValueError` for `indices` that are not such numbers, for example a mask.
    """

    split: Split
    indices: Int[np.ndarray, " images"]

    def __post_init__(self):
        way_out = "Use `np.flatnonzero(mask)` if it is a mask."
        check_form("indices", self.indices, {jnp.integer: ("images",)}, way_out=way_out)
        last = len(self.split.labels) - 1
        check_each("indices", self.indices, lambda rows: (rows >= 0) & (rows <= last), f"numbers from 0 to {last}.")

    @property
    def labels(self) -> Int[np.ndarray, " images"]:
        """The class of each image, from 0, `(images,)`."""
        return np.asarray(self.split.labels)[self.indices]

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Reads image number `index`, `(height, width, channels)`, with pixels from 0 to 255."""
        return self.split.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        """The source of image number `index`, for messages."""
        return self.split.name(int(self.indices[index]))


def match_classes(names: Sequence[str], others: Sequence[str]) -> Int[np.ndarray, " classes"]:
    """Maps the classes of a data set to the classes of a model.

    **Arguments:**

    - `names`: the class names of the data set.
    - `others`: the class names of the model.

    **Returns:** `(classes,)`, the position in `others` of each of `names`.

    **Raises:** `ValueError` unless both have the same classes, listing the classes that only one side has.
    """
    return positions(names, others, "data", "model")


def positions(names: Sequence[str], others: Sequence[str], where: str, elsewhere: str) -> Int[np.ndarray, " classes"]:
    """Like `match_classes`. `where` and `elsewhere` name the two sides in error messages."""
    if set(names) != set(others):
        only = lambda one, other: listed(name for name in one if name not in other) or "none"
        alike = lambda names: {unicodedata.normalize("NFC", name).casefold() for name in names}
        hint = " The names differ only in case or in Unicode normalisation." if alike(names) == alike(others) else ""
        raise ValueError(
            f"{where} and {elsewhere} have different classes: only in {where} {only(names, others)}, only in "
            f"{elsewhere} {only(others, names)}."
            f"{hint} The same label would mean different classes."
        )
    numbers = {name: number for number, name in enumerate(others)}
    return np.array([numbers[name] for name in names], np.int32)
