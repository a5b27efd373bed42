import dataclasses
from typing import Annotated

import numpy as np
from cyclopts import Parameter

import levitax

from ._options import (
    check_new,
    Data,
    DataOptions,
    Figure,
    flat,
    Logits,
    Overwrite,
    preprocessing_of,
    PreprocessingChanges,
    Weights,
)


def evaluate(
    weights: Weights = "runs/digits",
    data: Data = "digits",
    *,
    fused: Annotated[bool, Parameter(help="Evaluate the fused model.", negative=())] = False,
    same_order: Annotated[
        bool,
        Parameter(help="The classes of the data have other names, but the order of the weights.", negative=()),
    ] = False,
    out: Annotated[Figure, Parameter(help="Draw the confusion matrix into this file.")] = None,
    logits: Annotated[
        Logits, Parameter(help="Write the logits of the training images into this .safetensors file, to teach from.")
    ] = None,
    overwrite: Overwrite = False,
    reading: Annotated[DataOptions, flat("Data")] = DataOptions(),
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
) -> None:
    """Evaluates weights on the validation images of a data set: top-1, top-5 and accuracy per class.

    With --logits, the command instead writes the logits of the training images, prepared for evaluation, for levitax
    train --teacher: the teacher runs only once.
    """
    from ._runs import open_images, prepared_for
    from ._split import to_evaluate

    check_new(out, logits, overwrite=overwrite)
    model, state = levitax.load(weights)
    prepared = preprocessing_of(weights, model.config.image_size, preprocessing)
    found = to_evaluate(open_images(data, model.config.in_channels, reading), data, weights)
    if model.config.num_classes != len(found.classes):
        raise ValueError(f"The weights are for {model.config.num_classes} classes, the data for {len(found.classes)}.")
    if same_order:
        prepared = dataclasses.replace(prepared, class_names=())
    elif not prepared.class_names:
        print("the weights do not name their classes; assuming the classes of the data, in the same order")
    try:
        found = prepared_for(found, prepared)
    except ValueError as error:
        raise ValueError(f"{error} If they mean the same in the same order, pass --same-order.") from None
    predict = levitax.fuse(model, state) if fused else levitax.Predictor(model, state)
    if logits is not None:
        teacher = levitax.train.TeacherLogits.compute(predict, found, workers=reading.workers)
        teacher.save(logits)
        if missing := int(np.isnan(teacher.logits[:, 0]).sum()):
            print(f"{missing} of {len(teacher.logits)} images could not be read; their rows are NaN")
        print(f"wrote {logits}\nnext: levitax train {data} --distillation hard --teacher {logits}")
        return
    result = levitax.train.evaluate_split(predict, found.validation, found.preprocessing, workers=reading.workers)
    top5 = f"top-5 {result.top5:.2%}, " if len(found.classes) > 5 else ""
    print(f"{'fused: ' if fused else ''}top-1 {result.accuracy:.2%}, {top5}cross-entropy {result.loss:.4f}")
    for name, accuracy, count in zip(found.classes, result.per_class, result.confusion.sum(1), strict=True):
        print(f"{accuracy:7.1%} of {count:5} {name}")
    if out is not None:
        levitax.plot.confusion(result.confusion, class_names=found.classes).savefig(out, dpi=120)
        print(f"wrote {out}")
