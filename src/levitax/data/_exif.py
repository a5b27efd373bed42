"""Reads the EXIF orientation from the bytes of a file, so that one malformed tag cannot make an image unreadable."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8


_ORIENTATION = 0x0112

# The size of an integer in bytes, by the type of the TIFF field.
_INTEGERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8}

# The directions of rows and columns for the orientations 1 to 4. 5 to 8 repeat them with rows and columns swapped.
_DIRECTIONS = ((1, 1), (1, -1), (-1, -1), (-1, 1))


def split_exif(data: bytes) -> tuple[bytes, bytes]:
    """Separates the EXIF block of a JPEG file, which may be empty, from the rest of the file.

    The rest lacks all metadata that Pillow parses but pixels do not need. From an AVIF file the EXIF block is only
    removed: the decoder applies AVIF's own orientation and ignores that of EXIF.
    """
    if data[4:8] == b"ftyp":
        # Rename the item's type in the index: decoders skip items of unknown type.
        return b"", re.sub(rb"(infe.{8}(?:..)?)Exif", rb"\1none", data, flags=re.DOTALL)
    if data[:2] != b"\xff\xd8":
        return b"", data
    exif, kept, start = b"", [data[:2]], 2
    while data[start : start + 1] == b"\xff" and 0xC0 <= (marker := int.from_bytes(data[start + 1 : start + 2])) < 0xFF:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        segment = data[start:end]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        # Decoding colours needs the segments APP0 and APP14. APP1 may hold XMP, which also stores an orientation.
        elif not 0xE1 <= marker <= 0xEF or marker == 0xEE or segment[4:33] == b"http://ns.adobe.com/xap/1.0/\0":
            kept.append(segment)
        start = end
        if marker == 0xDA:
            break
    return exif, b"".join([*kept, data[start:]])


def find_orientation(exif: bytes, info: Mapping[Any, Any]) -> int:
    """Reads the orientation from an EXIF block or TIFF file, or else from Pillow's metadata; 1 if there is none."""
    found = _in_tiff(exif) or _in_tiff(_bytes(info.get("exif"))) or _in_tiff(_raw_profile(info))
    if not found:
        xmp = _bytes(info.get("xmp")) or _bytes(info.get("XML:com.adobe.xmp"))
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        found = int(match[1]) if match else 1
    return found


def turn_upright(
    pixels: UInt8[np.ndarray, "old_height old_width channels"], orientation: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Applies an EXIF orientation to an image. Ignores orientations outside 1 to 8."""
    if not 1 <= orientation <= 8:
        return pixels
    rows, columns = _DIRECTIONS[(orientation - 1) % 4]
    stored = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    return np.ascontiguousarray(stored[::rows, ::columns])


def _in_tiff(data: bytes) -> int:
    """Reads the orientation from the first directory; 0 if there is none. Numbers past the end of `data` read as 0."""
    data = re.sub(rb"^(Exif\0\0){1,2}", b"", data)
    if data[:2] not in (b"II", b"MM"):
        return 0
    number = lambda start, size: int.from_bytes(data[start : start + size], "little" if data[:1] == b"I" else "big")
    wide = number(2, 2) == 43  # BigTIFF.
    counts, offsets = (8, 8) if wide else (2, 4)
    directory = number(offsets, offsets)
    entry = 4 + 2 * offsets
    start = directory + counts
    for at in range(start, min(start + entry * number(directory, counts), len(data)), entry):
        if number(at, 2) == _ORIENTATION:
            size = _INTEGERS.get(number(at + 2, 2), 0)
            value = at + 4 + offsets
            # If the numbers do not fit into the entry, it holds their offset. Only the first number counts.
            return number(number(value, offsets) if size * number(at + 4, offsets) > offsets else value, size)
    return 0


def _raw_profile(info: Mapping[Any, Any]) -> bytes:
    """Decodes the EXIF block that older versions of ImageMagick wrote into PNG files as text."""
    try:
        return bytes.fromhex("".join(str(info.get("Raw profile type exif", "")).split("\n")[3:]))
    except ValueError:
        return b""


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="replace")
    return value if isinstance(value, bytes) else b""
