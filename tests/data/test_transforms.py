import math
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from levitax.data import IMAGENET_MEAN, TrainTransform, Transform
from levitax.data._transforms import random_crop


PLAIN = {"crop_scale": None, "flip_probability": 0.0, "rand_augment": 0.0}


@pytest.fixture
def make_image():
    """Makes an image of noise, in grey or in colour."""

    def make_image(*shape):
        return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)

    return make_image


def rng(seed=0):
    return np.random.default_rng(seed)


def resized(pixels, size):
    """Resizes with Pillow to (height, width)."""
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).reshape(*size, -1)


# Crops.


def crops(height, width, scale, number=2000):
    generator = rng()
    return np.array([random_crop(height, width, scale, generator) for _ in range(number)]).T


@pytest.mark.parametrize(("height", "width"), [(300, 300), (240, 400), (400, 210)])
@pytest.mark.parametrize("scale", ((0.08, 1.0), (0.08, 0.3), (0.25, 0.35)))
def test_crops_are_within_the_image_and_the_limits(height, width, scale):
    top, left, rows, columns = crops(height, width, scale)
    assert (top >= 0).all() and (left >= 0).all() and (rows > 0).all() and (columns > 0).all()
    assert (top + rows <= height).all() and (left + columns <= width).all()
    # Sides are rounded to whole pixels.
    ratio, share = columns / rows, rows * columns / (height * width)
    assert 0.73 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.37
    assert share.max() < 1.02 * scale[1] and 0.98 * scale[0] < share.min() < 1.15 * scale[0]


def test_areas_and_shapes_are_drawn_evenly():
    # Every draw fits.
    _, _, rows, columns = crops(1000, 1000, (0.1, 0.5))
    share, ratio = rows * columns / 1e6, np.log(columns / rows) / math.log(4 / 3)
    for drawn in ((share - 0.1) / 0.4, (ratio + 1) / 2):
        np.testing.assert_allclose(np.quantile(drawn, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.03)
    assert abs(np.corrcoef(share, ratio)[0, 1]) < 0.06


def test_places_are_drawn_evenly():
    top, left, rows, columns = crops(200, 300, (0.1, 0.5))
    places = (top + 0.5) / (200 - rows + 1), (left + 0.5) / (300 - columns + 1)
    for place in places:
        np.testing.assert_allclose(np.quantile(place, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.03)
    assert (top == 0).any() and (top + rows == 200).any() and (left == 0).any() and (left + columns == 300).any()
    assert abs(np.corrcoef(*places)[0, 1]) < 0.06


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (30, 3000, (0, 1480, 30, 40)),
        (3000, 30, (1480, 0, 40, 30)),
        (11, 3000, (0, 1492, 11, 15)),
        # As wide as allowed; no other shape of this area fits.
        (1000, 1330, (0, 0, 1000, 1330)),
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_if_no_draw_fits_the_centre_is_cropped(height, width, expected, seed):
    assert random_crop(height, width, (1.0, 1.0), rng(seed)) == expected


def test_a_crop_is_of_integers_and_drawn_by_the_generator_alone():
    crop = random_crop(200, 300, (0.08, 1.0), rng())
    assert all(type(number) is int for number in crop)
    assert random_crop(200, 300, (0.08, 1.0), rng()) == crop
    assert len({random_crop(200, 300, (0.08, 1.0), rng(seed)) for seed in range(20)}) == 20


# The whole transform.


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("size", ((32, 32), (24, 40), (40, 24)))
@pytest.mark.parametrize("shape", ((50, 70), (24, 40), (1, 90), (1, 1)))
def test_any_shape_is_brought_to_any_size(make_image, shape, size, channels):
    transform = TrainTransform(image_size=size)
    for seed in range(5):
        pixels = transform(make_image(*shape, channels), rng(seed))
        assert pixels.shape == (*size, channels) and pixels.dtype == np.uint8


@pytest.mark.parametrize("channels", (1, 3))
def test_with_everything_off_images_are_only_resized(make_image, channels):
    pixels = make_image(50, 70, channels)
    assert np.array_equal(TrainTransform(image_size=(50, 70), **PLAIN)(pixels, rng()), pixels)
    smaller = TrainTransform(image_size=(24, 40), **PLAIN)(pixels, rng())
    assert np.array_equal(smaller, resized(pixels, (24, 40)))


@pytest.mark.parametrize("channels", (1, 3))
def test_the_crop_is_resized(make_image, channels):
    pixels = make_image(50, 70, channels)
    transform = TrainTransform(image_size=(24, 40), **{**PLAIN, "crop_scale": (0.2, 0.6)})
    for seed in range(10):
        top, left, rows, columns = random_crop(50, 70, (0.2, 0.6), rng(seed))
        cut = pixels[top : top + rows, left : left + columns]
        assert np.array_equal(transform(pixels, rng(seed)), resized(cut, (24, 40)))


@pytest.mark.parametrize("size", ((20, 30), (16, 10)))
def test_images_are_mirrored_left_and_right(make_image, size):
    pixels = make_image(20, 30, 3)
    mirrored = TrainTransform(image_size=size, **{**PLAIN, "flip_probability": 1.0})(pixels, rng())
    assert np.array_equal(mirrored[:, ::-1], TrainTransform(image_size=size, **PLAIN)(pixels, rng()))


@pytest.mark.parametrize("probability", (0.2, 0.5))
@pytest.mark.parametrize("size", ((4, 4), (6, 6)))
def test_images_are_mirrored_with_the_given_probability(make_image, size, probability):
    pixels, generator = make_image(4, 4, 1), rng()
    transform = TrainTransform(image_size=size, **{**PLAIN, "flip_probability": probability})
    upright = TrainTransform(image_size=size, **PLAIN)(pixels, rng())
    mirrored = [not np.array_equal(transform(pixels, generator), upright) for _ in range(2000)]
    assert abs(np.mean(mirrored) - probability) < 0.04


def test_the_defaults_are_the_papers():
    transform = TrainTransform()
    assert transform.image_size == (224, 224) and transform.crop_scale == (0.08, 1.0)
    assert transform.flip_probability == 0.5 and transform.rand_augment == 9.0


@pytest.mark.parametrize("channels", (1, 3))
def test_pixels_from_outside_have_the_mean_colour(channels):
    transform = TrainTransform(image_size=(20, 20), **{**PLAIN, "rand_augment": 9.0})
    generator = rng()
    corners = Counter(tuple(transform(np.zeros((20, 20, channels), np.uint8), generator)[0, 0]) for _ in range(300))
    mean = np.round(255 * np.array(IMAGENET_MEAN))
    assert corners[tuple(mean if channels == 3 else [np.round(mean.mean())])] > 30


def test_an_image_in_memory_is_not_written_to(make_image):
    pixels = make_image(20, 20, 3)
    pixels.setflags(write=False)
    generator = rng()
    for crop_scale in (None, (0.08, 1.0)):
        for magnitude in (0.0, 9.0):
            transform = TrainTransform(image_size=(20, 20), crop_scale=crop_scale, rand_augment=magnitude)
            assert {transform(pixels, generator).shape for _ in range(20)} == {(20, 20, 3)}
    assert np.array_equal(pixels, make_image(20, 20, 3))


def test_the_generator_decides_alone(make_image):
    transform, pixels = TrainTransform(image_size=(24, 40)), make_image(50, 70, 3)
    assert all(np.array_equal(transform(pixels, rng(seed)), transform(pixels, rng(seed))) for seed in range(10))
    assert len({transform(pixels, rng(seed)).tobytes() for seed in range(10)}) == 10


@pytest.mark.parametrize(
    "transform",
    (
        TrainTransform(image_size=(24, 40), crop_scale=(0.2, 0.7), flip_probability=0.3, rand_augment=5.0),
        TrainTransform(image_size=(24, 40), crop_scale=None),
    ),
    ids=("train", "whole"),
)
def test_transforms_pickle(make_image, transform):
    again = pickle.loads(pickle.dumps(transform))
    assert again == transform and isinstance(transform, Transform)
    assert np.array_equal(again(make_image(50, 70, 3), rng()), transform(make_image(50, 70, 3), rng()))


def test_one_number_is_both_sizes():
    assert TrainTransform(image_size=28) == TrainTransform(image_size=(28, 28))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"image_size": 0}, "`image_size` is 0"),
        ({"image_size": (1, 2, 3)}, "`image_size` is .*one for height and width"),
        ({"crop_scale": (0.5, 0.1)}, r"`crop_scale` is \(0.5, 0.1\)"),
        ({"crop_scale": 0.5}, "`crop_scale` is 0.5"),
        ({"flip_probability": 1.5}, "`flip_probability` is 1.5; expected a number from 0 to 1"),
        ({"rand_augment": 11}, "`rand_augment` is 11; expected a number from 0 to 10"),
        ({"rand_augment": True}, "`rand_augment` is True"),
    ],
)
def test_bad_fields(keywords, message, unchecked):
    with pytest.raises((TypeError, ValueError), match=message):
        TrainTransform(**keywords)
