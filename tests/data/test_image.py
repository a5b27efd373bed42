import numpy as np
import pytest
from PIL import Image

from levitax.data import read_image


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
