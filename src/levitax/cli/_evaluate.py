import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

import levitax

from ._errors import usage, UsageError
from ._options import (
    AsJson,
    check_new,
    Data,
    DataOptions,
    Figure,
    flat,
    Logits,
    Overwrite,
    PreprocessingChanges,
    SameOrder,
)


def evaluate(
    weights: Annotated[
        str,
        Parameter(help="A file, a run folder or other folder, a repository on the hub, or an exported .onnx or .xml."),
    ] = "runs/digits",
    data: Data = "digits",
    *,
    fused: Annotated[bool, Parameter(help="Evaluate the fused model.", negative=())] = False,
    same_order: SameOrder = False,
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
    is_exported = Path(weights).suffix.lower() in (".onnx", ".xml")
    if is_exported and (fused or logits is not None or out is not None):
        raise UsageError("An exported file takes none of --fused, --logits and --out.")
    if logits is not None and (out is not None or as_json):
        raise UsageError("--logits writes logits instead of a table: it takes neither --out nor --json.")
    check_new(out, logits, overwrite=overwrite)
    if is_exported:
        _evaluate_exported(Path(weights), data, reading, preprocessing, same_order=same_order, as_json=as_json)
        return
    from ._data import open_to_evaluate
    from ._weights import preprocessing_of

    model, state = levitax.load(weights)
    prepared = preprocessing_of(weights, model.config.image_size, preprocessing)
    classes = model.config.num_classes
    found = open_to_evaluate(data, weights, reading, prepared, classes, same_order=same_order, quiet=as_json)
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
            print(f"{f'{accuracy:.1%}' if count else '-':>7} of {count:5} {name}")
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
    from ._data import open_to_evaluate
    from ._exported import open_exported, run_on

    ways = list(open_exported(path))
    if ways[0].preprocessing is None:
        raise ValueError(f"`{path}` does not say how to prepare images. Export it with levitax export.")
    with usage():
        prepared = dataclasses.replace(ways[0].preprocessing, **(changes or {}))
    names = prepared.class_names
    found = open_to_evaluate(data, str(path), reading, prepared, len(names), same_order=same_order, quiet=as_json)
    results, labels = run_on(ways, found.validation, prepared, batch_size=ways[0].batch or 64, workers=reading.workers)
    as_they_are: Any = lambda logits: logits
    for way, outputs in zip(ways, results, strict=True):
        result = levitax.train.evaluate(as_they_are, way.as_logits(outputs), labels)
        _show(result, found.classes, f"{way.runtime} in {way.precision}: ", as_json=as_json)


def _show(result: Any, classes: Sequence[str], what: str, *, as_json: bool) -> None:
    if as_json:
        row = {"what": what.removesuffix(": "), "images": int(result.confusion.sum()), "loss": result.loss}
        row |= {"top1": result.accuracy, "top5": result.top5}
        # JSON has no NaN, for a class without images.
        accuracies = [None if np.isnan(accuracy) else float(accuracy) for accuracy in result.per_class]
        row["per_class"] = dict(zip(classes, accuracies, strict=True))
        print(json.dumps(row, ensure_ascii=False))
        return
    top5 = f"top-5 {result.top5:.2%}, " if len(classes) > 5 else ""
    print(f"{what}top-1 {result.accuracy:.2%}, {top5}cross-entropy {result.loss:.4f}")
