import os
from contextlib import nullcontext
from io import BufferedIOBase

import numpy as np
from jaxtyping import UInt8

from .._checks import check_choice
from .._extras import extra, require


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


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of 16 bits, or of more or of no fixed range, as bytes."""
    finite = np.where(np.isfinite(pixels), pixels, 0)
    largest = float(finite.max())
    full = next((full for full in (1.0, 255.0, 65535.0) if largest <= full), largest)
    if pixels.dtype == np.uint16 or (np.issubdtype(pixels.dtype, np.integer) and full == 1):
        full = max(largest, 65535.0) if pixels.dtype == np.uint16 else 255.0
    return np.clip(np.round(finite.astype(np.float64) * (255 / full)), 0, 255).astype(np.uint8)
