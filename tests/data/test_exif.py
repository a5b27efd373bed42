"""Images with odd or corrupt EXIF are read, and turned upright if their orientation can be read."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from levitax.data import read_image

from .stored import tiff


PIXELS = np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)

# How a viewer turns the image, in the order of the orientations.
TURNS = (
    lambda x: x,
    lambda x: x[:, ::-1],
    lambda x: x[::-1, ::-1],
    lambda x: x[::-1],
    lambda x: x.swapaxes(0, 1),
    lambda x: np.rot90(x, -1),
    lambda x: x[::-1, ::-1].swapaxes(0, 1),
    lambda x: np.rot90(x),
)
ORIENTATION, UNIT, RESOLUTION = 0x0112, 0x0128, 0x011A


def entry(tag, kind, count, value, order="<"):
    return struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")


def turned(orientation=6, kind="H", order="<"):
    value = struct.pack(order + kind, orientation)
    return entry(ORIENTATION, {"B": 1, "H": 3, "I": 4}[kind], 1, value, order)


def block(*entries, order="<", count=None, start=8):
    """Returns an EXIF block with unchanged entries."""
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    number = struct.pack(f"{order}H", len(entries) if count is None else count)
    return b"Exif\0\0" + header + number + b"".join(entries) + bytes(4)


# Entries next to a valid orientation. Pillow fails or warns at each when it opens, loads, turns or closes a file.
ODD = {
    "an odd type": [entry(UNIT, 99, 1, b"\2")],
    "a resolution of one byte": [entry(UNIT, 3, 1, b"\2"), entry(RESOLUTION, 7, 1, b"H")],
    "a resolution of text": [entry(UNIT, 3, 1, b"\2"), entry(RESOLUTION, 2, 2, b"72")],
    "several numbers for one": [entry(UNIT, 3, 2, b"\2\0\2\0")],
    "no number": [entry(UNIT, 3, 0, b"")],
    "a value past the end": [entry(0x010F, 2, 999, struct.pack("<I", 10**6))],
    "a value of gigabytes": [entry(0x010F, 2, 2**32 - 1, struct.pack("<I", 8))],
    "a negative number": [entry(0x9999, 9, 1, struct.pack("<i", -1))],
    "a large number": [entry(0xA002, 3, 1, b"\xff\xff"), entry(0x8827, 4, 1, b"\xff\xff\xff\xff")],
    "a directory past the end": [entry(0x8825, 4, 1, struct.pack("<I", 2**32 - 1))],
    "a directory of text": [entry(0x8769, 2, 4, b"none")],
    "a directory of fractions": [entry(0x8769, 5, 1, struct.pack("<I", 8))],
    "a directory within itself": [entry(0x8769, 4, 1, struct.pack("<I", 8))],
    "XMP of numbers": [entry(700, 4, 1, b"\1\1\1\1")],
}

# Blocks without an orientation from 1 to 8.
BROKEN = {
    "nothing": b"Exif\0\0",
    "zeros": b"Exif\0\0" + bytes(40),
    "text": b"Exif\0\0no directory here",
    "no directory": block(turned(), start=10**6),
    "a head alone": block()[:14],
    "an end within the orientation": block(turned())[:20],
    "an orientation of 0": block(turned(0)),
    "an orientation of 9": block(turned(9)),
    "an orientation of text": block(entry(ORIENTATION, 2, 4, b"left")),
    "an orientation past the end": block(entry(ORIENTATION, 3, 9, struct.pack("<I", 10**6))),
}


def saved(form, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, form, **options)
    return file.getvalue()


def jpeg(exif, *, first=b""):
    """Returns a JPEG file without a resolution outside EXIF, so that Pillow reads EXIF when it opens the file."""
    data = saved("JPEG", quality=100, subsampling=0)
    jfif = 4 + int.from_bytes(data[4:6])
    return data[:2] + first + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + data[jfif:]


def several_jpeg(exif):
    """Returns a JPEG file with a segment that looks like a list of several images."""
    return jpeg(exif, first=b"\xff\xe2\x00\x20MPF\0" + exif[6:32].ljust(26, b"\0"))


def photoshop_jpeg(exif):
    """Returns a JPEG file with a Photoshop block that ends early."""
    return jpeg(exif, first=b"\xff\xed\x00\x16Photoshop 3.0\x008BIM\x03\xed")


FORMATS = {
    "jpeg": jpeg,
    "jpeg of several": several_jpeg,
    "jpeg of Photoshop": photoshop_jpeg,
    "png": lambda exif: saved("PNG", exif=exif),
    "webp": lambda exif: saved("WEBP", exif=exif, lossless=True),
}


def read(data):
    return read_image(io.BytesIO(data)).astype(int)


def same(pixels, expected):
    return pixels.shape == expected.shape and np.abs(pixels - expected).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", FORMATS)
def test_orientations(form, orientation):
    expected = TURNS[orientation - 1](PIXELS)
    for order in "<>":
        for kind in "BHI":
            exif = block(turned(orientation, kind, order), order=order)
            assert same(read(FORMATS[form](exif)), expected)
    exif = block(turned(orientation))
    assert same(read(FORMATS[form](b"Exif\0\0" + exif)), expected)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(FORMATS["png"](exif))))
    assert np.array_equal(np.asarray(theirs), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflated", (False, True))
def test_orientations_of_tiff(orientation, order, deflated):
    options = {"order": order, "deflated": deflated, "more": [turned(orientation, order=order)]}
    expected = TURNS[orientation - 1](PIXELS)
    assert same(read(tiff(PIXELS, np.uint8, photometric=2, **options)), expected)
    # Samples that Pillow does not convert to 8 bits.
    assert same(read(tiff(PIXELS[..., :1] * np.uint16(257), np.uint16, **options)), expected[..., :1].repeat(3, -1))


def test_orientation_of_big_tiff():
    big = saved("TIFF", big_tiff=True, tiffinfo={ORIENTATION: 6})
    assert big[2] == 43 and same(read(big), TURNS[5](PIXELS))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_avif(orientation):
    # AVIF stores its own orientation, to which EXIF must not add.
    number = 20
    exif = block(turned(orientation), *[entry(0x0130 + at, 3, 1, b"") for at in range(number)])
    data = saved("AVIF", exif=exif, quality=100, subsampling="4:4:4")
    expected = TURNS[orientation - 1](PIXELS)
    assert same(read(data), expected)
    start, room = data.rindex(b"II*\0"), 14 + 12 * (number + 1)
    for broken in (b"no directory here", block(turned(3), *ODD["a value of gigabytes"])[6:]):
        assert same(read(data[:start] + broken.ljust(room, b"\0") + data[start + room :]), expected)


@pytest.mark.parametrize("odd", ODD)
def test_odd_tags(odd):
    for make in FORMATS.values():
        assert same(read(make(block(turned(), *ODD[odd]))), TURNS[5](PIXELS))
        assert same(read(make(block(*ODD[odd], turned()))), TURNS[5](PIXELS))


@pytest.mark.parametrize("odd", [odd for odd in ODD if "resolution" not in odd])
def test_odd_tags_of_tiff(odd):
    # Pillow needs the resolution, and refuses a valid file with an odd one.
    assert same(read(tiff(PIXELS, np.uint8, photometric=2, more=[turned(), *ODD[odd]])), TURNS[5](PIXELS))


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_blocks(broken):
    for make in FORMATS.values():
        assert same(read(make(BROKEN[broken])), PIXELS)


def test_corrupt_blocks():
    """An image with any bytes as EXIF is read, and turned in one of the eight ways."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F], exif[RESOLUTION] = 6, "a maker of cameras", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:02:02 02:02:02"
    exif.get_ifd(0x8825)[2] = (51.0, 30.0, 0.0)
    sound = np.frombuffer(exif.tobytes(), np.uint8)
    for _ in range(200):
        corrupt = sound.copy()
        corrupt[rng.integers(6, len(sound), size=rng.integers(1, 20))] = rng.integers(256)
        pixels = read(jpeg(corrupt[: rng.integers(6, 2 * len(sound))].tobytes()))
        assert any(same(pixels, turn(PIXELS)) for turn in TURNS)


@pytest.mark.parametrize("text", ('tiff:Orientation="8"', "<tiff:Orientation>8</tiff:Orientation>"))
def test_orientation_in_xmp(text):
    xmp = f"<x:xmpmeta>{text}</x:xmpmeta>".encode()
    for form in ("JPEG", "WEBP"):
        options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {"lossless": True}
        assert same(read(saved(form, xmp=xmp, **options)), TURNS[7](PIXELS))
        # If both give an orientation, EXIF's counts.
        assert same(read(saved(form, xmp=xmp, exif=block(turned(3)), **options)), TURNS[2](PIXELS))
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    assert same(read(saved("PNG", pnginfo=info)), TURNS[7](PIXELS))


def test_orientation_in_text_of_png():
    for exif, turn in ((block(turned()).hex(), TURNS[5]), ("no hexadecimal number", TURNS[0])):
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", f"\nexif\n{len(exif) // 2:8}\n{exif}\n", zip=True)
        assert same(read(saved("PNG", pnginfo=info)), turn(PIXELS))


def test_filters_of_warnings_are_left_as_they_are():
    data = tiff(PIXELS, np.uint8, photometric=2, more=[*ODD["a value past the end"]])
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, [data] * 100))
    assert warnings.filters == before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert same(read(data), PIXELS)
    assert caught and all(issubclass(warning.category, UserWarning) for warning in caught)
