"""Evaluates weights on the validation images of a data set: top-1, top-5, accuracy per class, and confusion matrix.

    levitax evaluate --weights runs/digits/model.safetensors --fused
    levitax evaluate --weights timm/levit_256.fb_dist_in1k --data imagenet --crop-ratio 0.9 --workers 8

With `--logits FILE.safetensors`, the command instead writes the logits of the *training* images, prepared for
evaluation. `levitax train --teacher FILE.safetensors` uses them, so that the teacher runs only once.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .. import plot
from .._fuse import fuse, Predictor
from ..train import evaluate_split, TeacherLogits
from ..weights import load
from ._arguments import figure_path, logits_path, make_parser, preprocessing_of
from ._runs import add_data_arguments, open_images, prepared_for


def main(given: Sequence[str]) -> None:
    parser = make_parser("evaluate", __doc__)
    parser.add_argument(
        "--weights",
        default="runs/digits/model.safetensors",
        help="a file, a folder, or the name of a repository on the hub",
    )
    add_data_arguments(parser)
    parser.add_argument(
        "--same-order",
        action="store_true",
        help="the classes of the data have other names, but the same order as in the weights",
    )
    parser.add_argument("--fused", action="store_true", help="evaluate the fused model")
    parser.add_argument("--out", type=figure_path, default="confusion.png", help="the figure of the confusion matrix")
    parser.add_argument(
        "--logits", type=logits_path, metavar="FILE.safetensors", help="write the logits of the training images"
    )
    arguments = parser.parse_args(given)
    model, state = load(arguments.weights)
    preprocessing = preprocessing_of(arguments.weights, model.config.image_size, arguments)
    data = open_images(arguments, model.config.in_channels)
    if model.config.num_classes != len(data.classes):
        raise ValueError(f"The weights are for {model.config.num_classes} classes, the data for {len(data.classes)}.")
    if arguments.same_order:
        preprocessing = dataclasses.replace(preprocessing, class_names=())
    elif not preprocessing.class_names:
        print("the weights do not name their classes; assuming the classes of the data, in the same order")
    try:
        data = prepared_for(data, preprocessing)
    except ValueError as error:
        raise ValueError(f"{error} If they mean the same in the same order, pass --same-order.") from None
    predict = fuse(model, state) if arguments.fused else Predictor(model, state)
    if arguments.logits is not None:
        teacher = TeacherLogits.compute(predict, data, workers=arguments.workers)
        teacher.save(arguments.logits)
        if missing := int(np.isnan(teacher.logits[:, 0]).sum()):
            print(f"{missing} of {len(teacher.logits)} images could not be read; their rows are NaN")
        print(f"wrote {arguments.logits}")
        return
    result = evaluate_split(predict, data.validation, data.preprocessing, workers=arguments.workers)
    top5 = f"top-5 {result.top5:.2%}, " if len(data.classes) > 5 else ""
    print(f"{'fused: ' if arguments.fused else ''}top-1 {result.accuracy:.2%}, {top5}cross-entropy {result.loss:.4f}")
    for name, accuracy, count in zip(data.classes, result.per_class, result.confusion.sum(1), strict=True):
        print(f"{accuracy:7.1%} of {count:5} {name}")
    plot.confusion(result.confusion, class_names=data.classes).savefig(arguments.out, dpi=120)
    print(f"wrote {arguments.out}")
