import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from .._checks import as_choice
from .._files import as_path
from ._digits import digit_pixels, DIGITS
from ._folders import ClassFolders, list_images
from ._listing import listed, shown
from ._preprocessing import grey, Preprocessing
from ._sets import Arrays, DataSet, positions
from ._tables import find_on_hub, find_parquet, read_parquet, read_table, Table


_Part = ClassFolders | Table

# The names of the split to validate with, the first one before others.
_VALIDATION = ("validation", "valid", "val", "dev", "test")


def open_data(where: str | os.PathLike[str], *, channels: int = 3) -> DataSet:
    """Opens a data set of images in classes.

    A folder must contain a folder `train/`, and one to validate with: `validation/`, `valid/`, `val/` or `dev/`, or
    `test/` if there is none of these. Case does not matter. Each of them contains either

    - a folder of images for each class, as in ImageNet. Loads all files at any depth whose suffix Pillow can read, and
      follows links. Skips names that begin with a dot. Reads Tiny-ImageNet with its `val_annotations.txt`.
    - or parquet files with a column of images and a column of labels. Their split may also be a word in their name, as
      in `data/train-00000-of-00001.parquet`.

    A warning lists the files that are left out, by reason.

    **Arguments:**

    - `where`: "digits", the embedded ones; a folder; or the id of a data set on the Hugging Face hub, such as
        "uoft-cs/cifar10", if there is no such folder. "./digits" is a folder.
    - `channels`: 3 for colour, 1 for grey. The digits are always grey.

    **Returns:** a [`levitax.data.DataSet`][]. Class folders are numbered in the order of their names.

    **Raises:** `FileNotFoundError` for what is not there or is empty; `OSError` for corrupt parquet files; `ValueError`
    for a class without images, different classes in training and validation, labels that are no class numbers, several
    columns or folders that could be meant, missing parquet files of a series, nothing to validate with, and a URL;
    `ModuleNotFoundError` without the `datasets` package, which class folders do not need.
    """
    as_choice("channels", channels, (3, 1))
    if where == "digits":
        if os.path.isdir(where):
            warnings.warn(
                "Opening the embedded digits, not the folder `digits`: for that, write './digits'.", stacklevel=2
            )
        pixels = digit_pixels()
        splits = Arrays(pixels.train_images, pixels.train_labels), Arrays(pixels.test_images, pixels.test_labels)
        return DataSet(*splits, DIGITS)
    train, validation, messages = _open_splits(where, channels)
    classes, labels = _common_classes(shown(where), train, validation)
    if len(untrained := np.setdiff1d(labels, train.split.labels)):
        names = listed(classes[label] for label in untrained)
        messages.append(f"Validation of `{shown(where)}` has images of classes that training has none of: {names}.")
    for message in messages:
        warnings.warn(message, stacklevel=2)
    preprocessing = Preprocessing(class_names=classes)
    return DataSet(
        train.split,
        validation.split._replace(labels=labels),
        preprocessing if channels == 3 else grey(preprocessing),
    )


def _open_splits(where: str | os.PathLike[str], channels: int) -> tuple[_Part, _Part, list[str]]:
    """Training, validation, and what to warn of."""
    folder = as_path("where", where)
    if not folder.is_dir():
        return _open_on_hub(where, folder, channels)
    content = sorted(folder.iterdir())
    if not content:
        raise FileNotFoundError(f"The folder `{shown(where)}` is empty; expected `train/` and `val/` in it.")
    folders = _split_folders(content)
    if not _has_folders(folders.get("train")) and (parquet := find_parquet(folder, ("train", *_VALIDATION))):
        names = _choose_splits(where, parquet.splits, parquet.content())
        train, validation = (read_parquet(parquet, name, channels) for name in names)
        return train, validation, parquet.warnings()
    names = _choose_splits(where, folders, listed(map(_with_kind, content)))
    train, validation = (list_images(folders[name], channels) for name in names)
    messages = [*train.warnings(), *validation.warnings()]
    if tables := [path.name for path in content if path.suffix.lower() == ".parquet"]:
        messages.append(f"Not loaded from `{shown(where)}`: {listed(tables)}, since the images are in class folders.")
    return train, validation, messages


def _open_on_hub(where: str | os.PathLike[str], folder: Path, channels: int) -> tuple[Table, Table, list[str]]:
    if folder.is_absolute() or len(folder.parts) > 2 or os.path.lexists(folder):
        file = ", but a file or a broken link: unpack an archive" if os.path.lexists(folder) else ""
        raise FileNotFoundError(
            f"There is no folder `{shown(where)}`{file}; expected one with `train/` and `val/` in it."
        )
    tables = find_on_hub(str(folder))
    names = _choose_splits(where, tables, listed(tables))
    train, validation = (read_table(tables[name], f"{name!r} of `{where}`", channels) for name in names)
    return train, validation, []


def _split_folders(content: Sequence[Path]) -> dict[str, Path]:
    """The folders of splits, by their names in lower case."""
    folders: dict[str, Path] = {}
    for path in content:
        name = path.name.lower()
        if path.is_dir() and name in ("train", *_VALIDATION) and folders.setdefault(name, path) != path:
            raise ValueError(f"`{shown(folders[name])}` and `{shown(path)}` differ only in case; remove one of them.")
    return folders


def _has_folders(folder: Path | None) -> bool:
    return folder is not None and any(path.is_dir() and path.name[0] != "." for path in folder.iterdir())


def _with_kind(path: Path) -> str:
    return shown(path.name) + ("/" if path.is_dir() else "" if path.exists() else " (broken link)")


def _choose_splits(where: str | os.PathLike[str], names: Collection[str], content: str) -> tuple[str, str]:
    """The names of the splits to train on and to validate with."""
    validation = [name for name in _VALIDATION if name in names]
    if "train" not in names or not validation:
        raise ValueError(
            f"`{shown(where)}` has {content or 'nothing'}; expected 'train' and one of {listed(_VALIDATION)}: images "
            "to train on, and others to validate with."
        )
    if len(validation) > 1 and validation[1] != "test":
        raise ValueError(
            f"`{shown(where)}` has {listed(validation)}; expected one of them to validate with, next to 'test' if "
            "there is one. Rename or remove the others."
        )
    return "train", validation[0]


def _common_classes(where: str, train: _Part, validation: _Part) -> tuple[tuple[str, ...], Int[np.ndarray, " images"]]:
    """The names of the classes, in the order of training, and the labels of validation in that order."""
    ours, theirs, labels = train.classes, validation.classes, validation.split.labels
    if ours is None and theirs is None:
        return _numbers(where, train.split.labels, labels), labels
    if ours is None or theirs is None:
        named, numbered = ("training", "validation") if theirs is None else ("validation", "training")
        raise ValueError(
            f"`{where}` has class names in {named} ({listed(ours or theirs or ())}), but only numbers in {numbered}. "
            "Store the labels of both as `datasets.ClassLabel`."
        )
    try:
        return ours, positions(theirs, ours, "validation", "training")[labels]
    except ValueError as error:
        raise ValueError(f"In `{where}`: {error}") from None


def _numbers(where: str, train: Int[np.ndarray, " images"], validation: Int[np.ndarray, " more"]) -> tuple[str, ...]:
    """The numbers of classes without names, up to the highest."""
    highest, trained = int(max(train.max(), validation.max())), np.unique(train)
    if len(trained) <= highest:
        some = np.setdiff1d(np.arange(min(highest + 1, len(trained) + 10)), trained)
        raise ValueError(
            f"The labels of `{where}` go up to {highest} and have no names, but training has no images of "
            f"{highest + 1 - len(trained)} numbers, such as {some[0]}. Number the classes without a gap, as "
            "`table.class_encode_column` does, or name them all with `datasets.ClassLabel`."
        )
    return tuple(map(str, range(highest + 1)))
