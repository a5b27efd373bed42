import os
from collections.abc import Sequence
from contextlib import nullcontext
from io import BufferedIOBase

import numpy as np
from jaxtyping import Float, UInt8

from .._checks import as_integers, check_choice
from .._extras import extra, require


IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""The mean of ImageNet's pixels in [0, 1]; red, green and blue."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""The standard deviation of ImageNet's pixels in [0, 1]; red, green and blue."""

_INSTALL = extra("data")


def read_image(
    path: str | os.PathLike[str] | BufferedIOBase, *, channels: int = 3
) -> UInt8[np.ndarray, "height width channels"]:
    """Reads a picture in any format that Pillow knows, as one sees it.

    It is turned upright as its EXIF data say. What is transparent shows white behind it. Grey, palette, CMYK and other
    colours become red, green and blue, or grey if `channels` is 1. 16 bits a channel, and numbers beyond, are brought
    to 8. Of several frames the first is taken.

    **Arguments:**

    - `path`: of the file, or one that is open for reading bytes, such as an `io.BytesIO`.
    - `channels`: 3 for colours, 1 for grey.

    **Returns:** pixels from 0 to 255, `(height, width, channels)`.

    **Raises:** `OSError` if there is no such file, or it is damaged or no picture; `ValueError` for other `channels`;
    `ModuleNotFoundError` without Pillow.
    """
    check_choice("channels", channels, (3, 1))
    pillow = require("PIL.Image", "`levitax.data.read_image`", _INSTALL)
    operations = require("PIL.ImageOps", "`levitax.data.read_image`", _INSTALL)
    try:
        # Through a file of our own: Pillow maps some TIFFs to memory, and turns those wrongly.
        is_path = isinstance(path, str | os.PathLike)
        with open(path, "rb") if is_path else nullcontext(path) as handle, pillow.open(handle) as file:
            image = operations.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                image = pillow.fromarray(_eight_bits(np.asarray(image)))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = pillow.new("RGBA", image.size, "white")
                image = pillow.alpha_composite(white, image)
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    # All that Pillow has been seen to raise for damaged files.
    except (OSError, pillow.DecompressionBombError, SyntaxError, ValueError, TypeError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # Of the file system, which names the file.
        raise OSError(f"`{path}` is damaged, or no picture that Pillow reads: {error}.") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def preprocess(
    image: UInt8[np.ndarray, "old_height old_width channels"],
    image_size: int | Sequence[int] = 224,
    *,
    crop_ratio: float = 0.875,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
) -> Float[np.ndarray, "height width channels"]:
    """Makes a picture into what a LeViT was trained on: resized, cut out of the middle, normalised.

    The defaults are those of the paper's evaluation: the shorter edge to 256 pixels, bicubic, of which the middle
    224x224. timm's are the same but for `crop_ratio=0.9`.

    **Arguments:**

    - `image`: `(old_height, old_width, channels)`, pixels from 0 to 255, as [`levitax.data.read_image`][] gives them.
    - `image_size`: of the result, one number or `(height, width)`.
    - `crop_ratio`: the part of the resized picture that is kept, of the edge that is relatively shorter.
    - `mean`, `std`: of each channel's pixels in [0, 1], or of all; by default ImageNet's, for grey pictures their mean.

    **Returns:** `(height, width, channels)` in float32.

    **Raises:** `TypeError` or `ValueError` for an image of another shape or dtype, a size that is no positive integer,
    and `crop_ratio`, `mean` or `std` out of range; `ModuleNotFoundError` without Pillow, if there is to resize.
    """
    for name, value in (("mean", mean), ("std", std)):
        if np.size(value) not in (1, 3) or (name == "std" and np.min(value) <= 0):
            raise ValueError(f"`{name}` is {value}; expected one number, or three, and above 0 for `std`.")
    pixels = resize_and_crop(image, image_size, crop_ratio=crop_ratio).astype(np.float32) / 255
    if pixels.shape[2] == 1:
        mean, std = float(np.mean(mean)), float(np.mean(std))
    return ((pixels - np.asarray(mean)) / np.asarray(std)).astype(np.float32)


def resize_and_crop(
    image: UInt8[np.ndarray, "old_height old_width channels"],
    image_size: int | Sequence[int] = 224,
    *,
    crop_ratio: float = 0.875,
) -> UInt8[np.ndarray, "height width channels"]:
    """The part of [`levitax.data.preprocess`][] before normalisation, with its arguments."""
    rows, columns = as_integers("image_size", image_size, 2, "height and width")
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"`crop_ratio` is {crop_ratio}; expected a number in (0, 1], where 1 crops nothing off.")
    if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"`image` has shape {image.shape} and dtype {image.dtype}; expected (height, width, 3) or (height, width, "
            "1) in uint8, as `levitax.data.read_image` gives it."
        )
    height, width, _ = image.shape
    # As torchvision rounds: the relatively shorter edge is cut to whole pixels, and the other follows.
    if rows * width >= columns * height:
        resized = int(rows / crop_ratio), int(int(rows / crop_ratio) * width / height)
    else:
        resized = int(int(columns / crop_ratio) * height / width), int(columns / crop_ratio)
    if resized == (height, width):
        pixels = image
    else:
        bicubic = require("PIL.Image", "Resizing pictures", _INSTALL).Resampling.BICUBIC
        pixels = to_array(to_pillow(image).resize(resized[::-1], bicubic))
    top, left = round((resized[0] - rows) / 2), round((resized[1] - columns) / 2)
    return pixels[top : top + rows, left : left + columns]


def to_pillow(image: UInt8[np.ndarray, "height width channels"]):
    """The picture as Pillow has it, grey if there is one channel."""
    pillow = require("PIL.Image", "Changing pictures", _INSTALL)
    return pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def to_array(picture) -> UInt8[np.ndarray, "height width channels"]:
    """The inverse of `to_pillow`."""
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of 16 bits, or of more or of no fixed range, as bytes."""
    finite = np.where(np.isfinite(pixels), pixels, 0)
    largest = float(finite.max())
    full = next((full for full in (1.0, 255.0, 65535.0) if largest <= full), largest)
    if pixels.dtype == np.uint16 or (np.issubdtype(pixels.dtype, np.integer) and full == 1):
        full = max(largest, 65535.0) if pixels.dtype == np.uint16 else 255.0
    return np.clip(np.round(finite.astype(np.float64) * (255 / full)), 0, 255).astype(np.uint8)
