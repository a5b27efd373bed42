import json
import os
import zlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .._extras import extra, require
from .._files import as_path, replacing
from .._fuse import Predictor
from .._progress import progress_bar
from ..data import DataSet, ImageFiles, match_classes, Relabelled, Split, Subset
from ..weights._files import SAFETENSORS
from ._splits import predict_split


_FORMAT = "levitax teacher logits"
_WAY_OUT = "Write the file again with `levitax evaluate --logits`, for this data set."


class TeacherLogits(NamedTuple):
    """A teacher's logits of the training images, computed once before training. The teacher sees each image once,
    prepared for evaluation. The student sees augmented images.

    ```python
    TeacherLogits.compute(predict, data).save("teacher.safetensors")
    fit(model, state, data, recipe, out="runs/student", teacher=TeacherLogits.load("teacher.safetensors"))
    ```

    **Attributes:**

    - `logits`: `(images, classes)`, floating point, in the order of the training images. The row of a corrupt image is
        NaN.
    - `class_names`: the classes of the columns.
    - `fingerprint`: checksums of the labels in their order and, for image files, of their names. For images in memory
        or in a table it cannot tell apart images with the same labels.
    """

    logits: Float[np.ndarray, "images classes"]
    class_names: tuple[str, ...]
    fingerprint: dict[str, int | None]

    @classmethod
    def compute(cls, predict: Predictor, data: DataSet, *, workers: int = 0) -> "TeacherLogits":
        """Computes the logits of `data.train`, prepared by `data.preprocessing`, in float16.

        **Arguments:**

        - `predict`: the teacher, as in [`levitax.train.predict_logits`][], with the classes of `data` in their order.
        - `data`: a [`levitax.data.DataSet`][].
        - `workers`: as in [`levitax.data.eval_batches`][].

        **Returns:** the logits, with the class names and the fingerprint of `data`.

        **Raises:** `ValueError` for an image whose logits are not finite in float16, or not one for each class.
        """
        logits = np.full((len(data.train.labels), len(data.classes)), np.nan, np.float16)
        with progress_bar(len(logits)) as bar:
            for batch, rows in predict_split(predict, data.train, data.preprocessing, workers=workers):
                _check_columns(rows.shape[-1], data)
                counts = batch.weights > 0
                with np.errstate(over="ignore"):
                    logits[batch.indices[counts]] = rows[counts]
                _check_finite(data.train, batch.indices[counts], logits, rows[counts])
                bar.update(int(counts.sum()))
        return cls(logits, data.classes, fingerprint(data.train))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "TeacherLogits":
        """Opens a file from `save`. The logits stay on disk until they are read.

        **Arguments:**

        - `path`: of the file.

        **Returns:** the saved logits, class names and fingerprint.

        **Raises:** `FileNotFoundError` if there is no such file; `ValueError` for another kind of file.
        """
        where = as_path("path", path)
        if not where.is_file():
            raise FileNotFoundError(f"There is no file `{where}`.")
        safetensors = require("safetensors", "`TeacherLogits.load`", extra("weights"))
        try:
            with safetensors.safe_open(where, framework="numpy") as file:
                described = json.loads((file.metadata() or {})[_FORMAT])
                shape = tuple(file.get_slice("logits").get_shape())
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"`{where}` holds no teacher's logits: {error}. {_WAY_OUT}") from error
        with where.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        # safetensors can only read the whole array, or a row at a time.
        logits = np.memmap(where, np.float16, "r", header, shape)
        return cls(logits, tuple(described["class_names"]), described["fingerprint"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, with the class names and the fingerprint. An existing file is replaced only when
        the new one is complete.

        **Arguments:**

        - `path`: of the file, which must end in `.safetensors`.

        **Raises:** `ValueError` for another suffix; `OSError` if the file cannot be written.
        """
        where = as_path("path", path)
        if where.suffix.lower() not in SAFETENSORS:
            raise ValueError(f"`path` is '{path}'; expected a name that ends in .safetensors.")
        numpy = require("safetensors.numpy", "`TeacherLogits.save`", extra("weights"))
        described = json.dumps({"class_names": self.class_names, "fingerprint": self.fingerprint})
        arrays = {"logits": np.asarray(self.logits, np.float16)}
        with replacing(where) as (temporary,):
            numpy.save_file(arrays, temporary, {_FORMAT: described})

    def for_data(self, data: DataSet) -> "TeacherLogits":
        """Checks that these logits belong to the training images of `data`, and orders the columns like its classes.

        **Arguments:**

        - `data`: a [`levitax.data.DataSet`][].

        **Returns:** the logits with the class names of `data`.

        **Raises:** `ValueError` if the logits were computed for other training images, for another order of them, or
        for other classes; also if an image that can be read has no logits.
        """
        expected = (len(data.train.labels), len(data.classes))
        if self.logits.shape != expected:
            raise ValueError(
                f"The teacher's logits have shape {self.logits.shape}; expected {expected}: a row for each training "
                f"image, a column for each class. {_WAY_OUT}"
            )
        columns = match_classes(data.classes, self.class_names)
        if self.fingerprint != (found := fingerprint(data.train, columns)):
            raise ValueError(
                f"The teacher's logits are for other training images, or for these in another order: they were "
                f"computed for {self.fingerprint}, and the data set has {found}. {_WAY_OUT}"
            )
        in_order = np.array_equal(columns, np.arange(len(columns)))
        logits = self.logits if in_order else self.logits[:, columns]
        _check_rows(logits, data.train)
        return TeacherLogits(logits, data.classes, fingerprint(data.train))

    def rows(self, indices: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch classes"]:
        """Reads the logits of some training images.

        **Arguments:**

        - `indices`: `(batch,)`, the numbers of the images.

        **Returns:** `(batch, classes)` in float32.
        """
        return np.asarray(self.logits[indices], np.float32)


def is_teacher_logits(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is a file of teacher's logits, and not of weights."""
    where = as_path("source", source)
    if where.suffix.lower() not in SAFETENSORS or not where.is_file():
        return False
    with where.open("rb") as file:
        # The header is JSON and opens with the metadata.
        return _FORMAT.encode() in file.read(1024)


def fingerprint(split: Split, numbers: Int[np.ndarray, " classes"] | None = None) -> dict[str, int | None]:
    """Identifies the images of a split and their order, by checksums of labels and of file names, if there are any.
    `numbers` renumbers the classes first."""
    labels = np.asarray(split.labels) if numbers is None else numbers[split.labels]
    paths = _paths(split)
    return {
        "images": len(labels),
        "labels": zlib.crc32(labels.astype(np.int64).tobytes()),
        "names": None if paths is None else zlib.crc32(b"\0".join(paths)),
    }


def _paths(split: Split) -> Any:
    """The file names of a split, or `None`. The names of images in a table take as long to read as the images."""
    if isinstance(split, ImageFiles):
        return split.paths
    if isinstance(split, Relabelled):
        return _paths(split.split)
    if isinstance(split, Subset):
        paths = _paths(split.split)
        return None if paths is None else paths[split.indices]
    return None


def _check_columns(columns: int, data: DataSet) -> None:
    if columns != len(data.classes):
        raise ValueError(
            f"`predict` returned {columns} logits for an image; expected one for each of the {len(data.classes)} "
            "classes of the data set."
        )


def _check_finite(split: Split, indices: Any, logits: Any, exact: Any) -> None:
    """Raises for the first image whose logits are not finite in float16."""
    if len(wrong := np.flatnonzero(~np.isfinite(logits[indices]).all(1))):
        raise ValueError(
            f"The logits of `{split.name(int(indices[wrong[0]]))}` reach {np.abs(exact[wrong[0]]).max():g}; expected "
            f"finite numbers up to {np.finfo(np.float16).max:g}, the largest of float16. Check the weights and this "
            "image."
        )


def _check_rows(logits: Any, split: Split, block: int = 4096) -> None:
    """Raises if an image that can be read has no logits. Training skips the others."""
    missing = []
    for start in range(0, len(logits), block):
        rows = np.asarray(logits[start : start + block])
        missing += (start + np.flatnonzero(~np.isfinite(rows).all(1) | ~rows.any(1))).tolist()
    for index in missing:
        try:
            split.read(index)
        except OSError:
            continue
        raise ValueError(
            f"The teacher's file has no logits for `{split.name(index)}`: row {index} is all 0 or not finite, one of "
            f"{len(missing)} such rows. {_WAY_OUT}"
        )
