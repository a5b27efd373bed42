"""Image files with the samples and tags of a test, including those that Pillow would not write."""

import struct
import zlib

import numpy as np


def tiff(
    samples,
    dtype,
    *,
    photometric=1,
    order="<",
    bits=None,
    separate=False,
    extra=(),
    colours=(),
    deflated=False,
    subsampling=(),
    more=(),
):
    """Returns a TIFF file with unchanged samples `(height, width, channels)` and `more` entries in its directory."""
    samples = samples.astype(dtype)
    height, width, channels = samples.shape
    bits = bits or 8 * samples.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]

    def strip(part):
        if bits in (8, 16, 32):
            data = part.astype(part.dtype.newbyteorder(order)).tobytes()
        else:
            data = part.astype(">u2").view(np.uint8).reshape(*part.shape, 2)
            data = np.packbits(np.unpackbits(data, axis=-1)[..., -bits:].reshape(height, -1), axis=1).tobytes()
        return zlib.compress(data) if deflated else data

    strips = [strip(part) for part in np.split(samples, channels, -1)] if separate else [strip(samples)]
    starts = 8 + np.cumsum([0, *map(len, strips)])
    fields = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [8 if deflated else 1]),
        262: ("H", [photometric]),
        273: ("I", starts[:-1].tolist()),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [1 + separate]),
        320: ("H", list(colours)),
        338: ("H", list(extra)),
        339: ("H", [kind] * channels),
        530: ("H", list(subsampling)),
    }
    entries, values, start = [], [], int(starts[-1])
    for tag, (form, numbers) in fields.items():
        if numbers:
            value = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
            if len(value) > 4:
                values.append(value)
                start, value = start + len(value), struct.pack(f"{order}I", start)
            entries.append(
                struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[form], len(numbers)) + value.ljust(4, b"\0")
            )
    entries += more
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    return b"".join([header, *strips, *values, struct.pack(f"{order}H", len(entries)), *entries, bytes(4)])


def png(samples, bits, colour_type, *, transparent=()):
    """Returns a PNG file with unchanged samples `(height, width, channels)`."""
    height, width, _ = samples.shape
    wide = samples.astype(">u2").view(np.uint8).reshape(*samples.shape, 2)
    rows = np.packbits(np.unpackbits(wide, axis=-1)[..., -bits:].reshape(height, -1), axis=1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0),
        b"tRNS": struct.pack(f">{len(transparent)}H", *transparent),
        b"IDAT": zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()),
        b"IEND": b"",
    }
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, value in chunks.items():
        if value or name != b"tRNS":
            parts.append(struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value)))
    return b"".join(parts)
