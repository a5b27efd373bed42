import dataclasses
import math
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from .._extras import extra, require
from ._image import IMAGENET_MEAN, resize_and_crop, to_array, to_pillow
from ._rand_augment import rand_augment


@runtime_checkable
class Transform(Protocol):
    """Brings pictures of any size to one, in bytes; normalisation is left to the accelerator."""

    def __call__(
        self, image: UInt8[np.ndarray, "old_height old_width channels"], rng: np.random.Generator, /
    ) -> UInt8[np.ndarray, "height width channels"]:
        """**Arguments:**

        - `image`: one picture, `(old_height, old_width, channels)`, pixels from 0 to 255.
        - `rng`: draws whatever is random.

        **Returns:** `(height, width, channels)`, of the same size for every picture.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """The paper's augmentation of single pictures: a random crop, mirrored, RandAugment.

    **Arguments:**

    - `image_size`: height and width of the result.
    - `crop_scale`: smallest and largest area of the crop over that of the picture; its width is 3/4 to 4/3 of its
        height. It is resized with a bicubic filter. `None` takes all of the picture.
    - `flip_probability`: of mirroring left and right.
    - `rand_augment`: the magnitude, from 0 to 10; 0 for none.
    """

    image_size: tuple[int, int] = (224, 224)
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    flip_probability: float = 0.5
    rand_augment: float = 9.0

    def __call__(
        self, image: UInt8[np.ndarray, "old_height old_width channels"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width channels"]:
        """**Arguments:**

        - `image`: one picture, `(old_height, old_width, channels)`, pixels from 0 to 255.
        - `rng`: draws everything.

        **Returns:** `(height, width, channels)`, of `image_size`.

        **Raises:** `ModuleNotFoundError` without Pillow, if there is more to do than to crop and mirror.
        """
        if self.crop_scale is not None:
            height, width, _ = image.shape
            top, left, rows, columns = random_crop(height, width, self.crop_scale, rng)
            image = image[top : top + rows, left : left + columns]
        flips = rng.random() < self.flip_probability
        if image.shape[:2] == self.image_size and not self.rand_augment:
            return np.ascontiguousarray(image[:, ::-1] if flips else image)
        pillow = require("PIL.Image", "Augmenting pictures", extra("data"))
        picture = to_pillow(np.ascontiguousarray(image)).resize(self.image_size[::-1], pillow.Resampling.BICUBIC)
        if flips:
            picture = picture.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment:
            mean = [round(255 * value) for value in IMAGENET_MEAN]
            fill = (mean[0], mean[1], mean[2]) if picture.mode == "RGB" else round(sum(mean) / 3)
            picture = rand_augment(picture, rng, magnitude=self.rand_augment, fill=fill)
        return to_array(picture)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """[`levitax.data.preprocess`][] without the normalisation.

    **Arguments:**

    - `image_size`: height and width of the result.
    - `crop_ratio`: 0.875 in the paper and in transformers, 0.9 in timm.
    """

    image_size: tuple[int, int] = (224, 224)
    crop_ratio: float = 0.875

    def __call__(
        self, image: UInt8[np.ndarray, "old_height old_width channels"], rng: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "height width channels"]:
        """**Arguments:**

        - `image`: one picture, `(old_height, old_width, channels)`, pixels from 0 to 255.
        - `rng`: ignored; for interchange with other transforms.

        **Returns:** `(height, width, channels)`, of `image_size`.

        **Raises:** what [`levitax.data.preprocess`][] raises.
        """
        del rng
        return resize_and_crop(image, self.image_size, crop_ratio=self.crop_ratio)


def random_crop(
    height: int, width: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a picture, as torchvision draws it.

    Where ten draws have not given one that fits, it is the middle, as much of it as the limits of the shape allow.
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
