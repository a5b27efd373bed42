import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

import levitax

from ._options import (
    AsJson,
    check_images,
    check_new,
    Figure,
    flat,
    ImageSize,
    Overwrite,
    PreprocessingChanges,
    Weights,
    Workers,
)


# A figure of more images would be too high to look at.
_DRAWN = 20


def predict(
    *images: Annotated[Path, Parameter(help="Image files, or folders with images at any depth.")],
    weights: Weights,
    top: Annotated[int, Parameter(help="Number of classes shown.", validator=Number(gte=1))] = 5,
    labels: Annotated[
        Path | None, Parameter(help="A file with a class name on each line, in place of the weights' names.")
    ] = None,
    image_size: ImageSize = None,
    workers: Workers = 0,
    as_json: AsJson = False,
    out: Annotated[Figure, Parameter(help="Draw up to 20 images and their classes into this file.")] = None,
    overwrite: Overwrite = False,
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
) -> None:
    """Classifies images with any LeViT, published or your own.

    The weights determine the preprocessing and the class names. A file that cannot be read as an image is named and
    left out.
    """
    from ._weights import load_classifier

    check_images(images)
    check_new(out, overwrite=overwrite)
    names = None if labels is None else _lines(labels)
    classifier = load_classifier(weights, image_size, preprocessing, class_names=names)
    found = classifier(images, top=top, workers=workers)
    if as_json:
        for name, classes, row in zip(found.names, found.labels, found.probabilities.tolist(), strict=True):
            print(json.dumps({"image": name, "classes": classes, "probabilities": row}, ensure_ascii=False))
    else:
        print(found)
    if out is not None:
        draw(found, classifier.preprocessing.channels).savefig(out, dpi=120)
        if not as_json:
            some = f" with the first {_DRAWN} of {len(found.names)} images" if len(found.names) > _DRAWN else ""
            print(f"wrote {out}{some}")


def _lines(path: Path) -> list[str]:
    """The lines of a text file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    try:
        # Windows may put a byte order mark before UTF-8.
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not UTF-8 text: {error}. Save it as UTF-8.") from error


def draw(found: "levitax.Classified", channels: int) -> Any:
    """Draws the first images, with their most likely classes as bars."""
    import warnings

    from ..plot._figures import make_figure, make_grey

    # The printed table shows the names for which the font lacks glyphs.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    count = min(len(found.names), _DRAWN)
    figure = make_figure(7, 2.2 * count)
    axes = figure.subplots(count, 2, width_ratios=(1, 2), squeeze=False)
    for (left, right), name, classes, row in zip(axes, *found, strict=False):
        left.imshow(levitax.data.read_image(name, channels=channels).squeeze(), cmap="gray", vmin=0, vmax=255)
        left.set_title(Path(name).name, fontsize=8, parse_math=False)
        left.set_axis_off()
        right.barh(range(len(row)), row, color="C0")
        right.set_yticks(range(len(row)), labels=classes, fontsize=8)
        right.invert_yaxis()
        right.set(xlim=(0, 1))
        right.tick_params(axis="x", labelsize=7)
        right.spines[["top", "right"]].set_visible(False)
        make_grey(left, right)
    return figure
