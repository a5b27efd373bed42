"""Evaluates weights on the validation pictures of a data set: top-1, top-5, each class, and what is taken for what.

    python examples/evaluate.py --weights runs/digits/model.safetensors --fused
    python examples/evaluate.py --weights timm/levit_256.fb_dist_in1k --data imagenet --crop-ratio 0.9 --workers 8

With `--logits FILE.npy` it writes instead the logits of the *training* pictures, prepared as for evaluation: a teacher
for `train.py --teacher FILE.npy` that is asked only once.
"""

import argparse

import levitax
from beside import pictures_of, read_pictures
from command_line import mistakes_in_a_line, picture_path
from report import plot_confusion, progress_bar
from teacher_logits import collect_logits, logits_path, write_logits
from train import add_data_arguments, classify, open_pictures, validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="runs/digits/model.safetensors", help="whatever `levitax.load` takes")
    add_data_arguments(parser)
    parser.add_argument("--crop-ratio", type=float, help="by default as in training, else 0.875, and 1 for the digits")
    parser.add_argument("--fused", action="store_true", help="evaluate the fused model")
    parser.add_argument("--out", type=picture_path, default="confusion.png", help="picture of the confusion")
    parser.add_argument(
        "--logits", type=logits_path, metavar="FILE.npy", help="write the logits of the training pictures"
    )
    arguments = parser.parse_args()
    with mistakes_in_a_line(parser):
        model, state = levitax.load(arguments.weights)
        told = read_pictures(arguments.weights)
        data = open_pictures(arguments, model.config.in_channels, told)
        if model.config.num_classes != len(data.classes):
            raise ValueError(
                f"The weights know {model.config.num_classes} classes, and the data have {len(data.classes)}."
            )
        predict = levitax.fuse(model, state) if arguments.fused else levitax.Predictor(model, state)
        crop_ratio = arguments.crop_ratio or (told or pictures_of(arguments.data, data)).crop_ratio
        if arguments.logits is not None:
            with progress_bar(total=len(data.train.labels)) as bar:
                classified = classify(data.train, data, crop_ratio, predict, arguments.workers)
                logits = collect_logits(data.train, len(data.classes), classified, advance=bar.update)
            write_logits(arguments.logits, logits)
            print(f"see {arguments.logits}")
            return
        result = validation(data, crop_ratio, arguments.workers, predict)
    top5 = f"top-5 {result.top5:.2%}, " if len(data.classes) > 5 else ""
    print(f"{'fused: ' if arguments.fused else ''}top-1 {result.accuracy:.2%}, {top5}cross-entropy {result.loss:.4f}")
    for name, accuracy, count in zip(data.classes, result.per_class, result.confusion.sum(1), strict=True):
        print(f"{accuracy:7.1%} of {count:5} {name}")
    plot_confusion(arguments.out, result, data.classes)
    print(f"see {arguments.out}")


if __name__ == "__main__":
    main()
