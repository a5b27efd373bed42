"""Evaluates weights on the validation pictures of a data set: top-1, top-5, each class, and what is taken for what.

    python examples/evaluate.py --weights runs/digits/model.safetensors --fused
    python examples/evaluate.py --weights timm/levit_256.fb_dist_in1k --data imagenet --crop-ratio 0.9 --workers 8

With `--logits FILE.npy` it writes instead the logits of the *training* pictures, prepared as for evaluation: a teacher
for `train.py --teacher FILE.npy` that is asked only once.
"""

import argparse
import dataclasses

import levitax
from command_line import mistakes_in_a_line, picture_path, preprocessing_of
from report import plot_confusion, progress_bar
from teacher_logits import collect_logits, logits_path, write_logits
from train import add_data_arguments, classify, open_images, prepared_for, validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="runs/digits/model.safetensors", help="whatever `levitax.load` takes")
    add_data_arguments(parser)
    parser.add_argument(
        "--same-order", action="store_true", help="the data name their classes otherwise, but in the weights' order"
    )
    parser.add_argument("--fused", action="store_true", help="evaluate the fused model")
    parser.add_argument("--out", type=picture_path, default="confusion.png", help="picture of the confusion")
    parser.add_argument(
        "--logits", type=logits_path, metavar="FILE.npy", help="write the logits of the training images"
    )
    arguments = parser.parse_args()
    with mistakes_in_a_line(parser):
        model, state = levitax.load(arguments.weights)
        preprocessing = preprocessing_of(arguments.weights, model.config.image_size, arguments)
        data = open_images(arguments, model.config.in_channels)
        if model.config.num_classes != len(data.classes):
            raise ValueError(
                f"The weights are for {model.config.num_classes} classes, the data for {len(data.classes)}."
            )
        if arguments.same_order:
            preprocessing = dataclasses.replace(preprocessing, class_names=())
        elif not preprocessing.class_names:
            print("the weights do not name their classes; taken to be those of the data, in the same order")
        try:
            data = prepared_for(data, preprocessing)
        except ValueError as error:
            raise ValueError(f"{error} If they mean the same in the same order, pass --same-order.") from None
        predict = levitax.fuse(model, state) if arguments.fused else levitax.Predictor(model, state)
        if arguments.logits is not None:
            with progress_bar(total=len(data.train.labels)) as bar:
                classified = classify(data.train, data.preprocessing, predict, arguments.workers)
                logits = collect_logits(data.train, len(data.classes), classified, advance=bar.update)
            write_logits(arguments.logits, logits)
            print(f"see {arguments.logits}")
            return
        result = validation(data, arguments.workers, predict)
        top5 = f"top-5 {result.top5:.2%}, " if len(data.classes) > 5 else ""
        print(
            f"{'fused: ' if arguments.fused else ''}top-1 {result.accuracy:.2%}, {top5}cross-entropy {result.loss:.4f}"
        )
        for name, accuracy, count in zip(data.classes, result.per_class, result.confusion.sum(1), strict=True):
            print(f"{accuracy:7.1%} of {count:5} {name}")
        plot_confusion(arguments.out, result, data.classes)
        print(f"see {arguments.out}")


if __name__ == "__main__":
    main()
