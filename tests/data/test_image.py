import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from levitax.data import read_image


@pytest.fixture
def image() -> np.ndarray:
    """An image of smooth colours that differ in every corner, 20 rows by 30 columns."""
    rows, columns = np.linspace(0, 1, 20)[:, None], np.linspace(0, 1, 30)[None]
    colours = [rows + 0 * columns, 0 * rows + columns, (rows + columns) / 2]
    return (255 * np.stack(colours, -1)).round().astype(np.uint8)


@pytest.fixture
def written(tmp_path):
    """Writes a Pillow image and returns the path."""

    def written(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return written


@pytest.mark.parametrize("suffix", ("png", "bmp", "tiff", "webp", "ppm"))
def test_colours_are_read_as_they_are(image, written, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    pixels = read_image(written(Image.fromarray(image), f"x.{suffix}", **options))
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, image)


def test_grey_becomes_colours_and_colours_grey(image, written):
    grey = Image.fromarray(image).convert("L")
    pixels = read_image(written(grey, "grey.png"))
    assert pixels.shape == (20, 30, 3) and (pixels == np.asarray(grey)[..., None]).all()
    pixels = read_image(written(Image.fromarray(image), "colour.png"), channels=1)
    assert pixels.shape == (20, 30, 1) and np.array_equal(pixels[..., 0], np.asarray(grey))


def test_black_and_white(written):
    pixels = read_image(written(Image.fromarray(np.eye(8, dtype=bool)), "x.png"))
    assert np.array_equal(pixels, 255 * np.eye(8, dtype=np.uint8)[..., None].repeat(3, -1))


def test_a_palette_is_looked_up(image, written):
    palette = Image.fromarray(image).quantize(64)
    assert np.array_equal(read_image(written(palette, "x.png")), np.asarray(palette.convert("RGB")))
    assert np.array_equal(read_image(written(palette, "x.gif")), np.asarray(palette.convert("RGB")))


def test_transparent_pixels_are_shown_over_white(image, written):
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[5:10] = 0
    alpha[10:15] = 128
    pixels = read_image(written(Image.fromarray(np.concatenate([image, alpha], -1)), "x.png"))
    assert np.array_equal(pixels[:5], image[:5])
    assert (pixels[5:10] == 255).all()
    half = image[10:15] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels[10:15] - half).max() <= 1


def test_a_transparent_colour_of_a_palette_is_white_too(image, written):
    palette = Image.fromarray(image).quantize(16)
    pixels = read_image(written(palette, "x.png", transparency=int(np.asarray(palette)[0, 0])))
    assert (pixels[0, 0] == 255).all()


def test_cmyk(image, written):
    cmyk = Image.fromarray(image).convert("CMYK")
    for name in ("x.tiff", "x.jpg"):
        pixels = read_image(written(cmyk, name)).astype(int)
        assert np.abs(pixels - image).mean() < 4


@pytest.mark.parametrize("dtype", (np.uint16, np.int32))
def test_sixteen_bits_are_not_cut_off(written, dtype):
    wide = np.linspace(0, 65535, 600).reshape(20, 30).astype(dtype)
    pixels = read_image(written(Image.fromarray(wide), "x.tiff"), channels=1)[..., 0]
    assert np.abs(pixels - wide / 257).max() <= 0.51


def test_a_png_of_sixteen_bits(written):
    wide = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    pixels = read_image(written(Image.fromarray(wide), "x.png"))
    assert np.abs(pixels[..., 0] - wide / 257).max() <= 0.51


@pytest.mark.parametrize("full", (1.0, 255.0, 65535.0))
def test_floats_are_brought_to_bytes(written, full):
    values = np.linspace(0, full, 600, dtype=np.float32).reshape(20, 30)
    pixels = read_image(written(Image.fromarray(values), "x.tiff"), channels=1)[..., 0]
    assert np.abs(pixels - values * (255 / full)).max() <= 0.51


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, lambda x: np.rot90(x))],
)
@pytest.mark.parametrize("suffix", ("png", "tiff"))
@pytest.mark.parametrize("mode", ("RGB", "L"))
def test_images_are_turned_upright(image, written, orientation, turn, suffix, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(image).convert(mode)
    pixels = read_image(written(stored, f"x.{suffix}", exif=exif))
    assert np.array_equal(pixels, turn(np.asarray(stored.convert("RGB"))))


def test_small_integers_are_kept_and_floats_that_are_not_finite_are_refused(written):
    small = np.arange(256, dtype=np.int32).reshape(16, 16)
    assert np.array_equal(read_image(written(Image.fromarray(small), "x.tiff"), channels=1)[..., 0], small)
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels = read_image(written(Image.fromarray(values), "x.tiff"), channels=1)[..., 0]
    assert pixels[0, 0] == 0 and pixels[-1, -1] == 255
    for value in (np.nan, np.inf, -np.inf):
        values[0, 0] = value
        with pytest.raises(OSError, match=r"x\.tiff` cannot be read as an image: it has samples that are not finite"):
            read_image(written(Image.fromarray(values), "x.tiff"))


SIXTEEN_BITS = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
HALF_RANGE = np.linspace(0, 127, 12).astype(np.uint8).reshape(3, 4)
# Properties that are in the file but not in the pixels that Pillow returns.
IN_THE_FILE = {
    "16 bits": (Image.fromarray(SIXTEEN_BITS), "tiff", {}),
    "inverted": (Image.fromarray(SIXTEEN_BITS), "tiff", {"tiffinfo": {262: 0}}),
    "inverted floats": (Image.fromarray(SIXTEEN_BITS.astype(np.float32)), "tiff", {"tiffinfo": {262: 0}}),
    "signed": (Image.fromarray(HALF_RANGE), "tiff", {"tiffinfo": {339: 2}}),
    "turned": (Image.fromarray(HALF_RANGE), "tiff", {"tiffinfo": {274: 6}}),
    "dark": (Image.fromarray(SIXTEEN_BITS // 300), "pgm", {}),
    "transparent": (Image.fromarray(SIXTEEN_BITS), "png", {"transparency": int(SIXTEEN_BITS[1, 1])}),
}


@pytest.mark.parametrize("loaded", (False, True), ids=("lazy", "loaded"))
@pytest.mark.parametrize(("image", "suffix", "options"), IN_THE_FILE.values(), ids=IN_THE_FILE)
def test_an_open_image_is_read_as_its_file_is(image, suffix, options, loaded, written):
    path = written(image, f"x.{suffix}", **options)
    # A loaded image is opened without its path: with it, Pillow turns uncompressed TIFF wrongly.
    with Image.open(io.BytesIO(path.read_bytes()) if loaded else path) as opened:
        if loaded:
            opened.load()
        assert np.array_equal(read_image(opened), read_image(path))
        # The opened image stays usable.
        opened.load()


def test_the_first_of_several_frames_is_read(image, written):
    first, second = Image.fromarray(image), Image.fromarray(255 - image)
    path = written(first, "x.tiff", save_all=True, append_images=[second])
    assert np.array_equal(read_image(path), image)


def test_corrupt_files(image, written, tmp_path):
    path = written(Image.fromarray(image), "x.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match=r"x\.png` cannot be read as an image: image file is truncated"):
        read_image(path)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*nowhere\.png'"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        read_image(tmp_path)


def test_paths(image, written, tmp_path, monkeypatch, unchecked):
    written(Image.fromarray(image), "x.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert np.array_equal(read_image("~/x.png"), image)
    with pytest.raises(ValueError, match=r"`path` is 'https:.*', a URL"):
        read_image("https://host/x.png")
    # The descriptor of an open file.
    with pytest.raises(TypeError, match=r"`path` is of type `int`; expected a path, a file .* or a PIL image\."):
        read_image(0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "it is a Git LFS pointer .* `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "it is an HTML page"),
        (b"<HTML>", "it is an HTML page"),
        (b"<?xml version='1.0'?><Error/>", r"its header is corrupt, or .*; it begins with b\"<\?xml"),
        (b"no image", "its header is corrupt, or Pillow does not read its format; it begins with b'no image'"),
    ],
)
def test_files_that_are_no_image(tmp_path, content, message):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(OSError, match=rf"x\.jpg` cannot be read as an image: {message}"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (struct.error("unpack requires 4 bytes"), "struct.error: unpack requires 4 bytes"),
        (NotImplementedError("unknown blocks"), "NotImplementedError: unknown blocks"),
        (OverflowError(), "OverflowError"),
        (MemoryError(), "MemoryError"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (KeyError(9), "KeyError: 9"),
        (zlib.error("wrong check"), "zlib.error: wrong check"),
        (OSError("broken data stream."), "broken data stream"),
        (OSError(22, "Invalid argument"), r"\[Errno 22\] Invalid argument"),
        (Exception("anything"), "Exception: anything"),
    ],
)
def test_any_error_of_a_decoder_is_an_oserror(image, written, monkeypatch, error, reason):
    path = written(Image.fromarray(image), "x.png")

    def load(self):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(OSError, match=rf"x\.png` cannot be read as an image: {reason}\.$") as caught:
        read_image(path)
    assert caught.value.__cause__ is error


def test_the_limit_of_pixels(image, written, monkeypatch):
    path = written(Image.fromarray(image), "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    message = (
        r"x\.png` cannot be read as an image: .*600 pixels.* limit of 598 pixels.* `PIL.Image.MAX_IMAGE_PIXELS = None`"
    )
    with pytest.raises(OSError, match=message):
        read_image(path)
    # Between the limit and twice the limit, Pillow warns. A filter can turn the warning into an error.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.warns(Image.DecompressionBombWarning):
        assert np.array_equal(read_image(path), image)
    with pytest.raises(OSError, match=r"limit of 300 pixels.* `PIL.Image.MAX_IMAGE_PIXELS = None`"):
        read_image(path)


def test_open_files(image, written):
    path = written(Image.fromarray(image), "x.png")
    with open(path, "rb") as file:
        file.seek(7)
        assert np.array_equal(read_image(file), image)
        assert np.array_equal(read_image(file), image)
    path.write_bytes(path.read_bytes()[:-30])
    with open(path, "rb") as file, pytest.raises(OSError, match=r"x\.png` cannot be read as an image"):
        read_image(file)
    with pytest.raises(OSError, match=r"^The file cannot be read as an image"):
        read_image(io.BytesIO(path.read_bytes()))


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="not Linux")
def test_a_system_error_while_reading_names_the_file():
    # Reading the memory of a process at address 0 fails.
    with pytest.raises(OSError, match=r"\[Errno 5\] Input/output error: '/proc/self/mem'"):
        read_image("/proc/self/mem")
