import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .._checks import as_choice
from .._files import as_path
from ._digits import digit_pixels, DIGITS
from ._folders import ClassFolders, list_images
from ._hold_out import as_open_share, hold_out
from ._listing import listed, shown
from ._preprocessing import grey, Preprocessing
from ._sets import Arrays, DataSet, positions
from ._tables import find_on_hub, find_parquet, read_parquet, read_table, Table


_Part = ClassFolders | Table

# Names of the split to validate with, in order of precedence.
_VALIDATION = ("validation", "valid", "val", "dev", "test")


def open_data(
    where: str | os.PathLike[str], *, channels: int = 3, validation_share: float | None = None, seed: int = 0
) -> DataSet:
    """Opens a data set for image classification.

    A folder must contain a folder `train/` and one to validate with: `validation/`, `valid/`, `val/` or `dev/`, or
    `test/` if none of these exists. Case does not matter. With a `validation_share`, `train/` or the class folders
    alone are enough. The folders must contain either

    - one folder of images for each class, as in ImageNet. `open_data` loads all files whose suffix Pillow can read, at
      any depth. It follows links and skips names that begin with a dot. It reads Tiny-ImageNet's `val_annotations.txt`.
    - or parquet files with a column of images and a column of labels. Instead of a folder, a word in the file name can
      give the split, as in `data/train-00000-of-00001.parquet`.

    A warning lists the skipped files and the reasons.

    **Arguments:**

    - `where`: "digits" for the embedded digits; a folder; or, if there is no such folder, the id of a data set on the
        Hugging Face hub, such as "uoft-cs/cifar10". For a folder named `digits`, pass "./digits".
    - `channels`: 3 for colour, 1 for grey. The digits are always grey.
    - `validation_share`: the share of the images of each class to validate with, between 0 and 1, if the data set has
        no split for that. Without it, such a data set is an error.
    - `seed`: draws these images, as in [`levitax.data.hold_out`][].

    **Returns:** a [`levitax.data.DataSet`][]. Class folders are numbered in the order of their names.

    **Raises:** `FileNotFoundError` if the data set does not exist or is empty. `OSError` if parquet files are corrupt.
    `ValueError` if `where` is a URL, a class has no images, training and validation have different classes, or labels
    are not class numbers; also if several columns or folders are candidates, parquet files of a series are missing, or
    there is nothing to validate with, and for a `validation_share` out of range. `ModuleNotFoundError` without the
    `datasets` package, which class folders do not need.
    """
    as_choice("channels", channels, (3, 1))
    share: Any = None if validation_share is None else as_open_share("validation_share", validation_share)
    if where == "digits":
        if os.path.isdir(where):
            warnings.warn(
                "Opening the embedded digits, not the folder `digits`. For the folder, write './digits'.", stacklevel=2
            )
        pixels = digit_pixels()
        splits = Arrays(pixels.train_images, pixels.train_labels), Arrays(pixels.test_images, pixels.test_labels)
        return DataSet(*splits, DIGITS)
    (train, *validation), messages = _open_splits(where, channels, is_shared=share is not None)
    if validation:
        classes, labels = _common_classes(shown(where), train, *validation)
        splits = train.split, validation[0].split._replace(labels=labels)
        if len(untrained := np.setdiff1d(labels, train.split.labels)):
            names = listed(classes[label] for label in untrained)
            messages.append(
                f"`{shown(where)}` has classes with validation images but without training images: {names}."
            )
    else:
        classes = train.classes or _numbers(shown(where), train.split.labels, train.split.labels)
        splits = hold_out(train.split, share, seed=seed)
    for message in messages:
        warnings.warn(message, stacklevel=2)
    preprocessing = Preprocessing(class_names=classes)
    return DataSet(*splits, preprocessing if channels == 3 else grey(preprocessing))


def _open_splits(where: str | os.PathLike[str], channels: int, *, is_shared: bool) -> tuple[list[_Part], list[str]]:
    """Opens the splits for training and validation, or with `is_shared` the only one. The second result lists the
    warnings to give."""
    folder = as_path("where", where)
    if not folder.is_dir():
        return _open_on_hub(where, folder, channels, is_shared)
    content = sorted(folder.iterdir())
    if not content:
        raise FileNotFoundError(f"The folder `{shown(where)}` is empty; expected `train/` and `val/` in it.")
    folders = _split_folders(content)
    if not _has_folders(folders.get("train")) and (parquet := find_parquet(folder, ("train", *_VALIDATION))):
        names = _choose_splits(where, parquet.splits, parquet.content(), is_shared)
        return [read_parquet(parquet, name, channels) for name in names], parquet.warnings()
    if is_shared and not folders:
        found = list_images(folder, channels)
        _check_no_splits(found)
        return [found], found.warnings()
    if is_shared and not any(map(_has_folders, folders.values())):
        raise ValueError(
            f"`{shown(where)}` has {listed(f'{path.name}/' for path in folders.values())}, the name of a split, "
            "without class folders in it. If it is a class, rename it. Otherwise sort its images into a folder for "
            "each class."
        )
    names = _choose_splits(where, folders, listed(map(_with_kind, content)), is_shared)
    parts = [list_images(folders[name], channels) for name in names]
    messages = [message for part in parts for message in part.warnings()]
    if tables := [path.name for path in content if path.suffix.lower() == ".parquet"]:
        messages.append(f"Not loaded from `{shown(where)}`: {listed(tables)}, because the images are in class folders.")
    return [*parts], messages


def _check_no_splits(found: ClassFolders) -> None:
    """Raises if the folders that were taken for classes have the same folders in them, which are the classes then."""
    parts = [path.split(os.fsencode(os.sep)) for path in found.split.paths.tolist()]
    if min(map(len, parts)) < 3:
        return  # Some image is directly in its class folder.
    inside: dict[bytes, set[bytes]] = {}
    for outer, inner, *_ in parts:
        inside.setdefault(outer, set()).add(inner)
    common = set.intersection(*inside.values())
    if len(inside) > 1 and len(common) > 1:
        raise ValueError(
            f"The folders in `{shown(found.split.root)}`, {listed(found.classes)}, all have the same folders in them: "
            f"{listed(sorted(map(shown, common)))}. If those are the classes, rename the outer folders to `train` and "
            "`val`."
        )


def _open_on_hub(
    where: str | os.PathLike[str], folder: Path, channels: int, is_shared: bool
) -> tuple[list[_Part], list[str]]:
    if folder.is_absolute() or len(folder.parts) > 2 or os.path.lexists(folder):
        file = ", only a file or a broken link (unpack an archive first)" if os.path.lexists(folder) else ""
        raise FileNotFoundError(
            f"There is no folder `{shown(where)}`{file}; expected one with `train/` and `val/` in it."
        )
    tables = find_on_hub(str(folder))
    names = _choose_splits(where, tables, listed(tables), is_shared)
    return [read_table(tables[name], f"{name!r} of `{where}`", channels) for name in names], []


def _split_folders(content: Sequence[Path]) -> dict[str, Path]:
    """Finds the folders of splits. The keys are their names in lower case."""
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


def _choose_splits(
    where: str | os.PathLike[str], names: Collection[str], content: str, is_shared: bool
) -> tuple[str, ...]:
    """Chooses the split to train on and the one to validate with. With `is_shared` the first is enough."""
    validation = [name for name in _VALIDATION if name in names]
    if "train" in names and not validation and is_shared:
        return ("train",)
    if "train" not in names or not validation:
        raise ValueError(
            f"`{shown(where)}` has {content or 'nothing'}; expected 'train' and one of {listed(_VALIDATION)}: images "
            "to train on and images to validate with. To validate with a part of the training images, pass "
            "`validation_share=0.2`."
        )
    if len(validation) > 1 and validation[1] != "test":
        raise ValueError(
            f"`{shown(where)}` has {listed(validation)}; expected one of them to validate with, and at "
            "most 'test' in addition. Rename or remove the others."
        )
    return "train", validation[0]


def _common_classes(where: str, train: _Part, validation: _Part) -> tuple[tuple[str, ...], Int[np.ndarray, " images"]]:
    """The class names in the order of the training split, and the validation labels in the same order."""
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
    """Names the classes by their numbers, from 0 to the highest label."""
    highest, trained = int(max(train.max(), validation.max())), np.unique(train)
    if len(trained) <= highest:
        some = np.setdiff1d(np.arange(min(highest + 1, len(trained) + 10)), trained)
        raise ValueError(
            f"The labels of `{where}` go up to {highest} and have no class names, but {highest + 1 - len(trained)} of "
            f"these numbers, such as {some[0]}, have no training images. Number the classes without a gap, as "
            "`table.class_encode_column` does, or name them all with `datasets.ClassLabel`."
        )
    return tuple(map(str, range(highest + 1)))
