import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

import levitax

from ._errors import UsageError
from ._options import (
    AsJson,
    check_new,
    Data,
    DataOptions,
    Figure,
    flat,
    Logits,
    Overwrite,
    preprocessing_of,
    PreprocessingChanges,
)


def evaluate(
    weights: Annotated[
        str,
        Parameter(help="A file, a run folder or other folder, a repository on the hub, or an exported .onnx or .xml."),
    ] = "runs/digits",
    data: Data = "digits",
    *,
    fused: Annotated[bool, Parameter(help="Evaluate the fused model.", negative=())] = False,
    same_order: Annotated[
        bool,
        Parameter(help="The classes of the data have other names, but the order of the weights.", negative=()),
    ] = False,
    as_json: AsJson = False,
    out: Annotated[Figure, Parameter(help="Draw the confusion matrix into this file.")] = None,
    logits: Annotated[
        Logits, Parameter(help="Write the logits of the training images into this .safetensors file, to teach from.")
    ] = None,
    overwrite: Overwrite = False,
    reading: Annotated[DataOptions, flat("Data")] = DataOptions(),
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
) -> None:
    """Evaluates weights on the validation images of a data set: top-1, top-5 and accuracy per class.

    A file that levitax export wrote is evaluated in each installed runtime that reads it, with the preprocessing in it.

    With --logits, the command instead writes the logits of the training images, prepared for evaluation, for levitax
    train --teacher: the teacher runs only once.
    """
    is_exported = Path(weights).suffix in (".onnx", ".xml")
    if is_exported and (fused or logits is not None or out is not None):
        raise UsageError("An exported file takes none of --fused, --logits and --out.")
    if logits is not None and (out is not None or as_json):
        raise UsageError("--logits writes logits instead of a table: it takes neither --out nor --json.")
    check_new(out, logits, overwrite=overwrite)
    if is_exported:
        _evaluate_exported(Path(weights), data, reading, preprocessing, same_order=same_order, as_json=as_json)
        return
    model, state = levitax.load(weights)
    prepared = preprocessing_of(weights, model.config.image_size, preprocessing)
    found = _open(data, weights, reading, prepared, model.config.num_classes, same_order=same_order, quiet=as_json)
    predict = levitax.fuse(model, state) if fused else levitax.Predictor(model, state)
    if logits is not None:
        teacher = levitax.train.TeacherLogits.compute(predict, found, workers=reading.workers)
        teacher.save(logits)
        if missing := int(np.isnan(teacher.logits[:, 0]).sum()):
            print(f"{missing} of {len(teacher.logits)} images could not be read; their rows are NaN")
        print(f"wrote {logits}\nnext: levitax train {data} --distillation hard --teacher {logits}")
        return
    result = levitax.train.evaluate_split(predict, found.validation, found.preprocessing, workers=reading.workers)
    _show(result, found.classes, "fused: " if fused else "", as_json=as_json)
    if not as_json:
        for name, accuracy, count in zip(found.classes, result.per_class, result.confusion.sum(1), strict=True):
            print(f"{accuracy:7.1%} of {count:5} {name}")
    if out is not None:
        levitax.plot.confusion(result.confusion, class_names=found.classes).savefig(out, dpi=120)
        if not as_json:
            print(f"wrote {out}")


def _evaluate_exported(
    path: Path,
    data: str,
    reading: DataOptions,
    changes: PreprocessingChanges | None,
    *,
    same_order: bool,
    as_json: bool,
) -> None:
    from ._exported import open_exported

    ways = list(open_exported(path))
    if ways[0].preprocessing is None:
        raise ValueError(f"`{path}` does not say how to prepare images. Export it with levitax export.")
    prepared = dataclasses.replace(ways[0].preprocessing, **(changes or {}))
    classes = prepared.class_names
    found = _open(data, str(path), reading, prepared, len(classes), same_order=same_order, quiet=as_json)
    pixels, labels = _read(found, prepared, reading.workers)
    as_they_are: Any = lambda logits: logits
    for way in ways:
        result = levitax.train.evaluate(as_they_are, way.logits(pixels, prepared), labels)
        _show(result, found.classes, f"{way.runtime} in {way.precision}: ", as_json=as_json)


def _open(
    data: str,
    weights: str,
    reading: DataOptions,
    preprocessing: "levitax.data.Preprocessing",
    num_classes: int,
    *,
    same_order: bool,
    quiet: bool,
) -> "levitax.data.DataSet":
    """The data set, with the images to evaluate on, and the class order and the preprocessing of the weights."""
    from ._runs import open_images, prepared_for
    from ._split import to_evaluate

    found, said = to_evaluate(open_images(data, preprocessing.channels, reading), data, weights)
    if said and not quiet:
        print(said)
    if num_classes not in (0, len(found.classes)):
        raise ValueError(f"The weights are for {num_classes} classes, the data for {len(found.classes)}.")
    if same_order:
        preprocessing = dataclasses.replace(preprocessing, class_names=())
    elif not preprocessing.class_names and not quiet:
        print("the weights do not name their classes; assuming the classes of the data, in the same order")
    try:
        return prepared_for(found, preprocessing)
    except ValueError as error:
        raise ValueError(f"{error} If they mean the same in the same order, pass --same-order.") from None


def _read(
    found: "levitax.data.DataSet", preprocessing: "levitax.data.Preprocessing", workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """The validation images, resized, and their classes, without those that cannot be read."""
    pixels, labels = [], []
    reading = levitax.data.eval_batches(found.validation, preprocessing.resize, batch_size=64, workers=workers)
    with reading as batches:
        for batch in batches:
            pixels.append(batch.images[batch.weights > 0])
            labels.append(batch.labels[batch.weights > 0])
    return np.concatenate(pixels), np.concatenate(labels)


def _show(result: Any, classes: Sequence[str], what: str, *, as_json: bool) -> None:
    if as_json:
        row = {"what": what.removesuffix(": "), "images": int(result.confusion.sum()), "loss": result.loss}
        row |= {"top1": result.accuracy, "top5": result.top5}
        row["per_class"] = dict(zip(classes, result.per_class.tolist(), strict=True))
        print(json.dumps(row, ensure_ascii=False))
        return
    top5 = f"top-5 {result.top5:.2%}, " if len(classes) > 5 else ""
    print(f"{what}top-1 {result.accuracy:.2%}, {top5}cross-entropy {result.loss:.4f}")
