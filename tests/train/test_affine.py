from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from levitax.train import random_affine


ALL: dict[str, Any] = {"max_shift": 2.0, "max_rotation": 30.0, "max_scale": 0.2}
KEYS = jax.random.split(jax.random.key(0), 64)


@pytest.fixture
def image(images):
    return images(12, 9, 3)


def moved_blobs(**maxima):
    """Returns the position of a blob after transforms with each key. It starts 8 pixels to the right of the centre."""
    rows, columns = np.meshgrid(np.arange(41.0) - 20, np.arange(41.0) - 20, indexing="ij")
    blob = jnp.asarray(np.exp(-(rows**2 + (columns - 8) ** 2) / 8)[:, :, None], jnp.float32)
    moved = np.asarray(jax.jit(jax.vmap(lambda key: random_affine(blob, **maxima, key=key)[:, :, 0]))(KEYS))
    mass = moved.sum((1, 2))
    return np.stack([(moved * rows).sum((1, 2)) / mass, (moved * columns).sum((1, 2)) / mass])


def spreads_over(values, low, high):
    """Whether all values are within the limits and come near both of them."""
    margin = 0.1 * (high - low)
    return low - 0.01 <= values.min() < low + margin and high - margin < values.max() <= high + 0.01


def test_without_maxima_it_is_the_identity(image, key):
    np.testing.assert_allclose(random_affine(image, fill=0.5, key=key), image, rtol=0, atol=1e-6)


def test_shifts_are_within_the_maximum():
    rows, columns = moved_blobs(max_shift=3.0)
    assert spreads_over(rows, -3, 3) and spreads_over(columns - 8, -3, 3)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.5


def test_rotations_are_within_the_maximum():
    rows, columns = moved_blobs(max_rotation=30.0)
    assert spreads_over(np.degrees(np.arctan2(rows, columns)), -30, 30)
    np.testing.assert_allclose(np.hypot(rows, columns), 8, atol=0.01)


def test_changes_of_size_are_within_the_maximum():
    rows, columns = moved_blobs(max_scale=0.2)
    assert spreads_over(columns / 8, 0.8, 1.2)
    np.testing.assert_allclose(rows, 0, atol=0.01)


@pytest.mark.parametrize("index", range(4))
def test_pixels_from_outside_have_the_fill_colour(index, image):
    # The same as moving a larger image, padded with the fill colour.
    margins = (9, 9), (9, 9), (0, 0)
    large = random_affine(jnp.pad(image, margins, constant_values=7.0), **ALL, key=KEYS[index])
    filled = random_affine(image, **ALL, fill=7.0, key=KEYS[index])
    assert filled.shape == image.shape
    assert jnp.isclose(filled, 7).any()
    np.testing.assert_allclose(filled, large[9:-9, 9:-9], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "maxima", ({"max_scale": 5.0}, {"max_shift": float("nan")}, {"max_rotation": 181.0}, {"max_shift": -1.0}), ids=str
)
def test_maxima_out_of_range(maxima, image, key, unchecked):
    with pytest.raises(ValueError, match=f"`{next(iter(maxima))}` is .*; expected a number from 0 to"):
        random_affine(image, **maxima, key=key)
    with pytest.raises(ValueError, match=r"`image` has shape \(1, .*; .* use `jax.vmap`"):
        random_affine(image[None], key=key)


def test_the_key_decides_alone(image):
    affine = partial(random_affine, **ALL)
    moved = affine(image, key=KEYS[0])
    assert jnp.array_equal(affine(image, key=KEYS[0]), moved)
    assert not jnp.allclose(affine(image, key=KEYS[1]), moved, atol=0.1)
    np.testing.assert_allclose(affine(-2 * image, key=KEYS[0]), -2 * moved, rtol=1e-5, atol=1e-5)


def test_a_batch_may_be_filled_with_a_colour_of_its_own(images):
    batch = images(3, 12, 9, 3)

    @jax.jit
    def augment(batch, keys):
        affine = partial(random_affine, **ALL, fill=batch.min())
        return jax.vmap(lambda image, key: affine(image, key=key))(batch, keys)

    moved = augment(batch, KEYS[:3])
    for index in range(3):
        alone = random_affine(batch[index], **ALL, fill=float(batch.min()), key=KEYS[index])
        np.testing.assert_allclose(moved[index], alone, rtol=0, atol=1e-4)
