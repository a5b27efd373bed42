from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from levitax.train import random_erase


KEYS = jax.random.split(jax.random.key(0), 1000)
HEIGHT, WIDTH = 48, 60
# A value that the noise never has.
PAPER = 99.0


def erase_all(image, probability):
    """Erases the image with each of the keys."""
    erase = jax.vmap(lambda key: random_erase(image, probability=probability, key=key))
    return np.asarray(jax.jit(erase)(KEYS))


@pytest.fixture(scope="module")
def erased():
    return erase_all(jnp.full((HEIGHT, WIDTH, 2), PAPER), 1.0)


@pytest.fixture(scope="module")
def boxes(erased):
    """Top, left, height and width of the erased box of each image."""
    gone = erased[..., 0] != PAPER
    rows, columns = gone.any(2), gone.any(1)
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)])


def test_one_rectangle_of_all_channels_is_erased(erased, boxes):
    gone = erased != PAPER
    assert np.array_equal(gone[..., 0], gone[..., 1])
    top, left, rows, columns = (side[:, None, None] for side in boxes)
    y, x = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    assert np.array_equal(gone[..., 0], (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns))


def test_areas_are_drawn_from_2_to_33_percent(boxes):
    share = boxes[2] * boxes[3] / (HEIGHT * WIDTH)
    # Sides are rounded to pixels.
    assert 0.015 < share.min() < 0.03 and 0.32 < share.max() < 0.345
    # Drawn evenly, except that long boxes may not fit.
    assert abs((share < 0.1767).mean() - 0.5) < 0.05


def test_shapes_are_drawn_from_three_to_ten_to_ten_to_three(boxes):
    share = boxes[2] * boxes[3] / (HEIGHT * WIDTH)
    # Small boxes fit in every shape, and boxes above 5 % are hardly changed by rounding.
    ratio = np.log(boxes[2] / boxes[3])[(share > 0.05) & (share < 0.15)]
    limit = np.log(1 / 0.3)
    assert -1.1 * limit < ratio.min() < -0.9 * limit and 0.9 * limit < ratio.max() < 1.1 * limit
    assert abs(ratio.mean()) < 0.1 and abs(ratio.std() / (limit / 3**0.5) - 1) < 0.05


def test_places_are_drawn_evenly(boxes):
    top, left, rows, columns = boxes
    for first, size, side in ((top, rows, HEIGHT), (left, columns, WIDTH)):
        assert (first >= 0).all() and (first + size <= side).all()
        assert (first == 0).any() and (first + size == side).any()
        assert abs(np.mean((first + 0.5) / (side - size + 1)) - 0.5) < 0.04
    assert abs(np.corrcoef(top / (HEIGHT - rows + 1), left / (WIDTH - columns + 1))[0, 1]) < 0.1


def test_noise_is_normal_and_drawn_for_each_value(erased):
    noise = erased[erased != PAPER]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((np.abs(noise) > 2).mean() - 0.0455) < 0.002
    for image in erased[:20]:
        numbers = image[image != PAPER]
        assert len(np.unique(numbers)) > 0.99 * len(numbers)


@pytest.mark.parametrize("probability", (0.0, 0.6, 1.0))
def test_it_erases_with_the_given_probability(probability):
    share = (erase_all(jnp.full((8, 8, 1), PAPER), probability) != PAPER).any((1, 2, 3)).mean()
    assert abs(share - probability) <= 0.06 * (0 < probability < 1)


@pytest.mark.parametrize("probability", (25.0, -1.0, float("nan")))
def test_a_probability_is_a_share(probability, images, unchecked):
    with pytest.raises(ValueError, match=r"`probability` is .*; expected a number from 0 to 1"):
        random_erase(images(8, 8, 1), probability=probability, key=KEYS[0])


def test_a_batch_is_refused_where_an_image_belongs(images, unchecked):
    with pytest.raises(ValueError, match=r"`image` has shape \(2, 8, 8, 1\); .* use `jax.vmap`"):
        random_erase(images(2, 8, 8, 1), key=KEYS[0])


def test_the_probability_is_a_quarter_by_default(images):
    image = images(8, 8, 1)
    erase = jax.jit(jax.vmap(lambda key: random_erase(image, key=key)))
    assert np.array_equal(erase(KEYS), erase_all(image, 0.25))


def test_the_rest_of_the_image_stays_as_it_is(images):
    image = images(16, 12, 3)
    changed = erase_all(image, 1.0) != np.asarray(image)
    assert (changed.all(3) == changed.any(3)).all()
    share = changed[..., 0].mean((1, 2))
    assert 0 < share.min() and share.max() < 0.4


def test_the_key_decides_alone(images):
    image = images(16, 12, 3)
    erase = jax.jit(partial(random_erase, probability=1.0))
    erased = erase(image, key=KEYS[0])
    assert jnp.array_equal(erase(image, key=KEYS[0]), erased)
    assert not jnp.array_equal(erase(image, key=KEYS[1]), erased)
    other = erase(image + 1, key=KEYS[0])
    assert jnp.array_equal(other == image + 1, erased == image)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_the_dtype_is_kept(images, dtype):
    image = images(16, 12, 3).astype(dtype)
    erased = jax.jit(partial(random_erase, probability=1.0))(image, key=KEYS[0])
    assert erased.dtype == dtype and not jnp.array_equal(erased, image)


@pytest.mark.parametrize("shape", ((1, 1, 3), (1, 200, 1)))
def test_if_no_rectangle_fits_nothing_is_erased(images, shape):
    image = images(*shape)
    assert (erase_all(image, 1.0) == np.asarray(image)).all()
