import io
import os
import threading
import warnings
from functools import partial
from io import BufferedIOBase
from types import ModuleType
from typing import Any, cast, TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from .._checks import as_choice
from .._extras import extra, require
from .._files import as_path
from ._exif import find_orientation, split_exif, turn_upright
from ._samples import describe_samples, Samples


if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
else:
    # Pillow is optional, so it is imported only when an image is read.
    PillowImage = Any

_INSTALL = extra("data")

# Warning filters are global to the process: threads that change them at the same time could leave them changed.
_FILTERS_LOCK = threading.Lock()


def read_image(
    path: str | os.PathLike[str] | BufferedIOBase | PillowImage, *, channels: int = 3
) -> UInt8[np.ndarray, "height width channels"]:
    """Reads an image in any format that Pillow can read.

    Applies the EXIF orientation and composites transparency over white. Reads only the first of several frames.
    Converts grey, palette, CMYK and other colours to RGB, or to grey if `channels` is 1. Scales other samples to
    unsigned 8 bits:

    - Unsigned samples of up to 16 bits are scaled from the range that the format declares.
    - Signed samples of 8 or 16 bits are scaled from the range between 0 and the maximum of the type.
    - Floats and 32-bit integers have no declared range. White is the smallest of 1 (floats only), 255 and 65535 that no
        sample exceeds. If a sample exceeds 65535, white is the largest sample. A dark image can therefore come out
        brighter than similar images: convert such data to 8 or 16 bits first.

    Under `-W error`, Pillow's warnings do not stop an image from being read. The exception is
    `PIL.Image.DecompressionBombWarning`.

    **Arguments:**

    - `path`: a path; a file opened for reading bytes, such as an `io.BytesIO`, which is read from its start; or a
        `PIL.Image.Image`.
    - `channels`: 3 for colour, 1 for grey.

    **Returns:** pixels from 0 to 255, `(height, width, channels)`.

    **Raises:** `OSError`, with the name of the file and the reason, if the file cannot be opened, is corrupt or is not
    an image; also if it has negative or non-finite samples, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows.
    `ValueError` if `channels` is not 1 or 3, or if `path` is a URL. `TypeError` if `path` is of another type.
    `ModuleNotFoundError` without Pillow.
    """
    as_choice("channels", channels, (3, 1))
    pillow = require("PIL.Image", "`levitax.data.read_image`", _INSTALL)
    if isinstance(path, pillow.Image):
        data, decode = b"", partial(_convert, pillow, cast(PillowImage, path), channels)
    else:
        path = cast(str | os.PathLike[str] | BufferedIOBase, path)
        data = read_bytes(path)
        decode = partial(_decode, pillow, data, channels)
    try:
        try:
            return decode()
        # Pillow warns about metadata. An error filter turns that into an exception, although the image is intact.
        except (UserWarning, DeprecationWarning):
            with _FILTERS_LOCK, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                return decode()
    except Exception as error:  # Decoders and plugins raise exceptions of any type.
        raise OSError(f"{_name(path)} cannot be read as an image: {_reason(pillow, error, data)}.") from error


def read_bytes(path: str | os.PathLike[str] | BufferedIOBase) -> bytes:
    """Reads the whole file, from its start, so that all later errors come from the decoder and not from the system."""
    if isinstance(path, BufferedIOBase):
        if path.seekable():
            path.seek(0)
        return path.read()
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"`path` is of type `{type(path).__name__}`; expected a path, a file opened for reading bytes, or a PIL "
            "image. For another kind of file, pass `io.BytesIO(file.read())`; for an array, pass "
            "`PIL.Image.fromarray(array)`."
        )
    path = as_path("path", path)
    try:
        return path.read_bytes()
    except OSError as error:
        # An error while reading, unlike one while opening, does not name the file.
        error.filename = error.filename or str(path)
        raise


def _convert(pillow: ModuleType, image: PillowImage, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Converts a Pillow image to pixels. If it is not loaded yet, decodes its file, which holds more information."""
    file = getattr(image, "fp", None)
    if file is not None and getattr(image, "tile", None) and image.tell() == 0:
        position = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(position)
        return _decode(pillow, data, channels)
    image.load()
    return _pixels(pillow, image, channels, describe_samples(image, b""), find_orientation(b"", image.info))


def _decode(pillow: ModuleType, data: bytes, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    exif, data = split_exif(data)
    # Decode from bytes: given a path, Pillow maps the file into memory and then rotates some TIFF files wrongly.
    with pillow.open(io.BytesIO(data)) as file:
        is_tiff = hasattr(file, "tag_v2")
        if is_tiff:
            # Otherwise Pillow parses all of EXIF here and rotates the loaded image.
            file.load_end = lambda: None
        samples = describe_samples(file, data)
        file.load()
        # A loaded TIFF file reports its size after rotation. A copy reports the size of the stored pixels.
        image = file.copy() if is_tiff else file
        if 0 in image.size:
            raise OSError("it has no pixels")
        return _pixels(pillow, image, channels, samples, find_orientation(data if is_tiff else exif, image.info))


def _pixels(
    pillow: ModuleType, image: PillowImage, channels: int, samples: Samples, orientation: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Converts a loaded image to 8-bit pixels, composites it over white, and turns it upright."""
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


def _name(path: Any) -> str:
    name = getattr(path, "name", None) if isinstance(path, BufferedIOBase) else path
    return f"`{os.fspath(name)}`" if isinstance(name, str | os.PathLike) else "The file"


def _reason(pillow: ModuleType, error: Exception, data: bytes) -> str:
    """The reason why a file could not be decoded, worded to follow a colon."""
    text = str(error).rstrip(".")
    if isinstance(error, pillow.DecompressionBombError | pillow.DecompressionBombWarning):
        return f"{text}. If you trust the file, remove Pillow's limit first: `PIL.Image.MAX_IMAGE_PIXELS = None`"
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
        return "it is an HTML page, which a server may send instead of an image; download the image again"
    return f"its header is corrupt, or Pillow does not read its format; it begins with {data[:16]!r}"
