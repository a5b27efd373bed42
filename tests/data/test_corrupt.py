"""Corrupt files in every format that Pillow writes give an image as documented, or an `OSError` with the name."""

import io

import numpy as np
import pytest
from PIL import Image

from levitax.data import read_image


# Options that select Pillow's other encoders, by format.
OPTIONS = {
    "BLP": [{}, {"blp_version": "BLP1"}],
    "DDS": [{}, *({"pixel_format": name} for name in ("DXT1", "DXT3", "DXT5", "BC2", "BC3", "BC5"))],
    "ICO": [{}, {"bitmap_format": "bmp"}],
    "JPEG": [{}, {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0" + bytes(50)}],
    "JPEG2000": [{}, {"no_jp2": True}, {"irreversible": True}],
    "MPO": [{}, {"save_all": True}],
    "PNG": [{}, {"exif": b"Exif\0\0II*\0\x08\0\0\0" + bytes(50)}, {"dpi": (72, 72)}],
    "PPM": [{}],
    "TGA": [{}, {"compression": "tga_rle"}],
    "TIFF": [
        {"compression": name, "tiffinfo": {274: 6}}
        for name in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "group3", "group4", "lzma")
    ],
    "WEBP": [{}, {"lossless": True}, {"save_all": True}],
}


# TIFF compressions that accept some modes only. In other modes, Pillow before 13 frees memory twice.
MODES = {"jpeg": ("L", "RGB", "CMYK", "YCbCr"), "group3": ("1",), "group4": ("1",)}


@pytest.fixture(scope="module")
def sound():
    """A file of each format, mode and option that Pillow writes and reads on this machine."""
    Image.init()
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(256, size=(8, 6, 4), dtype=np.uint8)).resize((40, 32))
    wide = Image.fromarray(np.asarray(colours.convert("L")).astype(np.uint16) * 257)
    modes = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F")
    images = [*(colours.convert("RGB").convert(mode) for mode in modes), wide]
    found = {}
    for form in sorted({*Image.SAVE, "MPO"}):
        for image in images:
            for options in OPTIONS.get(form, [{}]):
                if image.mode not in MODES.get(options.get("compression", ""), (image.mode,)):
                    continue
                file = io.BytesIO()
                try:
                    image.save(file, form, **options)
                    read_image(file)
                except Exception:
                    continue
                found.setdefault(form, []).append(file.getvalue())
    return found


def cut(data, rng):
    return data[: rng.integers(len(data))]


def flip(data, rng):
    corrupt = np.frombuffer(data, np.uint8).copy()
    corrupt[rng.integers(len(data), size=rng.integers(1, 20))] ^= np.uint8(1 << rng.integers(8))
    return corrupt.tobytes()


def scatter(data, rng):
    corrupt = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(len(data), size=rng.integers(1, 20))
    corrupt[places] = rng.integers(256, size=len(places))
    return corrupt.tobytes()


def splice(data, rng):
    start, end = np.sort(rng.integers(len(data), size=2))
    inserted = rng.integers(256, size=rng.integers(9), dtype=np.uint8).tobytes()
    return data[:start] + inserted + data[min(end, start + 40) :]


def repeat(data, rng):
    start, end = np.sort(rng.integers(len(data), size=2))
    return data[:end] + data[start:]


def blank(data, rng):
    start = rng.integers(len(data))
    size = min(rng.integers(1, 200), len(data) - start)
    return data[:start] + bytes([rng.choice([0, 255])]) * size + data[start + size :]


def extreme(data, rng):
    """Replaces sizes and offsets by the extremes of their integer type."""
    start, size = int(rng.integers(min(len(data), 120))), int(rng.choice([1, 2, 4]))
    largest = 2 ** (8 * size) - 1
    number = [0, 1, largest // 2, largest // 2 + 1, largest][rng.integers(5)]
    return data[:start] + number.to_bytes(size, "big" if rng.integers(2) else "little") + data[start + size :]


WAYS = (cut, flip, scatter, splice, repeat, blank, extreme)


def test_formats(sound):
    """Checks that the tests below cover enough formats."""
    assert {
        "BLP",
        "BMP",
        "DDS",
        "GIF",
        "ICO",
        "JPEG",
        "JPEG2000",
        "MPO",
        "PCX",
        "PNG",
        "PPM",
        "SGI",
        "TIFF",
    } <= sound.keys()
    assert len(sound["TIFF"]) > 20


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
@pytest.mark.parametrize("number", (100, pytest.param(2000, marks=pytest.mark.slow)))
def test_corrupt_files(sound, tmp_path, monkeypatch, number):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    rng, path, formats, refused = np.random.default_rng(number), tmp_path / "file", sorted(sound), 0
    for at in range(number):
        files = sound[formats[at % len(formats)]]
        data = files[rng.integers(len(files))]
        path.write_bytes(WAYS[rng.integers(len(WAYS))](data, rng))
        try:
            pixels = read_image(path)
        except OSError as error:
            assert f"`{path}` cannot be read as an image: " in str(error)
            refused += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert number // 4 < refused < number
