import dataclasses
import glob
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from .._checks import check_choice
from .._extras import extra, require
from ._digits import digit_pixels, DIGITS
from ._image import read_image
from ._preprocessing import grey, Preprocessing


# What the part to validate with may be called, the most telling name first.
_VALIDATION = ("validation", "valid", "val", "dev", "test")


@runtime_checkable
class Split(Protocol):
    """Pictures of any size, each with the number of its class."""

    @property
    def labels(self) -> Int[np.ndarray, " pictures"]:
        """The class of each, from 0, `(pictures,)`."""
        ...

    def read(self, index: int, /) -> UInt8[np.ndarray, "height width channels"]:
        """The picture of number `index`, `(height, width, channels)`, pixels from 0 to 255.

        **Raises:** `OSError` if it is damaged.
        """
        ...

    def name(self, index: int, /) -> str:
        """Where the picture of number `index` comes from, for messages."""
        ...


class Arrays(NamedTuple):
    """A [`levitax.data.Split`][] in memory.

    **Arguments:**

    - `images`: `(pictures, height, width, channels)`, pixels from 0 to 255.
    - `labels`: `(pictures,)`, the class of each, from 0.
    """

    images: UInt8[np.ndarray, "pictures height width channels"]
    labels: Int[np.ndarray, " pictures"]

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """The picture of number `index`, `(height, width, channels)`."""
        return self.images[index]

    def name(self, index: int) -> str:
        """The number `index`, for messages."""
        return f"picture {index}"


class Pictures(NamedTuple):
    """A [`levitax.data.Split`][] in a table of the `datasets` library, as [`levitax.data.open_data`][] makes it.

    **Attributes:**

    - `rows`: the table, whose pictures are not decoded.
    - `column`: the one with the pictures.
    - `labels`: `(pictures,)`, the class of each, from 0.
    - `channels`: 3 for colours, 1 for grey.
    """

    rows: Any
    column: str
    labels: Int[np.ndarray, " pictures"]
    channels: int

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """The picture of number `index`, `(height, width, channels)`, read as by [`levitax.data.read_image`][].

        **Raises:** `OSError` if it is damaged or not there.
        """
        file = self._file(index)
        if not file["bytes"] and not file["path"]:
            raise OSError(f"There is no {self.name(index)}.")
        return read_image(io.BytesIO(file["bytes"]) if file["bytes"] else file["path"], channels=self.channels)

    def name(self, index: int) -> str:
        """The path of the picture of number `index`, or that number, for messages."""
        return self._file(index)["path"] or f"picture {index}"

    def _file(self, index: int) -> dict[str, Any]:
        return self.rows[index][self.column] or {"bytes": None, "path": None}


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
        names = tuple(class_names)
        if names == self.classes:
            return self
        numbers = match_classes(self.classes, names)
        train, validation = (Relabelled(split, numbers[split.labels]) for split in (self.train, self.validation))
        return DataSet(train, validation, dataclasses.replace(self.preprocessing, class_names=names))


def match_classes(names: Sequence[str], others: Sequence[str]) -> Int[np.ndarray, " classes"]:
    """Finds the classes of a data set among those of a model, or of another data set.

    **Arguments:**

    - `names`: the class names of the data.
    - `others`: those of the model.

    **Returns:** `(classes,)`, for each of `names` its position in `others`.

    **Raises:** `ValueError` if one of them has classes that the other has not, with both lists.
    """
    if set(names) != set(others):
        only = lambda one, other: _listed([name for name in one if name not in other][:8]) or "none"
        raise ValueError(
            f"The classes differ: only in the data {only(names, others)}, only in the model {only(others, names)}. "
            "Their numbers would not mean the same."
        )
    return np.array([list(others).index(name) for name in names], np.int32)


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


def open_data(where: str | os.PathLike[str], *, channels: int = 3) -> DataSet:
    """Opens a data set of pictures in classes.

    **Arguments:**

    - `where`: "digits", the embedded ones; a folder with `train/` and `val/` (or `validation/`, `test/`) in it, each
        with a folder of pictures for each class, as ImageNet's are; a folder of parquet files with these names; or the
        id of a data set on the Hugging Face hub, such as "uoft-cs/cifar10".
    - `channels`: 3 for colours, 1 for grey. The digits are grey in any case.

    **Returns:** a [`levitax.data.DataSet`][].

    **Raises:** `FileNotFoundError` for what is not there or is empty; `ValueError` for class folders without pictures,
    for training and validation with different classes, for labels out of range, and where there is nothing to validate
    with; `ModuleNotFoundError` without the `datasets` package.
    """
    check_choice("channels", channels, (3, 1))
    if where == "digits":
        pixels = digit_pixels()
        splits = Arrays(pixels.train_images, pixels.train_labels), Arrays(pixels.test_images, pixels.test_labels)
        return DataSet(*splits, DIGITS)
    tables = _load(where)
    name = next((name for name in _VALIDATION if name in tables), None)
    if "train" not in tables or name is None:
        raise ValueError(
            f"`{where}` has {_listed(tables) or 'nothing'}; expected 'train' and one of {_listed(_VALIDATION)}: "
            "pictures to train on, and others to validate with."
        )
    train, classes = _split(tables["train"], f"'train' of `{where}`", channels)
    validation, others = _split(tables[name], f"{name!r} of `{where}`", channels)
    if classes != others:
        raise ValueError(_different(where, classes or (), others or ()))
    if classes is None:
        classes = tuple(map(str, range(int(max(train.labels.max(), validation.labels.max())) + 1)))
    preprocessing = Preprocessing(class_names=classes)
    return DataSet(train, validation, preprocessing if channels == 3 else grey(preprocessing))


def _load(where):
    """The tables of a data set by name."""
    datasets = require("datasets", "`levitax.data.open_data`", extra("data"))
    folder = Path(where).expanduser()
    if folder.is_dir():
        if not any(folder.iterdir()):
            raise FileNotFoundError(f"The folder `{where}` is empty; expected `train/` and `val/` in it.")
        if any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")):
            files = datasets.load_dataset_builder(str(folder)).config.data_files
            return {str(name): _load_files("parquet", where, str(name), list(paths)) for name, paths in files.items()}
        # Not left to the library to find, which takes a class called "train" or "val" for a part.
        parts = _class_folders(folder)
        pattern = lambda name: str(Path(glob.escape(str(folder)), name, "*", "*"))
        return {
            # Without `drop_labels` it would leave them out where there is a single class.
            name: _load_files("imagefolder", where, name, pattern(name), drop_labels=False, drop_metadata=True)
            for name in parts
        }
    if folder.is_absolute() or len(folder.parts) > 2 or folder.exists():
        raise FileNotFoundError(f"There is no folder `{where}`; expected one with `train/` and `val/` in it.")
    try:
        return datasets.load_dataset(str(folder))
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"`{where}` is no folder here, and no data set that the hub gives: {error}. Check the name, the network "
            "and your access."
        ) from error


def _load_files(kind, where, name, files, **keywords):
    """One part by itself: of several together, the library gives all the classes of the first."""
    datasets = require("datasets", "`levitax.data.open_data`", extra("data"))
    try:
        return datasets.load_dataset(kind, data_files={name: files}, split=name, **keywords)
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise FileNotFoundError(f"{name!r} of `{where}` has no pictures in it.") from error


def _class_folders(folder):
    """The names of the folders of training and validation, which have the same classes, and each of them pictures."""
    parts = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    name = next((name for name in _VALIDATION if name in parts), None)
    if "train" not in parts or name is None:
        raise ValueError(
            f"`{folder}` has {_listed(parts) or 'no folders'} in it; expected `train/` and one of "
            f"{_listed(_VALIDATION)}, each with a folder of pictures for each class."
        )
    endings = require("PIL.Image", "Reading pictures", extra("data")).registered_extensions()
    classes = {}
    for part in ("train", name):
        folders = sorted(path for path in parts[part].iterdir() if path.is_dir())
        if not folders:
            raise ValueError(f"`{parts[part]}` has no folders in it; expected one for each class.")
        for path in folders:
            if not any(file.suffix.lower() in endings for file in path.iterdir()):
                raise ValueError(f"`{path}` has no pictures in it; remove the folder or fill it.")
        classes[part] = tuple(path.name for path in folders)
    if classes["train"] != classes[name]:
        raise ValueError(_different(folder, classes["train"], classes[name]))
    return tuple(classes)


def _split(table, where, channels):
    """A split, and the names of its classes if they have any."""
    datasets = require("datasets", "`levitax.data.open_data`", extra("data"))
    features = table.features
    kinds = lambda kind: [name for name, feature in features.items() if isinstance(feature, kind)]
    named = lambda *names: [name for name in names if name in features]
    image = next(iter(kinds(datasets.Image) + named("image", "img")), None)
    candidates = named("label", "labels", "class") or kinds(datasets.ClassLabel)
    if len(candidates) > 1:
        raise ValueError(
            f"{where} has several columns of labels, {_listed(candidates)}; keep one, or name one of them 'label'."
        )
    label = next(iter(candidates), None)
    if image is None or label is None:
        missing = "pictures" if image is None else "labels"
        raise ValueError(
            f"{where} has the columns {_listed(features)}, none of them {missing}; name it 'image', 'label'."
        )
    values = np.asarray(table.with_format("numpy", columns=[label])[label])
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"Column {label!r} of {where} has values such as {values[0].item()!r}; expected the numbers of classes, "
            f"from 0, as `table.class_encode_column({label!r})` makes them."
        )
    names = tuple(features[label].names) if isinstance(features[label], datasets.ClassLabel) else None
    highest = np.inf if names is None else len(names) - 1
    outside = np.flatnonzero((values < 0) | (values > highest))
    if len(outside):
        raise ValueError(
            f"Picture {outside[0]} of {where} has label {values[outside[0]]}, and {len(outside) - 1} more are out of "
            f"range; expected numbers from 0{'' if names is None else f' to {highest}'}."
        )
    # Of other columns, whatever they are, no row is to be decoded.
    rows = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Pictures(rows, image, values.astype(np.int32), channels), names


def _different(where, train, validation):
    only = lambda ours, theirs: _listed([name for name in ours if name not in theirs][:8]) or "none"
    return (
        f"Training and validation of `{where}` have different classes: only in training {only(train, validation)}, "
        f"only in validation {only(validation, train)}. Their numbers would not mean the same."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
