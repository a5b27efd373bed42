import dataclasses
import io
import json
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from levitax.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Transform


# Divides pixels by 255 and changes nothing else.
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def image():
    """Draws an image."""

    def image(*shape):
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    return image


def test_the_centre_is_cropped_and_normalised():
    flat = np.full((300, 500, 3), (0, 128, 255), np.uint8)
    prepared = Preprocessing()(flat)
    assert prepared.shape == (224, 224, 3) and prepared.dtype == np.float32
    expected = (np.array([0, 128, 255]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert np.allclose(prepared, expected, atol=1e-6)


def test_the_whole_image_is_kept_at_a_ratio_of_one(image):
    pixels = image(20, 30, 3)
    whole = lambda size: Preprocessing(image_size=size, crop_ratio=1.0).resize(pixels)
    assert np.array_equal(whole((20, 30)), pixels)
    # A wide image is cropped to its centre.
    assert np.array_equal(whole(20), pixels[:, 5:25])
    assert np.array_equal(whole((10, 30)), pixels[5:15])


@pytest.mark.parametrize("size", (32, (32, 64), (64, 32), (33, 57)))
@pytest.mark.parametrize("shape", ((200, 300), (300, 200), (101, 77)))
@pytest.mark.parametrize("crop_ratio", (0.875, 0.9, 1.0))
def test_any_shape_is_brought_to_any_size(size, shape, crop_ratio):
    # A ramp stays a ramp; its centre stays in the centre.
    rows = np.linspace(0, 255, shape[0])[:, None, None].round().astype(np.uint8)
    preprocessing = Preprocessing(image_size=size, crop_ratio=crop_ratio)
    pixels = preprocessing.resize(np.broadcast_to(rows, (*shape, 3)))
    assert pixels.shape == (*np.broadcast_to(size, 2), 3) and pixels.dtype == np.uint8
    profile = pixels[:, 0, 0].astype(int)
    assert (np.diff(profile) >= 0).all()
    assert abs(profile.mean() - 127.5) < 4
    assert np.array_equal(preprocessing(np.broadcast_to(rows, (*shape, 3))), preprocessing.normalise(pixels))


def test_an_odd_margin_is_cropped_as_the_source_of_the_weights_does():
    # torchvision rounds halves to even, transformers rounds down.
    pixels = np.broadcast_to(np.arange(13, dtype=np.uint8)[:, None, None], (13, 10, 3))
    first = lambda offset: int(Preprocessing(image_size=10, crop_ratio=1.0, crop_offset=offset).resize(pixels)[0, 0, 0])
    assert (first("round"), first("floor")) == (2, 1)


@pytest.mark.parametrize("interpolation", ("nearest", "bilinear", "bicubic", "lanczos"))
def test_the_filter_is_that_of_pillow(image, interpolation):
    pixels = image(40, 40, 3)
    expected = PIL.Image.fromarray(pixels).resize((16, 16), PIL.Image.Resampling[interpolation.upper()])
    resized = Preprocessing(image_size=16, crop_ratio=1.0, interpolation=interpolation).resize(pixels)
    assert np.array_equal(resized, np.asarray(expected))


def test_a_path_an_open_file_and_an_array_are_prepared_alike(image, tmp_path):
    pixels = image(30, 40, 3)
    PIL.Image.fromarray(pixels).save(tmp_path / "image.png")
    preprocessing = Preprocessing(image_size=16)
    expected = preprocessing(pixels)
    with open(tmp_path / "image.png", "rb") as file:
        for same in (tmp_path / "image.png", str(tmp_path / "image.png"), file, PIL.Image.fromarray(pixels)):
            assert np.array_equal(preprocessing(same), expected)


def test_a_pil_image_is_prepared_like_the_file_it_is_from(image):
    # Turned upright, composited over white and converted from 16 bits, as by `read_image`.
    pillow = PIL.Image.fromarray(np.dstack([image(30, 40, 3), np.zeros((30, 40), np.uint8)]))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    pillow.save(file := io.BytesIO(), "PNG", exif=exif)
    preprocessing = Preprocessing(image_size=(40, 30), crop_ratio=1.0, **PLAIN)
    assert np.array_equal(preprocessing(PIL.Image.open(file)), preprocessing(io.BytesIO(file.getvalue())))
    assert np.array_equal(preprocessing(pillow.rotate(90, expand=True)), np.ones((40, 30, 3)))
    deep = PIL.Image.fromarray(np.full((30, 40), 32768, np.uint16))
    assert np.allclose(preprocessing(deep), 0.5, atol=0.01)


def test_grey_images_have_one_number_each(image, tmp_path):
    PIL.Image.fromarray(image(30, 40, 3)).save(tmp_path / "image.png")
    preprocessing = Preprocessing(image_size=16, mean=[0.5], std=[0.25])
    assert preprocessing.channels == 1
    assert preprocessing(tmp_path / "image.png").shape == (16, 16, 1)
    assert np.allclose(preprocessing(np.full((9, 9, 1), 255, np.uint8)), 2)


@pytest.mark.parametrize("dtype", (np.uint8, np.float32))
def test_batches_are_normalised_in_numpy_and_under_jit(image, dtype):
    pixels = image(2, 5, 7, 3).astype(dtype)
    preprocessing = Preprocessing()
    expected = (pixels.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    ours = preprocessing.normalise(pixels)
    assert isinstance(ours, np.ndarray) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    compiled = jax.jit(preprocessing.normalise)(jnp.asarray(pixels))
    assert compiled.dtype == jnp.float32
    np.testing.assert_allclose(compiled, expected, atol=1e-6)


def test_a_preprocessing_compares_hashes_and_pickles_by_value(image):
    preprocessing = Preprocessing(image_size=24, mean=[0.1], std=(0.2,), class_names=["a", "é"])
    assert preprocessing.image_size == (24, 24) and preprocessing.mean == (0.1,) and preprocessing.std == (0.2,)
    assert preprocessing == Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict())))
    assert hash(preprocessing) == hash(dataclasses.replace(preprocessing))
    again = pickle.loads(pickle.dumps(preprocessing.resize))
    assert isinstance(again, Transform)
    pixels = image(50, 70, 1)
    assert np.array_equal(again(pixels, np.random.default_rng(0)), preprocessing.resize(pixels))


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"image_size": 0}, ValueError, "`image_size` is 0"),
        ({"crop_ratio": 0}, ValueError, "`crop_ratio` is 0"),
        ({"crop_ratio": 1.2}, ValueError, "`crop_ratio` is 1.2"),
        ({"crop_ratio": math.nan}, ValueError, "`crop_ratio` is nan"),
        ({"interpolation": "cubic"}, ValueError, "`interpolation` is 'cubic'.*Did you mean 'bicubic'"),
        ({"crop_offset": "ceil"}, ValueError, "`crop_offset` is 'ceil'; expected one of 'round', 'floor'"),
        ({"mean": 0.5}, ValueError, "`mean` is 0.5; expected one number for each channel"),
        ({"mean": None}, ValueError, "`mean` is None"),
        ({"mean": (0.1, math.nan, 0.2)}, ValueError, "`mean` is .*nan"),
        ({"mean": (123.7, 116.3, 103.5)}, ValueError, r"`mean` is \(123.7.*pixels up to 255, divide them by 255"),
        ({"std": (58.4, 57.1, 57.4)}, ValueError, r"`std` is \(58.4.*divide them by 255"),
        ({"std": (0.1, 0.0, 0.2)}, ValueError, "`std` is .*above 0"),
        ({"mean": (0.1, 0.2)}, ValueError, r"`mean` is \(0.1, 0.2\) and `std` .*expected one number per channel"),
        ({"class_names": "ab"}, TypeError, "`class_names` is 'ab'"),
        ({"class_names": ("a", 1)}, TypeError, "`class_names` is"),
        ({"class_names": ("a", "b", "a")}, ValueError, "`class_names` has 'a' twice"),
    ],
    ids=str,
)
def test_bad_fields(keywords, kind, message, unchecked):
    with pytest.raises(kind, match=f"(?s){message}"):
        Preprocessing(**keywords)


@pytest.mark.parametrize("array", (np.asarray, jnp.asarray), ids=("numpy", "jax"))
def test_values_that_are_not_pixels(array, image, unchecked):
    normalise, pixels = Preprocessing().normalise, image(9, 8, 3)
    with pytest.warns(UserWarning, match="values from 0.* to .*; expected pixels from 0 to 255.*divided by 255"):
        normalise(array(pixels / np.float32(255)))
    for other in (normalise(array(pixels)), 257 * array(pixels, np.int32), array(pixels, np.float32) * np.nan):
        with pytest.warns(UserWarning, match="`images` have values from .* to .*; expected pixels from 0 to 255"):
            normalise(other)
    # Accepted: floats up to 255, and images that are black except for one level.
    normalise(array(pixels, np.float32))
    normalise(array(pixels // 255, np.float32))


@pytest.mark.parametrize("shape", ((9, 9), (9, 9, 4), (9, 9, 1), (1, 9, 9, 3)))
def test_arrays_that_are_not_an_image(shape, unchecked):
    with pytest.raises(ValueError, match=r"`image` has shape .*; expected \(height, width, 3\)"):
        Preprocessing()(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"dtype float64; expected"):
        Preprocessing()(np.zeros((9, 9, 3)))
    with pytest.raises(ValueError, match=r"`images` has shape \(9, 9, 4\); expected 3 channels"):
        Preprocessing().normalise(np.zeros((9, 9, 4), np.uint8))


def test_fields_that_are_none(unchecked):
    with pytest.raises(ValueError, match=r"expected a dictionary with the keys class_names, crop_offset"):
        Preprocessing.from_dict({"mean": [0.5]})
