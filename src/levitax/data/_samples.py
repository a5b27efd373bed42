"""Converts samples other than unsigned 8-bit ones, which Pillow returns as they are stored."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8


# TIFF tags, and some of their values.
_BITS, _PHOTOMETRIC, _PLANES, _EXTRA, _FORMAT, _SUBSAMPLING = 258, 262, 284, 338, 339, 530
_WHITE_IS_ZERO, _YCBCR = 0, 6
_SEPARATE = 2
_SIGNED = 2


@dataclasses.dataclass(frozen=True)
class Samples:
    """How the samples of a grey image are stored.

    **Attributes:**

    - `bits`: the number of bits in use. With 32, the range is not declared.
    - `signed`: whether integers are signed.
    - `inverted`: whether 0 is white.
    - `transparent`: the grey value that is transparent, if any.
    """

    bits: int = 32
    signed: bool = False
    inverted: bool = False
    transparent: int | None = None

    def are_wide(self, mode: str) -> bool:
        """Whether an image of this Pillow mode needs `eight_bits`."""
        return mode.startswith(("I", "F")) or (self.signed and mode == "L")

    def eight_bits(self, pixels: Shaped[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
        """Scales black to 0 and white to 255. `levitax.data.read_image` documents the ranges.

        **Raises:** `OSError` for samples that are negative or not finite.
        """
        order, kind, size = pixels.dtype.str[0], pixels.dtype.kind, pixels.dtype.itemsize
        if kind in "iu" and 8 * size == self.bits:
            # Pillow has no modes for unsigned 32-bit or signed 8-bit and 16-bit samples.
            pixels = pixels.view(f"{order}{'i' if self.signed else 'u'}{size}")
        if not np.isfinite(pixels).all():
            raise OSError("it has samples that are not finite and so have no brightness; replace them")
        values = pixels.astype(np.float32)
        if (lowest := values.min()) < 0:
            raise OSError(f"it has samples down to {lowest:g}, but negative samples have no brightness; shift them up")
        white = 2.0 ** (self.bits - self.signed) - 1
        if self.bits == 32:
            largest, usual = float(values.max()), (1.0, 255.0, 65535.0) if kind == "f" else (255.0, 65535.0)
            white = next((white for white in usual if largest <= white), largest)
        if self.inverted:
            values = white - values
        scaled = np.clip(np.round(values * (255 / white)), 0, 255).astype(np.uint8)
        return scaled if self.transparent is None else np.where(pixels == self.transparent, np.uint8(255), scaled)


def describe_samples(file: Any, data: bytes) -> Samples:
    """Describes the samples of a Pillow image. `data` is the content of its file, or empty if the image is loaded.

    **Raises:** `OSError` for a TIFF file that Pillow is known to misread.
    """
    if hasattr(file, "tag_v2"):
        tags = file.tag_v2
        _check_layout(file, tags)
        signed = tags.get(_FORMAT, (1,))[0] == _SIGNED
        inverted = tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
        return Samples(tags.get(_BITS, (1,))[0], signed, inverted)
    transparent = file.info.get("transparency")
    if data and file.format == "PNG" and transparent is not None and file.mode in ("L", "RGB"):
        # The file stores this value at its own bit depth, but Pillow compares it with 8-bit samples.
        bits = data[24]
        file.info["transparency"] = (
            tuple(value >> max(bits - 8, 0) for value in transparent)
            if file.mode == "RGB"
            else transparent % 2**bits * (255 // (2**bits - 1))
        )
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        return Samples(16, signed=file.format == "FITS", transparent=transparent)
    return Samples()


def _check_layout(file: Any, tags: Any) -> None:
    """Raises `OSError` for layouts that Pillow 13 misreads."""
    for codec, _, _, (raw_mode, *_) in file.tile[:1]:
        by_libtiff = codec == "libtiff"
        misread = None
        if by_libtiff and raw_mode.endswith(("BS", "BF")):
            # libtiff has already swapped the bytes, but Pillow swaps them again.
            misread = "compressed big-endian signed or float samples"
        elif not by_libtiff and tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1):
            misread = "uncompressed YCbCr and subsampled chroma"
        elif tags.get(_PLANES) == _SEPARATE and (
            file.mode in ("LAB", "LA", "La", "PA")
            or (not by_libtiff and tags.get(_BITS, (1,))[0] > 8)
            or (by_libtiff and file.mode == "RGBA" and _EXTRA not in tags)
        ):
            misread = f"{file.mode} in separate planes"
        if misread:
            raise OSError(f"Pillow misreads TIFF files with {misread}; save the image as PNG, for example")
