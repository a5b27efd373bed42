import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from .._array_checks import as_number
from .._checks import as_crop_scale, as_integers
from .._extras import extra, require
from ._preprocessing import IMAGENET_MEAN, to_array, to_pillow
from ._rand_augment import rand_augment


@runtime_checkable
class Transform(Protocol):
    """Brings images of any size to one size, in uint8. The accelerator normalises them later.

    Use [`levitax.data.TrainTransform`][] for training and [`levitax.data.Preprocessing.resize`][] for evaluation.
    """

    def __call__(
        self, image: UInt8[np.ndarray, "old_height old_width channels"], rng: np.random.Generator, /
    ) -> UInt8[np.ndarray, "height width channels"]:
        """**Arguments:**

        - `image`: one image, `(old_height, old_width, channels)`, pixels from 0 to 255.
        - `rng`: the source of all random numbers.

        **Returns:** `(height, width, channels)`, the same shape for every image.
        """
        ...


@dataclasses.dataclass(frozen=True, init=False)
class TrainTransform:
    """The paper's augmentation of single images: random crop, horizontal flip and RandAugment."""

    image_size: tuple[int, int]
    crop_scale: tuple[float, float] | None
    flip_probability: float
    rand_augment: float

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = (224, 224),
        crop_scale: Sequence[float] | None = (0.08, 1.0),
        flip_probability: float = 0.5,
        rand_augment: float = 9.0,
    ):
        """**Arguments:**

        - `image_size`: height and width of the result, or one number for both.
        - `crop_scale`: smallest and largest area of the crop, as a fraction of the image area. The width of the crop is
            3/4 to 4/3 of its height. `None` uses the whole image. A bicubic filter resizes the result.
        - `flip_probability`: the probability of a horizontal flip.
        - `rand_augment`: the magnitude of RandAugment, from 0 to 10; 0 turns it off.

        **Raises:** `TypeError` or `ValueError`, naming the field, if a value is out of range.
        """
        put = lambda name, value: object.__setattr__(self, name, value)
        put("image_size", as_integers("image_size", image_size, 2, "height and width"))
        put("crop_scale", as_crop_scale(crop_scale))
        put("flip_probability", as_number("flip_probability", flip_probability, 0, 1))
        put("rand_augment", as_number("rand_augment", rand_augment, 0, 10))

    def __call__(
        self, image: UInt8[np.ndarray, "old_height old_width channels"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width channels"]:
        """**Arguments:**

        - `image`: one image, `(old_height, old_width, channels)`, pixels from 0 to 255.
        - `rng`: the source of all random numbers.

        **Returns:** `(height, width, channels)` with the height and width of `image_size`.

        **Raises:** `ModuleNotFoundError` without Pillow, if the image needs resizing or RandAugment.
        """
        if self.crop_scale is not None:
            height, width, _ = image.shape
            top, left, rows, columns = random_crop(height, width, self.crop_scale, rng)
            image = image[top : top + rows, left : left + columns]
        flips = rng.random() < self.flip_probability
        if image.shape[:2] == self.image_size and not self.rand_augment:
            return np.ascontiguousarray(image[:, ::-1] if flips else image)
        pillow = require("PIL.Image", "Augmenting images", extra("data"))
        pil_image = to_pillow(np.ascontiguousarray(image)).resize(self.image_size[::-1], pillow.Resampling.BICUBIC)
        if flips:
            pil_image = pil_image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment:
            mean = [round(255 * value) for value in IMAGENET_MEAN]
            fill = (mean[0], mean[1], mean[2]) if pil_image.mode == "RGB" else round(sum(mean) / 3)
            pil_image = rand_augment(pil_image, rng, magnitude=self.rand_augment, fill=fill)
        return to_array(pil_image)


def random_crop(
    height: int, width: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws the top, left, height and width of a random crop, as torchvision does.

    If ten draws do not fit, falls back to the largest centre crop within the aspect-ratio limits.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return int(top), int(left), rows, columns
    rows, columns = height, width
    if width / height < low:
        rows = round(width / low)
    elif width / height > high:
        columns = round(height * high)
    return (height - rows) // 2, (width - columns) // 2, rows, columns
