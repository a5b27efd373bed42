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
    # Imported only where images are read.
    PillowImage = Any

_INSTALL = extra("data")

# Filters of warnings belong to the process: threads that change them at once would leave them changed.
_ONE_AT_A_TIME = threading.Lock()


def read_image(
    path: str | os.PathLike[str] | BufferedIOBase | PillowImage, *, channels: int = 3
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

    - `path`: of the file; or a file opened for reading bytes, such as an `io.BytesIO`, which is read from its start; or
        a `PIL.Image.Image`.
    - `channels`: 3 for colours, 1 for grey.

    **Returns:** pixels from 0 to 255, `(height, width, channels)`.

    **Raises:** `OSError` with the name and the reason if the file cannot be opened, is corrupt or not an image, has
    samples that are negative or not finite, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows; `ValueError`
    for other `channels` and for a URL, `TypeError` for what is none of these; `ModuleNotFoundError` without Pillow.
    """
    as_choice("channels", channels, (3, 1))
    pillow = require("PIL.Image", "`levitax.data.read_image`", _INSTALL)
    if isinstance(path, pillow.Image):
        data, decode = b"", partial(_convert, pillow, cast(PillowImage, path), channels)
    else:
        path = cast(str | os.PathLike[str] | BufferedIOBase, path)
        data = _read_bytes(path)
        decode = partial(_decode, pillow, data, channels)
    try:
        try:
            return decode()
        # Pillow warns of metadata; with an error filter, that ends the decoding of a sound image.
        except (UserWarning, DeprecationWarning):
            with _ONE_AT_A_TIME, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                return decode()
    except Exception as error:  # Decoders and plugins raise anything.
        raise OSError(f"{_name(path)} cannot be read as an image: {_reason(pillow, error, data)}.") from error


def _read_bytes(path: str | os.PathLike[str] | BufferedIOBase) -> bytes:
    """The whole file, so that errors from here on are the decoder's and not the system's."""
    if isinstance(path, BufferedIOBase):
        if path.seekable():
            path.seek(0)
        return path.read()
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"`path` is of type `{type(path).__name__}`; expected a path, a file opened for reading bytes, or a PIL "
            "image. Of another file pass `io.BytesIO(file.read())`, and pixels to `PIL.Image.fromarray`."
        )
    path = as_path("path", path)
    try:
        return path.read_bytes()
    except OSError as error:
        # An error of reading, unlike one of opening, does not name the file.
        error.filename = error.filename or str(path)
        raise


def _convert(pillow: ModuleType, image: PillowImage, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of an image of Pillow. One that is not loaded yet is read from its file, which says more."""
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
        return _pixels(pillow, image, channels, samples, find_orientation(data if is_tiff else exif, image.info))


def _pixels(
    pillow: ModuleType, image: PillowImage, channels: int, samples: Samples, orientation: int
) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of a loaded image, in 8 bits, over white and upright."""
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
