"""Reads tables of images and labels with `datasets`, from local parquet files or from the Hugging Face hub."""

import filecmp
import glob
import io
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from .._extras import extra, require
from ._image import read_image
from ._listing import describe, HIDDEN, list_files, listed, OTHER_SUFFIX, shown, suffix_of


# Columns with these names take precedence over others of their type.
_IMAGES = ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos")
_LABELS = ("label", "labels", "class")


class ImageTable(NamedTuple):
    """A [`levitax.data.Split`][] in a table of the `datasets` library, made by [`levitax.data.open_data`][].

    **Attributes:**

    - `rows`: the table, with images that are not decoded.
    - `column`: the name of the column of images.
    - `labels`: `(images,)`, the class of each image, from 0.
    - `channels`: 3 for colour, 1 for grey.
    - `folder`: the folder that relative image paths in the table start from.
    """

    rows: Any
    column: str
    labels: Int[np.ndarray, " images"]
    channels: int
    folder: str = ""

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Reads image number `index`, `(height, width, channels)`, with [`levitax.data.read_image`][].

        **Raises:** `OSError` if the image is corrupt or missing.
        """
        file = self._file(index)
        if not file["bytes"] and not file["path"]:
            raise OSError(f"There is no {self.name(index)}.")
        if not file["bytes"]:
            path = file["path"]
            return read_image(path if "://" in path else os.path.join(self.folder, path), channels=self.channels)
        try:
            return read_image(io.BytesIO(file["bytes"]), channels=self.channels)
        except OSError as error:
            raise OSError(f"`{self.name(index)}` of the table: {error}") from error

    def name(self, index: int) -> str:
        """The path of image number `index`, or the number if it has no path, for messages."""
        return self._file(index)["path"] or f"image {index}"

    def _file(self, index: int) -> dict[str, Any]:
        return self.rows[index][self.column] or {"bytes": None, "path": None}


class Table(NamedTuple):
    """A split and its class names, which are `None` if the labels are numbers without names."""

    split: ImageTable
    classes: tuple[str, ...] | None


class ParquetFiles(NamedTuple):
    """The parquet files below a folder, by split, and the paths that were left out, with the reason."""

    root: str
    splits: dict[str, list[bytes]]
    left_out: dict[bytes, str]

    def content(self) -> str:
        others = f"left out: {describe(self.left_out)}" if self.left_out else ""
        return "; ".join(filter(None, (listed(self.splits), others)))

    def warnings(self) -> list[str]:
        """The warnings to give when the splits are opened."""
        if not self.left_out:
            return []
        return [f"Not loaded from `{shown(self.root)}`: {describe(self.left_out)}."]


def find_parquet(folder: Path, names: Collection[str]) -> ParquetFiles | None:
    """Finds the parquet files of the splits `names`. Returns `None` if the top three levels of folders have none."""
    # Look no deeper, so that a large folder of other files is refused at once.
    if not any(any(folder.glob(pattern)) for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet")):
        return None
    root = os.path.abspath(folder)
    listing = list_files(os.fsencode(root), {b".parquet"})
    # Other files are not reported, because they may be anything: a README, or images that a table refers to. A folder
    # or link that cannot be followed is reported, because it may hold tables.
    left_out = {
        path: "not a parquet file" if reason == OTHER_SUFFIX else reason
        for path, reason in listing.left_out.items()
        if suffix_of(path) in (b".parquet", b".arrow") or reason not in (HIDDEN, OTHER_SUFFIX)
    }
    splits: dict[str, list[bytes]] = {}
    places: dict[str, set[str]] = {}
    for path in listing.files:
        if (found := _split_of(path, names)) is None:
            left_out[path] = "name contains no split, or several"
        else:
            name, place = found
            splits.setdefault(name, []).append(path)
            places.setdefault(name, set()).add(place)
    for name, several in places.items():
        if len(several) > 1:
            raise ValueError(
                f"`{shown(root)}` has parquet files of {name!r} in several folders: {listed(sorted(several))}. They "
                "may be different data sets. Pass one of the folders."
            )
    return ParquetFiles(root, splits, left_out)


def _split_of(path: bytes, names: Collection[str]) -> tuple[str, str] | None:
    """Finds the split of a file, by the name of a folder or else by a word in the file name, and the split's folder."""
    *folders, file = shown(path).split(os.sep)
    for depth, folder in enumerate(folders):
        if folder.lower() in names:
            return folder.lower(), os.path.join(".", *folders[: depth + 1])
    words = set(re.findall("[a-z]+", file.lower())) & set(names)
    return (words.pop(), os.path.join(".", *folders)) if len(words) == 1 else None


def read_parquet(parquet: ParquetFiles, name: str, channels: int) -> Table:
    """Loads the parquet files of a split and checks that no file or row is missing."""
    datasets = _library("datasets")
    paths, what = parquet.splits[name], f"{name!r} of `{shown(parquet.root)}`"
    _check_shards(what, paths)
    files = [os.path.join(parquet.root, os.fsdecode(path)) for path in paths]
    _check_copies(what, files)
    columns, rows = _check_files(files, what)
    patterns = [glob.escape(file) for file in files]
    try:
        with _quiet(datasets):
            table = datasets.load_dataset("parquet", data_files={name: patterns}, split=name, columns=columns)
    except Exception as error:
        raise OSError(_unloadable(what, files, error)) from error
    if len(table) != rows:
        raise OSError(f"`datasets` loaded {len(table)} of the {rows} rows of {what}; delete its cache and try again.")
    folders = {os.path.dirname(file) for file in files}
    return read_table(table, what, channels, folders.pop() if len(folders) == 1 else parquet.root)


def _check_shards(what: str, paths: Sequence[bytes]) -> None:
    """Raises unless files such as `train-00000-of-00002.parquet` or `0000.parquet` are complete and from one export."""
    shards: dict[bytes, list[tuple[int, int]]] = {}
    numbered: dict[bytes, list[int]] = {}
    for path in paths:
        if match := re.fullmatch(rb"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?(?:\.\w+)+", path):
            shards.setdefault(match[1], []).append((int(match[2]), int(match[3])))
        elif match := re.fullmatch(rb"(.*/|)(\d+)(?:\.\w+)+", path):
            numbered.setdefault(match[1], []).append(int(match[2]))
    for stem, pairs in shards.items():
        present, totals = sorted(number for number, _ in pairs), {total for _, total in pairs}
        if len(totals) > 1 or present != list(range(max(totals))):
            raise ValueError(
                f"{what} has {len(pairs)} files `{shown(stem)}-*`, numbered {listed(present)} out of "
                f"{listed(sorted(totals))}; expected all files of one export, from 0."
            )
    for stem, numbers in numbered.items():
        if sorted(numbers) != list(range(min(numbers), min(numbers) + len(numbers))):
            raise ValueError(
                f"{what} has files numbered {listed(sorted(numbers))} in `{shown(stem or b'.')}`; expected all files "
                "of one export, without gaps."
            )


def _check_copies(what: str, files: Sequence[str]) -> None:
    """Raises if two files have the same content, because their rows would count twice."""
    of_size: dict[int, list[str]] = {}
    for path in files:
        of_size.setdefault(os.path.getsize(path), []).append(path)
    for alike in of_size.values():
        for one, other in itertools.combinations(alike, 2):
            if filecmp.cmp(one, other, shallow=False):
                raise ValueError(
                    f"{what} has the same rows twice: `{shown(one)}` and `{shown(other)}` are copies. Delete one."
                )


def _check_files(files: Sequence[str], what: str) -> tuple[list[str], int]:
    """Finds the columns of images and labels, and counts the rows. Raises unless all files have the same classes."""
    columns, names, kind, rows = [], None, "", 0
    for path in files:
        try:
            with _library("pyarrow.parquet").ParquetFile(path) as file:
                features = _library("datasets").Features.from_arrow_schema(file.schema_arrow)
                rows += file.metadata.num_rows
        except Exception as error:
            raise OSError(f"`{shown(path)}` is corrupt, or not a parquet file: {error}") from error
        if not columns:
            columns = list(_choose_columns(features, what))
            names = _class_names(features.get(columns[1]))
            kind = _kind(features[columns[1]])
        elif (other := _kind(features.get(columns[1]))) != kind:
            raise ValueError(
                f"Column {columns[1]!r} of {what} has {kind} in `{shown(files[0])}`, but {other} in `{shown(path)}`; "
                "expected the same type in all files."
            )
        elif (others := _class_names(features.get(columns[1]))) != names:
            numbers = ("numbers without names",)
            raise ValueError(
                f"The classes of {what} are {listed(names or numbers)} in `{shown(files[0])}`, but "
                f"{listed(others or numbers)} in `{shown(path)}`; expected the same classes in all files."
            )
    if not rows:
        raise FileNotFoundError(f"{what} has no images.")
    return columns, rows


def _unloadable(what: str, files: Sequence[str], error: Exception) -> str:
    """Describes an error and names the first file that cannot be read, because `datasets` does not name it."""
    for path in files:
        try:
            with _library("pyarrow.parquet").ParquetFile(path) as file:
                for _ in file.iter_batches():
                    pass
        except Exception as reason:
            return f"`{shown(path)}` of {what} is corrupt: {reason}"
    return f"The parquet files of {what} cannot be loaded: {error.__cause__ or error}"


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Hides progress bars, which report downloads although local files are read."""
    # HF_DATASETS_DISABLE_PROGRESS_BARS=0 asks for progress bars, and `datasets` then refuses to disable them.
    if datasets.are_progress_bars_disabled() or datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is False:
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def find_on_hub(name: str) -> dict[str, Any]:
    """Loads the tables of a data set on the hub, by split."""
    datasets = _library("datasets")
    try:
        return datasets.load_dataset(name)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"`{name}` is not a folder, and cannot be loaded from the Hugging Face hub: {error}. Check the name, the "
            "network and your access."
        ) from error
    except Exception as error:
        raise ValueError(f"The hub's data set `{name}` cannot be loaded: {error.__cause__ or error}") from error


def read_table(table: Any, what: str, channels: int, folder: str = "") -> Table:
    """Reads the images and labels of a table. Relative image paths start from `folder`."""
    datasets = _library("datasets")
    if not len(table):
        raise FileNotFoundError(f"{what} has no images.")
    image, label = _choose_columns(table.features, what)
    classes = _class_names(table.features[label])
    labels = _read_labels(table, label, what, classes)
    # Select the column first, so that reading a row does not decode the other columns.
    rows = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Table(ImageTable(rows, image, labels, channels, folder), classes)


def _choose_columns(features: Mapping[str, Any], what: str) -> tuple[str, str]:
    """Chooses the columns of images and labels."""
    columns = lambda fits: [name for name, feature in features.items() if fits(name.lower(), feature)]
    images = columns(lambda name, feature: _is_image(feature) or (name in _IMAGES and _is_value(feature, "binary")))
    # Accept paths only if there is nothing else, because strings may be anything.
    images = images or columns(lambda name, feature: name in _IMAGES and _is_value(feature, "string"))
    labels = columns(lambda name, feature: name in _LABELS or _class_names(feature) is not None)
    return _choose("images", images, _IMAGES, features, what), _choose("labels", labels, _LABELS, features, what)


def _choose(content: str, candidates: list[str], names: tuple[str, ...], columns: Iterable[str], what: str) -> str:
    """Chooses the only candidate that has one of `names`, or else the only candidate."""
    named = [column for column in candidates if column.lower() in names]
    match named or candidates:
        case [column]:
            return column
        case []:
            raise ValueError(
                f"{what} has the columns {listed(columns)}; expected a column of {content} (images: encoded, as bytes "
                f"or as paths; labels: integers). Name that column {names[0]!r}."
            )
        case several:
            way_out = "keep one" if named else f"keep one, or name one of them {names[0]!r}"
            raise ValueError(f"{what} has several columns of {content}: {listed(several)}; {way_out}.")


def _is_image(feature: Any) -> bool:
    """Whether a column holds encoded images. Tools other than `datasets` store the bytes but not the type."""
    return isinstance(feature, _library("datasets").Image) or (isinstance(feature, dict) and "bytes" in feature)


def _is_value(feature: Any, kind: str) -> bool:
    return isinstance(feature, _library("datasets").Value) and feature.dtype in (kind, f"large_{kind}")


def _kind(feature: Any) -> str:
    """Describes the content of a label column."""
    if feature is None:
        return "nothing"
    if _class_names(feature) is not None or getattr(feature, "dtype", "").lstrip("u").startswith("int"):
        return "integers"
    return f"values of type {getattr(feature, 'dtype', type(feature).__name__)}"


def _class_names(feature: Any) -> tuple[str, ...] | None:
    return tuple(feature.names) if isinstance(feature, _library("datasets").ClassLabel) else None


def _read_labels(table: Any, column: str, what: str, classes: tuple[str, ...] | None) -> Int[np.ndarray, " images"]:
    if missing := table.data.column(column).null_count:
        raise ValueError(f"Column {column!r} of {what} has no value in {missing} of {len(table)} rows.")
    values = np.asarray(table.with_format("numpy", columns=[column])[column])
    if not np.issubdtype(values.dtype, np.integer) or values.ndim != 1:
        raise ValueError(
            f"Column {column!r} of {what} has values such as {values[0].tolist()!r}; expected class numbers from 0, as "
            f"`table.class_encode_column({column!r})` makes them."
        )
    highest = np.iinfo(np.int32).max if classes is None else len(classes) - 1
    outside = np.flatnonzero((values < 0) | (values > highest))
    if len(outside):
        raise ValueError(
            f"Image {outside[0]} of {what} has label {values[outside[0]]}, and {len(outside) - 1} more are out of "
            f"range; expected numbers from 0{'' if classes is None else f' to {highest}'}."
        )
    return values.astype(np.int32)


def _library(module: str) -> Any:
    return require(module, "`levitax.data.open_data`", extra("data"))
