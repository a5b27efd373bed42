import dataclasses
import warnings

from .._config import LeViTConfig, PerStage
from .._variants import PRETRAINED, VARIANTS
from ..data import Preprocessing
from ..data._preprocessing import misfits
from ._layouts import LayoutName
from ._open import open_weights, Source
from ._recognise import differences


class NoPreprocessing(ValueError):
    """Weights that do not say how to preprocess images."""


def load_preprocessing(
    source: Source, *, image_size: PerStage | None = None, revision: str | None = None, prefix: str | None = None
) -> Preprocessing:
    """Reads the preprocessing that weights were trained with, and the names of their classes.

    ```python
    model, state = levitax.load("timm/levit_256.fb_dist_in1k")
    preprocessing = levitax.load_preprocessing("timm/levit_256.fb_dist_in1k")
    ```

    Reads the header of a file that [`levitax.save`][] wrote, timm's `config.json`, or transformers' `config.json` and
    `preprocessor_config.json`. If none of these files describes the preprocessing, `load_preprocessing` warns and
    returns the preprocessing of the published weights in that layout. It does so only for a published variant with
    1,000 classes and 224x224 pixels.

    **Arguments:**

    - `source`: as in [`levitax.load`][].
    - `image_size`: the same as for [`levitax.load`][], if you passed one there.
    - `revision`, `prefix`: as in [`levitax.load`][].

    **Returns:** a [`levitax.data.Preprocessing`][].

    **Raises:** the errors of [`levitax.load`][] for files; `ValueError` if no preprocessing is found and the weights
    are not a published variant, or if the preprocessing does not fit the weights.
    """
    # The preprocessing does not depend on the activation, so a header may lack the function.
    with open_weights(source, revision, image_size, prefix=prefix, activation="hard_swish") as weights:
        config = weights.config
        preprocessing = weights.preprocessing() or _published(weights.layout, config, weights.where)
        if config.num_classes == 0:
            preprocessing = dataclasses.replace(preprocessing, class_names=())
        if wrong := misfits(
            preprocessing,
            image_size=config.image_size,
            channels=config.in_channels,
            num_classes=config.num_classes,
        ):
            raise ValueError(
                f"The preprocessing of {weights.where} has {', '.join(wrong)}. Correct the JSON next to it, or use a "
                "`levitax.data.Preprocessing` of your own."
            )
    return preprocessing if image_size is None else dataclasses.replace(preprocessing, image_size=image_size)


def _published(layout: LayoutName, config: LeViTConfig, where: str) -> Preprocessing:
    published = [LeViTConfig(**VARIANTS[name]) for name in PRETRAINED]
    is_of_imagenet = (config.image_size, config.in_channels, config.num_classes) == ((224, 224), 3, 1000)
    if not is_of_imagenet or all(differences(one, config) for one in published):
        raise NoPreprocessing(
            f"{where} does not say how to preprocess images, and is not a published variant for 1,000 classes and "
            "224x224 pixels. Use the preprocessing of its training, `levitax.data.Preprocessing(image_size=..., "
            "mean=..., std=..., crop_ratio=...)`, and store it with `levitax.save(..., preprocessing=...)`."
        )
    if layout.startswith("timm"):
        preprocessing = Preprocessing(crop_ratio=0.9)
    else:
        preprocessing = Preprocessing(crop_offset="floor" if layout.startswith("transformers") else "round")
    warnings.warn(
        f"{where} does not say how to preprocess images. Using the preprocessing of the published weights: "
        f"ImageNet's mean and standard deviation, `crop_ratio` {preprocessing.crop_ratio}. If it was trained with "
        "another one, use a `levitax.data.Preprocessing` of your own.",
        stacklevel=3,
    )
    return preprocessing
