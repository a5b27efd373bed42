import io
import os
import threading
import warnings
from collections.abc import Sequence
from io import BufferedIOBase
from types import ModuleType

import numpy as np
from jaxtyping import Float, UInt8

from .._checks import as_integers, check_choice
from .._extras import extra, require
from ._exif import find_orientation, split_exif, turn_upright
from ._samples import describe_samples


IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""The mean of ImageNet's pixels in [0, 1]; red, green and blue."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""The standard deviation of ImageNet's pixels in [0, 1]; red, green and blue."""

_INSTALL = extra("data")

# Filters of warnings belong to the process: threads that change them at once would leave them changed.
_ONE_AT_A_TIME = threading.Lock()


def read_image(
    path: str | os.PathLike[str] | BufferedIOBase, *, channels: int = 3
) -> UInt8[np.ndarray, "height width channels"]:
    """Reads an image in any format that Pillow reads.

    Applies the EXIF orientation, composites transparency over white, and takes the first of several frames. Grey,
    palette, CMYK and other colours become RGB, or grey if `channels` is 1. Wider samples are scaled to 8 bits:

    - Unsigned samples of up to 16 bits: from the range that the format declares.
    - Signed samples of 8 or 16 bits: from 0 to the largest number of the type.
    - Floats and 32-bit integers declare no range. White is the first of 1 (floats only), 255 and 65535 that no sample
        exceeds, or else the largest sample. A dark image may so become brighter than its neighbours: convert such data
        to 8 or 16 bits first.

    Pillow's warnings stay warnings under `-W error`, except for `PIL.Image.DecompressionBombWarning`.

    **Arguments:**

    - `path`: of the file, or a file opened for reading bytes, such as an `io.BytesIO`, which is read from its start.
    - `channels`: 3 for colours, 1 for grey.

    **Returns:** pixels from 0 to 255, `(height, width, channels)`.

    **Raises:** `OSError` with the name and the reason if the file cannot be opened, is corrupt or not an image, has
    negative samples, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows; `ValueError` for other `channels`;
    `ModuleNotFoundError` without Pillow.
    """
    check_choice("channels", channels, (3, 1))
    pillow = require("PIL.Image", "`levitax.data.read_image`", _INSTALL)
    data = _read_bytes(path)
    try:
        try:
            return _decode(pillow, data, channels)
        # Pillow warns of metadata; with an error filter, that ends the decoding of a sound image.
        except (UserWarning, DeprecationWarning):
            with _ONE_AT_A_TIME, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                return _decode(pillow, data, channels)
    except Exception as error:  # Decoders and plugins raise anything.
        raise OSError(f"{_name(path)} cannot be read as an image: {_reason(pillow, error, data)}.") from error


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


def _read_bytes(path: str | os.PathLike[str] | BufferedIOBase) -> bytes:
    """The whole file, so that errors from here on are the decoder's and not the system's."""
    if isinstance(path, BufferedIOBase):
        if path.seekable():
            path.seek(0)
        return path.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        # An error of reading, unlike one of opening, does not name the file.
        error.filename = error.filename or os.fspath(path)
        raise


def _decode(pillow: ModuleType, data: bytes, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    exif, data = split_exif(data)
    # From memory: Pillow maps files to memory by their name, and turns some TIFF files wrongly then.
    with pillow.open(io.BytesIO(data)) as file:
        is_tiff = hasattr(file, "tag_v2")
        if is_tiff:
            # There, Pillow parses all of EXIF, and turns what it has loaded.
            file.load_end = lambda: None
        samples = describe_samples(file, data)
        file.load()
        # The size of a loaded TIFF file is that of the image turned upright; a copy has the size of its pixels.
        image = file.copy() if is_tiff else file
        if 0 in image.size:
            raise OSError("it has no pixels")
        orientation = find_orientation(data if is_tiff else exif, image.info)
        if samples.are_wide(image.mode):
            image = pillow.fromarray(samples.eight_bits(np.asarray(image)))
        elif image.mode == "LAB":
            image = image.convert("RGB")
        elif image.mode == "La":
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return turn_upright(pixels.reshape(*pixels.shape[:2], channels), orientation)


def _name(path: str | os.PathLike[str] | BufferedIOBase) -> str:
    name = getattr(path, "name", None) if isinstance(path, BufferedIOBase) else path
    return f"`{os.fspath(name)}`" if isinstance(name, str | os.PathLike) else "The file"


def _reason(pillow: ModuleType, error: Exception, data: bytes) -> str:
    """Why a file could not be decoded, in a form that follows a colon."""
    text = str(error).rstrip(".")
    if isinstance(error, pillow.DecompressionBombError | pillow.DecompressionBombWarning):
        return f"{text}. If you trust it, raise Pillow's limit before: `PIL.Image.MAX_IMAGE_PIXELS = None` lifts it"
    if not isinstance(error, pillow.UnidentifiedImageError):
        kind = type(error)
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        return text if isinstance(error, OSError) and text else f"{name}: {text}".rstrip(": ")
    start = data[:256].lstrip().lower()
    if not data:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to an image; run `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, such as a server sends in place of an image; download the image again"
    return f"its header is corrupt, or its format not one that Pillow reads; it begins with {data[:16]!r}"
