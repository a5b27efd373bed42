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
"""The mean of ImageNet's pixels, scaled to [0, 1], for red, green and blue."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""The standard deviation of ImageNet's pixels, scaled to [0, 1], for red, green and blue."""

# Images are resized to `image_size` divided by the crop ratio, so this limits them to 20 times that size.
_SMALLEST_RATIO = 0.05

Pixels: TypeAlias = UInt8[Array, "*batch channels"] | Float[Array, "*batch channels"]
NumpyPixels: TypeAlias = UInt8[np.ndarray, "*batch channels"] | Float[np.ndarray, "*batch channels"]

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
"""The name of one of Pillow's resizing filters."""


@dataclasses.dataclass(frozen=True, init=False)
class Preprocessing:
    """Describes how images become the input of a model, and names its classes. Save it with the model's weights.

    Calling it on an image resizes, crops the centre and normalises. The defaults are the paper's evaluation. They
    resize the shorter edge to 256 pixels with a bicubic filter, crop the central 224x224 pixels, and normalise with
    ImageNet's mean and standard deviation.

    ```python
    preprocessing = levitax.load_preprocessing("timm/levit_256.fb_dist_in1k")
    probabilities = jax.nn.softmax(predict(preprocessing("cat.jpg")))
    ```

    A preprocessing is immutable and hashable. Use `dataclasses.replace` to change fields, and `to_dict` and `from_dict`
    to store it as JSON.
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

        - `image_size`: height and width of the result, or one number for both.
        - `crop_ratio`: the fraction of the resized image that the crop keeps, along the relatively shorter edge. The
            paper and transformers use 0.875, timm 0.9. With 1 there is no margin.
        - `interpolation`: the resizing filter; "bicubic" for all published weights.
        - `crop_offset`: how to round the offset of the crop if the margin is odd: "round", with halves to even, as in
            torchvision and timm; or "floor", as in transformers.
        - `mean`, `std`: one number per channel, for pixels scaled to [0, 1]. Their length is the number of channels.
        - `class_names`: the class names in the order of the logits; empty if unknown.

        **Raises:** `TypeError` or `ValueError`, naming the field, if a value is out of range. `mean` must be in [0, 1]
        and `std` in (0, 1]; values for pixels up to 255 are not accepted, nor is NaN.
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
            raise ValueError(f"`mean` is {self.mean} and `std` is {self.std}; expected one number per channel in both.")
        put("class_names", as_class_names("class_names", class_names))

    def __call__(
        self, image: str | os.PathLike[str] | Any | UInt8[np.ndarray, "old_height old_width channels"]
    ) -> Float[np.ndarray, "height width channels"]:
        """**Arguments:**

        - `image`: a path, an open file or a PIL image, as in [`levitax.data.read_image`][]; or pixels from 0 to 255,
            `(old_height, old_width, channels)`.

        **Returns:** `(height, width, channels)` in float32, the input of the model.

        **Raises:** the errors of [`levitax.data.read_image`][] and [`levitax.data.Preprocessing.resize`][].
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(image, channels=self.channels)
        return self.normalise(self.resize(pixels))

    @property
    def channels(self) -> int:
        """The number of channels, which is the length of `mean`."""
        return len(self.mean)

    def resize(
        self, image: UInt8[np.ndarray, "old_height old_width channels"], rng: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "height width channels"]:
        """Resizes an image and crops its centre, but does not normalise it.

        This is the [`levitax.data.Transform`][] for evaluation.

        **Arguments:**

        - `image`: pixels from 0 to 255, `(old_height, old_width, channels)`.
        - `rng`: ignored; other transforms need it.

        **Returns:** `(height, width, channels)` with the height and width of `image_size`.

        **Raises:** `TypeError` unless `image` is an array. `ValueError` if it has another rank, dtype or number of
        channels, or no pixels. `ModuleNotFoundError` without Pillow, unless the image needs no resizing.
        """
        del rng
        if not isinstance(image, np.ndarray):
            raise TypeError(f"`image` is of type `{type(image).__name__}`; expected an array: use `np.asarray(image)`.")
        if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != self.channels or image.size == 0:
            raise ValueError(
                f"`image` has shape {image.shape} and dtype {image.dtype}; expected (height, width, {self.channels}) "
                f"in uint8, such as `levitax.data.read_image(path, channels={self.channels})` returns."
            )
        height, width, _ = image.shape
        rows, columns = self.image_size
        # Round as torchvision does: truncate the relatively shorter edge, and compute the other edge from it.
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
        """Normalises pixels for a model: `(images / 255 - mean) / std`.

        Accepts arrays of NumPy and JAX, also under `jax.jit`. Warns about values outside 0 to 255, and about values up
        to 1 with fractions: such images are probably normalised or divided by 255 already. Under `jax.jit` the values
        are unknown, so there is no warning.

        **Arguments:**

        - `images`: pixels from 0 to 255, `(..., channels)`.

        **Returns:** `(..., channels)` in float32.

        **Raises:** `TypeError` unless `images` is an array; `ValueError` for another number of channels.
        """
        if not hasattr(images, "dtype") or not hasattr(images, "astype"):
            raise TypeError(
                f"`images` is of type `{type(images).__name__}`; expected an array of JAX or NumPy: use "
                "`np.asarray(images)`."
            )
        if images.shape[-1:] != (self.channels,):
            raise ValueError(
                f"`images` has shape {images.shape}; expected {self.channels} channels on the last axis, one for each "
                f"number of `mean`, {self.mean}, and `std`, {self.std}."
            )
        if images.dtype != np.uint8 and not isinstance(images, Tracer):
            _warn_of_range(np.asarray(images, np.float32))
        mean, std = (
            np.asarray(values, np.float32).reshape((1,) * (images.ndim - 1) + (-1,)) for values in (self.mean, self.std)
        )
        return (images.astype(np.float32) / np.float32(255) - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Converts the fields to a dictionary for JSON, with lists instead of tuples."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Makes a preprocessing from the result of `to_dict`.

        **Arguments:**

        - `fields`: all fields, by name.

        **Returns:** the preprocessing.

        **Raises:** `TypeError` or `ValueError` if a field is missing, unknown or out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, Mapping) or fields.keys() != names:
            raise ValueError(f"`fields` is {fields!r}; expected a dictionary with the keys {', '.join(sorted(names))}.")
        return cls(**fields)


def _warn_of_range(pixels: Float[np.ndarray, "..."]) -> None:
    low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 0)
    if not (low >= 0 and high <= 255) or (high <= 1 and (pixels % 1).any()):
        warnings.warn(
            f"`images` have values from {low:.4g} to {high:.4g}; expected pixels from 0 to 255. If they are "
            "already divided by 255 or normalised, pass the original pixels.",
            stacklevel=3,
        )


def check_fits(preprocessing: Preprocessing, *, image_size: tuple[int, int], channels: int, num_classes: int) -> None:
    """Raises unless a preprocessing fits the image size, the channels and the number of classes of a model."""
    if not isinstance(preprocessing, Preprocessing):
        raise TypeError(
            f"`preprocessing` is of type `{type(preprocessing).__name__}`; expected a `levitax.data.Preprocessing`."
        )
    if wrong := misfits(preprocessing, image_size=image_size, channels=channels, num_classes=num_classes):
        raise ValueError(
            f"`preprocessing` has {', '.join(wrong)}. Change it with "
            "`dataclasses.replace(preprocessing, image_size=model.config.image_size, class_names=...)`; `mean` and "
            "`std` need one number for each channel."
        )


def misfits(preprocessing: Preprocessing, *, image_size: tuple[int, int], channels: int, num_classes: int) -> list[str]:
    """Lists the fields in which a preprocessing differs from a model, each with both values."""
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
    """Converts a preprocessing to one channel: averages `mean` and `std` over the colours."""
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    return dataclasses.replace(preprocessing, mean=(mean,), std=(std,))


def to_pillow(image: UInt8[np.ndarray, "height width channels"]):
    """Converts an array to a Pillow image, which is grey if there is one channel."""
    pillow = require("PIL.Image", "Converting images", extra("data"))
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"`image` has {image.shape[-1]} channels; expected 1 or 3, which Pillow can resize.")
    return pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def to_array(image) -> UInt8[np.ndarray, "height width channels"]:
    """Converts a Pillow image back to an array."""
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
            f"`{name}` is {values!r}; expected one number for each channel, {above}, for pixels scaled to [0, 1]. "
            "If the numbers are for pixels up to 255, divide them by 255."
        )
    return numbers


def as_class_names(name: str, names: Any) -> tuple[str, ...]:
    """Converts `names` to a tuple of distinct strings, or raises an error with `name`."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
        raise TypeError(f"`{name}` is {names!r}; expected a sequence of strings, one for each class.")
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise ValueError(f"`{name}` has {', '.join(map(repr, twice[:8]))} twice; expected distinct names.")
    return tuple(names)
