import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from levitax.data import rand_augment
from levitax.data._rand_augment import apply, OPERATIONS


FILL = {"RGB": (124, 116, 104), "L": 115}


@pytest.fixture
def make_image():
    """Makes a smooth image with some noise, 20 rows by 30 columns."""

    def make_image(mode):
        rows, columns = np.mgrid[:20, :30]
        pixels = np.stack([6 * rows + 3 * columns, 200 - 5 * rows, 40 + 5 * columns], -1)
        pixels = pixels + np.random.default_rng(0).integers(30, size=pixels.shape)
        return Image.fromarray(pixels.astype(np.uint8)).convert(mode)

    return make_image


@pytest.fixture
def draw(make_image, monkeypatch):
    """Returns the names and strengths of the operations applied to each of `count` images. `tests/parity` compares the
    operations with timm's."""
    done = []

    def recorded(name):
        def operation(pil, image, strength, fill):
            done.append((name, strength))
            return image

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, recorded(name))

    def draw(count, **keywords):
        rng, image, by_image = np.random.default_rng(0), make_image("L"), []
        for _ in range(count):
            done.clear()
            rand_augment(image, rng, **keywords, fill=0)
            by_image.append(tuple(done))
        return by_image

    return draw


def strengths(done):
    return np.array([strength for operations in done for _, strength in operations])


def test_each_of_two_operations_is_done_half_of_the_time(draw):
    counts = Counter(len(operations) for operations in draw(2000))
    assert counts.keys() == {0, 1, 2}
    for number, probability in enumerate((1 / 4, 1 / 2, 1 / 4)):
        assert abs(counts[number] / 2000 - probability) < 0.03


def test_fifteen_operations_are_equally_likely(draw):
    counts = Counter(name for operations in draw(3000) for name, _ in operations)
    assert len(OPERATIONS) == 15 and counts.keys() == OPERATIONS.keys()
    assert all(abs(count / (3000 / 15) - 1) < 0.3 for count in counts.values())


def test_an_operation_may_be_drawn_twice(draw):
    pairs = [operations for operations in draw(5000) if len(operations) == 2]
    twice = np.mean([first == second for (first, _), (second, _) in pairs])
    assert abs(twice - 1 / 15) < 0.02


@pytest.mark.parametrize("magnitude", (3.0, 5.0, 8.0))
def test_strengths_are_normal_about_the_magnitude(draw, magnitude):
    drawn = 10 * np.abs(strengths(draw(2000, magnitude=magnitude)))
    assert abs(drawn.mean() - magnitude) < 0.03 and abs(drawn.std() - 0.5) < 0.03
    assert abs((np.abs(drawn - magnitude) > 1).mean() - 0.0455) < 0.015


@pytest.mark.parametrize("magnitude", (0.0, 9.0, 9.7, 10.0))
def test_strengths_are_kept_within_the_limits(draw, magnitude):
    drawn = 10 * np.abs(strengths(draw(2000, magnitude=magnitude)))
    assert drawn.min() >= 0 and drawn.max() == (10 if magnitude else pytest.approx(2, abs=0.5))
    above = lambda limit: math.erfc((limit - magnitude) / (0.5 * 2**0.5)) / 2
    assert abs((drawn == 10).mean() - above(10)) < 0.03
    assert abs((drawn == 0).mean() - (1 - above(0))) < 0.03


def test_the_magnitude_is_9_by_default(draw):
    assert draw(50) == draw(50, magnitude=9.0) != draw(50, magnitude=8.9)


def test_both_directions_are_equally_likely(draw):
    by_name = {name: [] for name in OPERATIONS}
    for operations in draw(3000):
        for name, strength in operations:
            by_name[name].append(strength > 0)
    assert all(abs(np.mean(positive) - 0.5) < 0.2 for positive in by_name.values())
    assert abs(np.mean(np.concatenate(list(by_name.values()))) - 0.5) < 0.03


@pytest.mark.parametrize("mode", FILL)
def test_images_are_changed_and_keep_their_mode_and_size(make_image, mode):
    original = make_image(mode)
    rng = np.random.default_rng(0)
    results = [rand_augment(original, rng, fill=FILL[mode]) for _ in range(200)]
    assert {(result.mode, result.size) for result in results} == {(mode, (30, 20))}
    assert np.array_equal(original, make_image(mode))
    # A quarter of the images stay as they are, and some operations do not change this image.
    different = np.mean([not np.array_equal(result, original) for result in results])
    assert 0.6 < different <= 0.8


@pytest.mark.parametrize("mode", FILL)
def test_the_generator_decides_alone(make_image, mode):
    augment = lambda seed: np.asarray(rand_augment(make_image(mode), np.random.default_rng(seed), fill=FILL[mode]))
    assert all(np.array_equal(augment(seed), augment(seed)) for seed in range(20))
    assert len({augment(seed).tobytes() for seed in range(20)}) > 10


@pytest.mark.parametrize("strength", (-0.9, 0.0, 0.6, 1.0))
@pytest.mark.parametrize("name", OPERATIONS)
def test_grey_images_are_changed_as_in_colour(make_image, name, strength):
    grey = make_image("L")
    alone = apply(name, grey, strength, 115)
    colour = apply(name, grey.convert("RGB"), strength, (115, 115, 115))
    assert alone.mode == "L" and alone.size == grey.size
    difference = np.asarray(colour).astype(int) - np.asarray(alone)[:, :, None]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("mode", FILL)
@pytest.mark.parametrize("name", ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"))
def test_pixels_from_outside_have_the_fill_colour(name, mode):
    black = Image.new(mode, (40, 40))
    pixels = np.asarray(apply(name, black, 1.0, FILL[mode])).reshape(1600, -1)
    assert (pixels == FILL[mode]).all(1).any() and (pixels == 0).all(1).any()
