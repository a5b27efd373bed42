import numpy as np
import pytest
from PIL import Image

from levitax.data import IMAGENET_MEAN, IMAGENET_STD, preprocess, read_image


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth colours, 20 rows by 30 columns, each corner its own."""
    rows, columns = np.linspace(0, 1, 20)[:, None], np.linspace(0, 1, 30)[None]
    colours = [rows + 0 * columns, 0 * rows + columns, (rows + columns) / 2]
    return (255 * np.stack(colours, -1)).round().astype(np.uint8)


@pytest.fixture
def written(tmp_path):
    """Writes an image of Pillow's and gives the path."""

    def written(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return written


@pytest.mark.parametrize("suffix", ("png", "bmp", "tiff", "webp", "ppm"))
def test_colours_are_read_as_they_are(picture, written, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    pixels = read_image(written(Image.fromarray(picture), f"x.{suffix}", **options))
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, picture)


def test_grey_becomes_colours_and_colours_grey(picture, written):
    grey = Image.fromarray(picture).convert("L")
    pixels = read_image(written(grey, "grey.png"))
    assert pixels.shape == (20, 30, 3) and (pixels == np.asarray(grey)[..., None]).all()
    pixels = read_image(written(Image.fromarray(picture), "colour.png"), channels=1)
    assert pixels.shape == (20, 30, 1) and np.array_equal(pixels[..., 0], np.asarray(grey))


def test_black_and_white(written):
    pixels = read_image(written(Image.fromarray(np.eye(8, dtype=bool)), "x.png"))
    assert np.array_equal(pixels, 255 * np.eye(8, dtype=np.uint8)[..., None].repeat(3, -1))


def test_a_palette_is_looked_up(picture, written):
    palette = Image.fromarray(picture).quantize(64)
    assert np.array_equal(read_image(written(palette, "x.png")), np.asarray(palette.convert("RGB")))
    assert np.array_equal(read_image(written(palette, "x.gif")), np.asarray(palette.convert("RGB")))


def test_behind_what_is_transparent_is_white(picture, written):
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[5:10] = 0
    alpha[10:15] = 128
    pixels = read_image(written(Image.fromarray(np.concatenate([picture, alpha], -1)), "x.png"))
    assert np.array_equal(pixels[:5], picture[:5])
    assert (pixels[5:10] == 255).all()
    half = picture[10:15] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels[10:15] - half).max() <= 1


def test_a_transparent_colour_of_a_palette_is_white_too(picture, written):
    palette = Image.fromarray(picture).quantize(16)
    pixels = read_image(written(palette, "x.png", transparency=int(np.asarray(palette)[0, 0])))
    assert (pixels[0, 0] == 255).all()


def test_cmyk(picture, written):
    cmyk = Image.fromarray(picture).convert("CMYK")
    for name in ("x.tiff", "x.jpg"):
        pixels = read_image(written(cmyk, name)).astype(int)
        assert np.abs(pixels - picture).mean() < 4


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
def test_pictures_are_turned_upright(picture, written, orientation, turn, suffix, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(picture).convert(mode)
    pixels = read_image(written(image, f"x.{suffix}", exif=exif))
    assert np.array_equal(pixels, turn(np.asarray(image.convert("RGB"))))


def test_small_integers_and_broken_floats_are_seen(written):
    small = np.arange(256, dtype=np.int32).reshape(16, 16)
    assert np.array_equal(read_image(written(Image.fromarray(small), "x.tiff"), channels=1)[..., 0], small)
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    values[0, 0] = np.nan
    pixels = read_image(written(Image.fromarray(values), "x.tiff"), channels=1)[..., 0]
    assert pixels[0, 0] == 0 and pixels[-1, -1] == 255


def test_of_several_frames_the_first_is_taken(picture, written):
    first, second = Image.fromarray(picture), Image.fromarray(255 - picture)
    path = written(first, "x.tiff", save_all=True, append_images=[second])
    assert np.array_equal(read_image(path), picture)


def test_damaged_files(picture, written, tmp_path):
    path = written(Image.fromarray(picture), "x.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match=r"x\.png` is damaged, or no picture that Pillow reads"):
        read_image(path)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(OSError, match=r"text\.jpg` is damaged, or no picture that Pillow reads"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_image(tmp_path / "nowhere.png")


def test_the_middle_is_cut_out_and_normalised(picture):
    flat = np.full((300, 500, 3), (0, 128, 255), np.uint8)
    prepared = preprocess(flat)
    assert prepared.shape == (224, 224, 3) and prepared.dtype == np.float32
    expected = (np.array([0, 128, 255]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert np.allclose(prepared, expected, atol=1e-6)


def plain(picture, size, **options):
    """What preprocessing gives, as pixels from 0 to 255."""
    return preprocess(picture, size, mean=0.0, std=1.0, **options) * 255


def test_the_whole_picture_is_kept_at_a_ratio_of_one(picture):
    assert np.allclose(plain(picture, (20, 30), crop_ratio=1.0), picture)
    # Of a wide picture, the middle.
    assert np.allclose(plain(picture, 20, crop_ratio=1.0), picture[:, 5:25])
    assert np.allclose(plain(picture, (10, 30), crop_ratio=1.0), picture[5:15])


@pytest.mark.parametrize("size", (32, (32, 64), (64, 32), (33, 57)))
@pytest.mark.parametrize("shape", ((200, 300), (300, 200), (101, 77)))
def test_any_shape_is_brought_to_any_size(size, shape):
    # A ramp stays a ramp; its middle stays in the middle.
    rows = np.linspace(0, 255, shape[0])[:, None, None].round().astype(np.uint8)
    prepared = plain(np.broadcast_to(rows, (*shape, 3)), size)
    assert prepared.shape == (*np.broadcast_to(size, 2), 3)
    profile = prepared[:, 0, 0]
    assert (np.diff(profile) >= 0).all()
    assert abs(profile.mean() - 127.5) < 4


def test_grey_pictures_have_grey_statistics():
    prepared = preprocess(np.full((9, 9, 1), 255, np.uint8), 8)
    assert prepared.shape == (8, 8, 1)
    assert np.allclose(prepared, (1 - np.mean(IMAGENET_MEAN)) / np.mean(IMAGENET_STD))
    assert np.allclose(preprocess(np.full((9, 9, 1), 255, np.uint8), 8, mean=0.5, std=0.25), 2)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"crop_ratio": 0}, "`crop_ratio` is 0"),
        ({"crop_ratio": 1.2}, "`crop_ratio` is 1.2"),
        ({"image_size": 0}, "size"),
    ],
)
def test_bad_sizes(picture, keywords, message, unchecked):
    with pytest.raises(ValueError, match=message):
        preprocess(picture, **keywords)


@pytest.mark.parametrize("shape", ((9, 9), (9, 9, 4), (1, 9, 9, 3)))
def test_what_is_no_picture(shape, unchecked):
    with pytest.raises(ValueError, match=r"`image` has shape .*; expected \(height, width, 3\)"):
        preprocess(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"dtype float64; expected"):
        preprocess(np.zeros((9, 9, 3)))
