import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, get_args, Literal, overload, TypeAlias

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, UInt8

from .._checks import as_choice, as_integers
from .._extras import extra, require
from ._image import read_image


IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""The mean of ImageNet's pixels in [0, 1]; red, green and blue."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""The standard deviation of ImageNet's pixels in [0, 1]; red, green and blue."""

# Images are resized to as many times their size.
_SMALLEST_RATIO = 0.05

Pixels: TypeAlias = UInt8[Array, "*batch channels"] | Float[Array, "*batch channels"]
NumpyPixels: TypeAlias = UInt8[np.ndarray, "*batch channels"] | Float[np.ndarray, "*batch channels"]

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
"""A filter of Pillow."""


@dataclasses.dataclass(frozen=True, init=False)
class Preprocessing:
    """How images become the input of a model, and the names of its classes: what a file of weights must say besides
    them.

    Called on an image, it resizes, crops the centre and normalises. The defaults are those of the paper's evaluation:
    resize the shorter edge to 256 pixels, bicubic; keep the centre of 224x224; ImageNet's mean and standard deviation.

    ```python
    preprocessing = levitax.load_preprocessing("timm/levit_256.fb_dist_in1k")
    probabilities = jax.nn.softmax(predict(preprocessing("cat.jpg")))
    ```

    Immutable and hashable; `dataclasses.replace` makes a changed one, `to_dict` and `from_dict` go to and from JSON.
    """

    image_size: tuple[int, int]
    crop_ratio: float
    interpolation: Interpolation
    crop_offset: Literal["round", "floor"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = (224, 224),
        crop_ratio: float = 0.875,
        interpolation: Interpolation = "bicubic",
        crop_offset: Literal["round", "floor"] = "round",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        class_names: Sequence[str] = (),
    ):
        """**Arguments:**

        - `image_size`: height and width of the result; one number for both.
        - `crop_ratio`: the part of the resized image that is kept, along its relatively shorter edge. 0.875 in the
            paper and in transformers, 0.9 in timm, 1 for no margin.
        - `interpolation`: the filter that resizes, "bicubic" for all published weights.
        - `crop_offset`: where the centre of an odd margin lies: "round" to the nearest pixel, halves to even, as
            torchvision and timm; or "floor", as transformers.
        - `mean`, `std`: of each channel's pixels in [0, 1]. Their number is that of the channels.
        - `class_names`: in the order of the logits; empty if unknown.

        **Raises:** `TypeError` or `ValueError`, naming the field, for what is out of range: `mean` outside [0, 1] or
        `std` outside (0, 1], as of pixels up to 255, or NaN.
        """
        put = lambda name, value: object.__setattr__(self, name, value)
        put("image_size", as_integers("image_size", image_size, 2, "height and width"))
        put("crop_ratio", _checked_ratio(crop_ratio))
        as_choice("interpolation", interpolation, get_args(Interpolation))
        put("interpolation", interpolation)
        as_choice("crop_offset", crop_offset, ("round", "floor"))
        put("crop_offset", crop_offset)
        put("mean", _per_channel("mean", mean))
        put("std", _per_channel("std", std))
        if len(self.mean) != len(self.std):
            raise ValueError(f"`mean` is {self.mean} and `std` {self.std}; expected one number each for every channel.")
        put("class_names", _checked_names(class_names))

    def __call__(
        self, image: str | os.PathLike[str] | Any | UInt8[np.ndarray, "old_height old_width channels"]
    ) -> Float[np.ndarray, "height width channels"]:
        """**Arguments:**

        - `image`: a path, an open file or a PIL image, as [`levitax.data.read_image`][] takes them; or pixels from 0 to
            255, `(old_height, old_width, channels)`.

        **Returns:** `(height, width, channels)` in float32, what a model of this preprocessing takes.

        **Raises:** what [`levitax.data.read_image`][] and [`levitax.data.Preprocessing.resize`][] raise.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image, channels=self.channels)
        return self.normalise(self.resize(pixels))

    @property
    def channels(self) -> int:
        """The number of channels, as many as `mean` has numbers."""
        return len(self.mean)

    def resize(
        self, image: UInt8[np.ndarray, "old_height old_width channels"], rng: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "height width channels"]:
        """Resizes an image and crops its centre, without normalising: a [`levitax.data.Transform`][] for evaluation.

        **Arguments:**

        - `image`: pixels from 0 to 255, `(old_height, old_width, channels)`.
        - `rng`: ignored; for interchange with other transforms.

        **Returns:** `(height, width, channels)`, of `image_size`.

        **Raises:** `TypeError` for what is no array; `ValueError` for an image of another rank, dtype or number of
        channels, or without pixels; `ModuleNotFoundError` without Pillow, unless the image has its size already.
        """
        del rng
        if not isinstance(image, np.ndarray):
            raise TypeError(f"`image` is of type `{type(image).__name__}`; expected an array: use `np.asarray(image)`.")
        if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != self.channels or image.size == 0:
            raise ValueError(
                f"`image` has shape {image.shape} and dtype {image.dtype}; expected (height, width, {self.channels}) "
                f"in uint8, as `levitax.data.read_image(path, channels={self.channels})` gives it."
            )
        height, width, _ = image.shape
        rows, columns = self.image_size
        # As torchvision rounds: the relatively shorter edge is cut to whole pixels, and the other follows.
        if rows * width >= columns * height:
            resized = int(rows / self.crop_ratio), int(int(rows / self.crop_ratio) * width / height)
        else:
            resized = int(int(columns / self.crop_ratio) * height / width), int(columns / self.crop_ratio)
        if resized != (height, width):
            pillow = require("PIL.Image", "Resizing images", extra("data"))
            method = pillow.Resampling[self.interpolation.upper()]
            image = to_array(to_pillow(image).resize(resized[::-1], method))
        offset = round if self.crop_offset == "round" else math.floor
        top, left = offset((resized[0] - rows) / 2), offset((resized[1] - columns) / 2)
        return image[top : top + rows, left : left + columns]

    @overload
    def normalise(self, images: Pixels) -> Float[Array, "*batch channels"]: ...

    @overload
    def normalise(self, images: NumpyPixels) -> Float[np.ndarray, "*batch channels"]: ...

    def normalise(self, images: Pixels | NumpyPixels) -> Float[Array | np.ndarray, "*batch channels"]:
        """Pixels as a model takes them: `(images / 255 - mean) / std`, of NumPy arrays and under `jax.jit`.

        **Arguments:**

        - `images`: pixels from 0 to 255, `(..., channels)`.

        **Returns:** `(..., channels)` in float32.

        **Raises:** `TypeError` for what is no array, `ValueError` for another number of channels. Warns, where values
        can be seen, of values outside 0 to 255 and of fractions up to 1 alone: such images have been normalised or
        divided by 255 before.
        """
        if not hasattr(images, "dtype") or not hasattr(images, "astype"):
            raise TypeError(
                f"`images` are of type `{type(images).__name__}`; expected an array of JAX or NumPy: use "
                "`np.asarray(images)`."
            )
        if images.shape[-1:] != (self.channels,):
            raise ValueError(
                f"`images` has shape {images.shape}; expected {self.channels} channels on the last axis, as `mean` "
                f"and `std` have numbers: {self.mean}, {self.std}."
            )
        if images.dtype != np.uint8 and not isinstance(images, Tracer):
            _warn_of_range(np.asarray(images, np.float32))
        mean, std = (
            np.asarray(values, np.float32).reshape((1,) * (images.ndim - 1) + (-1,)) for values in (self.mean, self.std)
        )
        return (images.astype(np.float32) / np.float32(255) - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """The fields, with lists in place of tuples, as JSON has them."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`.

        **Arguments:**

        - `fields`: all of them, by name.

        **Returns:** the preprocessing.

        **Raises:** `TypeError` or `ValueError` for missing, unknown or wrong fields.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping) or fields.keys() != names:
            raise ValueError(f"`fields` is {fields!r}; expected a dictionary of {', '.join(sorted(names))}.")
        return cls(**fields)


def _warn_of_range(pixels: Float[np.ndarray, "..."]) -> None:
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if not (low >= 0 and high <= 255) or (high <= 1 and (pixels % 1).any()):
        warnings.warn(
            f"`images` have values from {low:.4g} to {high:.4g}; expected pixels from 0 to 255. If they have been "
            "divided by 255 or normalised, pass them as they were before.",
            stacklevel=3,
        )


def check_fits(preprocessing: Preprocessing, *, image_size: tuple[int, int], channels: int, num_classes: int) -> None:
    """Raises unless a preprocessing gives what a model of these sizes takes, with as many class names as classes."""
    if not isinstance(preprocessing, Preprocessing):
        raise TypeError(
            f"`preprocessing` is of type `{type(preprocessing).__name__}`; expected a `levitax.data.Preprocessing`."
        )
    if wrong := misfits(preprocessing, image_size=image_size, channels=channels, num_classes=num_classes):
        raise ValueError(
            f"`preprocessing` has {', '.join(wrong)}. Give it the model's with "
            "`dataclasses.replace(preprocessing, image_size=model.config.image_size, class_names=...)`; `mean` and "
            "`std` have one number for each channel."
        )


def misfits(preprocessing: Preprocessing, *, image_size: tuple[int, int], channels: int, num_classes: int) -> list[str]:
    """What a preprocessing and a model of these sizes differ in, each with both values."""
    return [
        f"`{name}` {ours} and the model {theirs}"
        for name, ours, theirs in (
            ("image_size", preprocessing.image_size, image_size),
            ("channels", preprocessing.channels, channels),
            ("class_names", len(preprocessing.class_names) or num_classes, num_classes),
        )
        if ours != theirs
    ]


def grey(preprocessing: Preprocessing) -> Preprocessing:
    """The same for one channel: the mean of the colours' numbers."""
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    return dataclasses.replace(preprocessing, mean=(mean,), std=(std,))


def to_pillow(image: UInt8[np.ndarray, "height width channels"]):
    """The image as Pillow has it, grey if there is one channel."""
    pillow = require("PIL.Image", "Changing images", extra("data"))
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"`image` has {image.shape[-1]} channels; Pillow resizes images of 1 and of 3.")
    return pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def to_array(image) -> UInt8[np.ndarray, "height width channels"]:
    """The inverse of `to_pillow`."""
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _checked_ratio(value: Any) -> float:
    ratio = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not _SMALLEST_RATIO <= ratio <= 1:
        raise ValueError(
            f"`crop_ratio` is {value!r}; expected a number from {_SMALLEST_RATIO} to 1, where 1 leaves no margin."
        )
    return ratio


def _per_channel(name: str, values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    fits = all(0 < value <= 1 if name == "std" else 0 <= value <= 1 for value in numbers)
    if not numbers or not fits:
        above = "above 0 and up to 1" if name == "std" else "from 0 to 1"
        raise ValueError(
            f"`{name}` is {values!r}; expected one number for each channel, {above}, of pixels scaled to [0, 1]. "
            "Divide numbers of pixels up to 255 by 255."
        )
    return numbers


def _checked_names(names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`class_names` is {names!r}; expected a sequence of strings, one for each class.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"`class_names` has {', '.join(map(repr, twice[:8]))} twice; expected distinct names.")
    return tuple(names)
