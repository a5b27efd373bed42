"""Weights with the preprocessing that the options of a command change."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from .._classifier import Classifier
from ..data import Preprocessing
from ..weights import load_preprocessing
from ..weights._preprocessing import NoPreprocessing
from ._errors import usage
from ._options import PreprocessingChanges, sizes_of


def load_classifier(
    weights: str, image_size: Any, changes: PreprocessingChanges | None, *, class_names: Sequence[str] | None = None
) -> Classifier:
    """Loads a classifier with the options of a command."""
    sizes = sizes_of(image_size)
    preprocessing = None
    if changes:
        preprocessing = preprocessing_of(weights, Preprocessing().image_size, changes)
    return Classifier.load(weights, preprocessing=preprocessing, class_names=class_names, **sizes)


def preprocessing_of(weights: str, image_size: tuple[int, int], changes: PreprocessingChanges | None) -> Preprocessing:
    """The preprocessing of weights, for images of a size, with the changes that the options give."""
    options = changes or {}
    try:
        preprocessing = load_preprocessing(weights)
    except NoPreprocessing as error:
        if len(options) < 3:
            raise ValueError(f"{error} Or pass --mean, --std and --crop-ratio.") from None
        preprocessing = Preprocessing()
    with usage():
        return dataclasses.replace(preprocessing, image_size=image_size, **options)
