from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

import levitax

from .._files import replacing
from ._options import (
    check_images,
    check_new,
    flat,
    ImageSize,
    Overwrite,
    PreprocessingChanges,
    to_write,
    Weights,
    Workers,
)


def _table(_: object, path: Path) -> None:
    to_write([".npz", ".csv"], path)


def embed(
    *images: Annotated[Path, Parameter(help="Image files, or folders with images at any depth.")],
    weights: Weights,
    out: Annotated[Path, Parameter(help="The file to write; ends in .npz or .csv.", validator=_table)],
    image_size: ImageSize = None,
    workers: Workers = 0,
    overwrite: Overwrite = False,
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
) -> None:
    """Computes the features of images before the classifier, for a search, clusters or another classifier.

    The .npz has the arrays "names", the paths of the images; "features", (images, dim); and "labels", the name of the
    folder of each image. The .csv has a row for each image, with the same columns.
    """
    from ._weights import load_classifier

    check_images(images)
    check_new(out, overwrite=overwrite)
    found = load_classifier(weights, image_size, preprocessing).embed(images, workers=workers)
    labels = [Path(name).parent.name for name in found.names]
    with replacing(out) as (temporary,):
        if out.suffix.lower() == ".npz":
            np.savez(temporary, names=found.names, features=found.features, labels=labels)
        else:
            _write_csv(temporary, found, labels)
    images_, dim = found.features.shape
    print(f"wrote {out}: {dim} features of each of {images_} images")
    if out.suffix.lower() == ".npz":
        print(f'next: numpy.load({str(out)!r})["features"], with "labels" and "names"')


def _write_csv(path: Path, found: "levitax.Embedded", labels: list[str]) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label", *(f"feature_{index}" for index in range(found.features.shape[1]))])
        for name, label, row in zip(found.names, labels, found.features.tolist(), strict=True):
            writer.writerow([name, label, *row])
