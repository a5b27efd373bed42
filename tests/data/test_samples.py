"""Compares one scene, stored in every sample format, with the scene in 8 bits."""

import io

import numpy as np
import PIL
import pytest
from PIL import Image

from levitax.data import read_image

from .stored import png, tiff


PILLOW = tuple(map(int, PIL.__version__.split(".")[:2]))

ROWS, COLUMNS = np.linspace(0, 1, 20)[:, None, None], np.linspace(0, 1, 30)[None, :, None]
COLOURS = (255 * np.concatenate([ROWS + 0 * COLUMNS, 0 * ROWS + COLUMNS, (ROWS + COLUMNS) / 2], -1)).round()
GREY = COLOURS[..., 2:]
ALPHA = (255 * (ROWS[::-1] + 0 * COLUMNS)).round()


def over_white(samples):
    return samples * ALPHA / 255 + 255 - ALPHA


def wider(samples, bits):
    """Scales 8-bit samples to another number of bits."""
    return (samples * ((2**bits - 1) / 255)).round()


def read(data, channels=3):
    return read_image(io.BytesIO(data), channels=channels).astype(int)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.fixture(params=["<", ">"], ids=["little", "big"])
def order(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["raw", "deflated"])
def deflated(request):
    return request.param


@pytest.fixture
def stored(order, deflated):
    """Writes a TIFF file in either byte order, compressed or not."""
    return lambda *samples, **options: tiff(*samples, order=order, deflated=deflated, **options)


# Grey.


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
def test_unsigned_grey(stored, dtype):
    pixels = read(stored(wider(GREY, 8 * np.dtype(dtype).itemsize), dtype), 1)
    assert np.abs(pixels - GREY).max() <= 1


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_few_bits_and_0_for_white(stored, bits):
    few = (GREY * (2**bits - 1) / 255).round()
    assert np.array_equal(read(stored(few, np.uint8, bits=bits), 1), few * 255 / (2**bits - 1))
    inverted = stored(2**bits - 1 - few, np.uint8, bits=bits, photometric=0)
    assert np.array_equal(read(inverted, 1), few * 255 / (2**bits - 1))


@pytest.mark.parametrize("deflated", (False, True))
@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0)])
def test_12_bits_and_0_for_white_in_16(bits, photometric, deflated):
    samples = wider(GREY if photometric else 255 - GREY, bits)
    pixels = read(tiff(samples, np.uint16, bits=bits, photometric=photometric, deflated=deflated), 1)
    assert np.abs(pixels - GREY).max() <= 1


def test_dark_images_of_16_bits_stay_dark(stored):
    dark = GREY / 255
    assert np.abs(read(stored(wider(dark, 16), np.uint16), 1) - dark).max() <= 1
    for form in ("PNG", "PPM"):
        image = Image.fromarray(wider(dark, 16).astype(np.uint16)[..., 0])
        assert np.abs(read(saved(image, form), 1) - dark).max() <= 1


@pytest.mark.parametrize("deflated", (False, True))
@pytest.mark.parametrize("dtype", (np.int8, np.int16))
def test_signed_samples_have_0_for_black(dtype, deflated):
    positive = wider(GREY, 8 * np.dtype(dtype).itemsize - 1)
    assert np.abs(read(tiff(positive, dtype, deflated=deflated), 1) - GREY).max() <= 1
    with pytest.raises(OSError, match=r"it has samples down to -1, but negative samples have no brightness"):
        read(tiff(positive - 1, dtype, deflated=deflated))


@pytest.mark.parametrize(("dtype", "white"), [(np.int32, 2**31 - 1), (np.uint32, 2**32 - 1), (np.int32, 65535)])
def test_32_bits(dtype, white):
    pixels = read(tiff((GREY * (white / 255)).round(), dtype), 1)
    assert np.abs(pixels - GREY).max() <= 1


@pytest.mark.parametrize("photometric", (0, 1))
def test_floats(order, photometric):
    samples = GREY / 255 if photometric else 1 - GREY / 255
    assert np.abs(read(tiff(samples, np.float32, order=order, photometric=photometric), 1) - GREY).max() <= 1
    with pytest.raises(OSError, match="negative samples have no brightness"):
        read(tiff(samples - 0.5, np.float32, order=order))


@pytest.mark.parametrize("dtype", (np.int16, np.int32, np.float32))
def test_samples_whose_bytes_pillow_swaps_twice_are_refused(dtype):
    with pytest.raises(OSError, match="Pillow misreads TIFF files with compressed big-endian signed or float"):
        read(tiff(GREY / 255, dtype, order=">", deflated=True))


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
@pytest.mark.parametrize(
    ("form", "modes"),
    [
        ("TIFF", ("1", "L", "I;16", "I;16B", "I", "F")),
        ("PNG", ("1", "L", "I;16")),
        ("PPM", ("1", "L", "I;16", "I", "F")),
        ("IM", ("1", "L", "I;16", "I;16B", "I", "F")),
        ("JPEG2000", ("L", "I;16")),
        ("SGI", ("L",)),
        ("SPIDER", ("F",)),
    ],
)
def test_grey_as_pillow_writes_it(form, modes):
    dtypes = {"L": "u1", "I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}
    for mode in modes:
        if mode == "1":
            expected, image = 255 * (GREY > 127), Image.fromarray(GREY[..., 0] > 127)
        else:
            samples = GREY if mode == "L" else GREY / 255 if mode == "F" else wider(GREY, 16)
            expected, image = GREY, Image.fromarray(samples[..., 0].astype(dtypes[mode]))
        assert image.mode == mode
        assert np.abs(read(saved(image, form), 1) - expected).max() <= 1


# Colours.


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
def test_colours(stored, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    alpha = np.concatenate([COLOURS, ALPHA], -1)
    for samples, extra, expected in (
        (COLOURS, (), COLOURS),
        (alpha, (0,), COLOURS),
        (alpha, (2,), over_white(COLOURS)),
        (np.concatenate([COLOURS * ALPHA / 255, ALPHA], -1), (1,), over_white(COLOURS)),
    ):
        pixels = read(stored(wider(samples, bits), dtype, photometric=2, extra=extra))
        assert np.abs(pixels - expected).max() <= 2
    cmyk = np.asarray(Image.fromarray(COLOURS.astype(np.uint8)).convert("CMYK"))
    assert np.abs(read(stored(wider(cmyk, bits), dtype, photometric=5)) - COLOURS).max() <= 1


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
def test_separate_planes_are_right_or_refused(stored, deflated, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    alpha = np.concatenate([COLOURS, ALPHA], -1)
    cmyk = np.asarray(Image.fromarray(COLOURS.astype(np.uint8)).convert("CMYK"))
    read_at_all = 0
    for samples, photometric, extra, expected in (
        (COLOURS, 2, (), COLOURS),
        (cmyk, 5, (), COLOURS),
        (alpha, 2, (0,), COLOURS),
        (alpha, 2, (2,), over_white(COLOURS)),
        (alpha, 2, (), over_white(COLOURS)),
        (alpha[..., 2:], 1, (2,), over_white(GREY)),
        (np.concatenate([GREY * ALPHA / 255, ALPHA], -1), 1, (1,), over_white(GREY)),
        (GREY, 1, (), GREY),
    ):
        data = stored(wider(samples, bits), dtype, photometric=photometric, extra=extra, separate=True)
        try:
            pixels = read(data)
        except OSError as error:
            assert "as an image: " in str(error)
        else:
            assert np.abs(pixels - expected).max() <= 2
            read_at_all += 1
    assert read_at_all == 0 if dtype == np.uint16 and not deflated else read_at_all >= 4


def test_lab(stored):
    # Colours near grey, because 8 bits are coarse elsewhere.
    muted = (COLOURS + 3 * 128) / 4
    linear = np.where(muted > 0.04045 * 255, ((muted / 255 + 0.055) / 1.055) ** 2.4, muted / 255 / 12.92)
    to_xyz = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    x, y, z = np.moveaxis(np.cbrt(linear @ to_xyz.T / to_xyz.sum(1)), -1, 0)
    lab = np.stack([(116 * y - 16) * 2.55, 500 * (x - y), 200 * (y - z)], -1).round()
    data = stored(np.where(lab < 0, lab + 256, lab), np.uint8, photometric=8)
    assert np.abs(read(data) - muted).max() <= 3
    assert np.abs(read(data, 1)[..., 0] - muted @ (0.299, 0.587, 0.114)).max() <= 3
    with pytest.raises(OSError, match="Pillow misreads TIFF files with LAB in separate planes"):
        read(stored(np.where(lab < 0, lab + 256, lab), np.uint8, photometric=8, separate=True))


def test_ycbcr_and_palettes(stored, deflated):
    image = Image.fromarray(COLOURS.astype(np.uint8))
    ycbcr = np.asarray(image.convert("YCbCr"))
    data = stored(ycbcr, np.uint8, photometric=6, subsampling=(1, 1))
    if deflated or PILLOW >= (13,):
        assert np.abs(read(data) - COLOURS).max() <= 3
    else:
        with pytest.raises(OSError, match="image file is truncated"):
            read(data)
    # Without a subsampling tag, colours have half the rows and columns.
    with pytest.raises(OSError, match="Pillow misreads TIFF files with uncompressed YCbCr"):
        read(tiff(ycbcr, np.uint8, photometric=6))
    palette = image.quantize(16)
    colours = np.pad(np.reshape(palette.getpalette() or [], (-1, 3)), ((0, 240), (0, 0))).T.ravel() * 257
    indices, expected = np.asarray(palette)[..., None], np.asarray(palette.convert("RGB"))
    data = stored(indices, np.uint8, photometric=3, colours=colours)
    assert np.array_equal(read(data), expected)
    alpha = np.concatenate([indices, ALPHA], -1)
    data = stored(alpha, np.uint8, photometric=3, colours=colours, extra=(2,))
    assert np.abs(read(data) - over_white(expected)).max() <= 1


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
@pytest.mark.parametrize(
    ("form", "modes"),
    [
        ("TIFF", ("RGB", "RGBA", "RGBX", "CMYK", "P", "PA", "LA")),
        ("PNG", ("RGB", "RGBA", "P", "LA")),
        ("IM", ("RGB", "RGBA", "CMYK", "P", "PA", "LA")),
        ("TGA", ("RGB", "RGBA", "P", "LA")),
        ("SGI", ("RGB", "RGBA")),
        ("DDS", ("RGB", "RGBA", "LA")),
        ("ICO", ("RGB", "RGBA", "LA")),
        ("JPEG2000", ("RGB", "RGBA", "YCbCr", "LA")),
    ],
)
def test_colours_as_pillow_writes_them(form, modes):
    colours = Image.fromarray(COLOURS.astype(np.uint8))
    alpha = Image.fromarray(ALPHA[..., 0].astype(np.uint8))
    for mode in modes:
        image, expected = colours, COLOURS
        if mode in ("P", "PA"):
            image = colours.quantize(64)
            expected = np.asarray(image.convert("RGB"))
        if mode == "LA":
            image, expected = colours.convert("L"), np.asarray(colours.convert("L"))[..., None]
        image = image.convert(mode)
        if mode.endswith("A"):
            image.putalpha(alpha)
            expected = over_white(expected)
        options = {"sizes": [(30, 20)]} if form == "ICO" else {}
        # JPEG2000 and YCbCr round the samples.
        assert np.abs(read(saved(image, form, **options)) - expected).max() <= 3, mode


# PNG.


@pytest.mark.parametrize("bits", (1, 2, 4, 8, 16))
def test_grey_of_png(bits):
    few = wider(GREY, bits)
    expected = few * 255 / (2**bits - 1)
    assert np.abs(read(png(few, bits, 0), 1) - expected).max() <= 1
    # Exactly one grey level is transparent.
    seen = few[10, 10, 0]
    pixels = read(png(few, bits, 0, transparent=[int(seen)]), 1)
    assert np.abs(pixels - np.where(few == seen, 255, expected)).max() <= 1


@pytest.mark.parametrize("bits", (8, 16))
def test_colours_of_png(bits):
    samples = wider(COLOURS, bits)
    assert np.abs(read(png(samples, bits, 2)) - COLOURS).max() <= 1
    seen = samples[10, 10]
    pixels = read(png(samples, bits, 2, transparent=seen.astype(int).tolist()))
    transparent = (samples == seen).all(-1, keepdims=True)
    assert np.abs(pixels - np.where(transparent, 255, COLOURS)).max() <= 1
    for colour_type, colours in ((4, GREY), (6, COLOURS)):
        pixels = read(png(wider(np.concatenate([colours, ALPHA], -1), bits), bits, colour_type))
        assert np.abs(pixels - over_white(colours)).max() <= 2
