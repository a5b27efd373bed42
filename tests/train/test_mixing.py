from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from levitax.train import cutmix, mix, mixup, one_hot


HEIGHT, WIDTH = 8, 12
shares = pytest.mark.parametrize("share", (0.0, 0.3, 1.0))


@pytest.fixture
def x(images):
    return images(5, HEIGHT, WIDTH, 2)


@pytest.fixture
def targets():
    return one_hot(jnp.array([3, 1, 0, 2, 2]), 4)


def blended(array, share):
    array = np.asarray(array, np.float64)
    return share * array + (1 - share) * array[::-1]


@shares
def test_mixup_blends_each_image_with_the_one_in_reverse_order(share, x, targets):
    mixed, mixed_targets = mixup(x, targets, jnp.float32(share))
    np.testing.assert_allclose(mixed, blended(x, share), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixed_targets, blended(targets, share), rtol=1e-6)


# Share of the first image, centre of the box, and its rows and columns.
BOXES: dict[str, tuple[float, tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "in the middle": (0.75, (4, 6), (2, 6), (3, 9)),
    "cut off above": (0.75, (0, 6), (0, 2), (3, 9)),
    "cut off below and on the right": (0.75, (7, 11), (5, 8), (8, 12)),
    "all of the image": (0.0, (4, 6), (0, 8), (0, 12)),
    "all, off the centre": (0.0, (0, 0), (0, 4), (0, 6)),
    "nothing": (1.0, (4, 6), (0, 0), (0, 0)),
    # The sides times 0.707 are 5.6 by 8.4 pixels, rounded down.
    "of odd height": (0.5, (4, 6), (2, 7), (2, 10)),
}


@pytest.mark.parametrize(("share", "centre", "rows", "columns"), BOXES.values(), ids=BOXES)
def test_cutmix_pastes_a_box_and_blends_by_its_true_area(share, centre, rows, columns, x, targets):
    mixed, mixed_targets = cutmix(x, targets, jnp.float32(share), jnp.array(centre))
    expected = np.array(x)
    expected[:, slice(*rows), slice(*columns)] = np.asarray(x)[::-1, slice(*rows), slice(*columns)]
    np.testing.assert_array_equal(mixed, expected)
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    np.testing.assert_allclose(mixed_targets, blended(targets, 1 - area / (HEIGHT * WIDTH)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "function",
    (
        lambda x, targets: mixup(x, targets, jnp.float32(0.3)),
        lambda x, targets: cutmix(x, targets, jnp.float32(0.75), jnp.array([4, 6])),
        jax.jit(lambda x, targets: mix(x, targets, key=jax.random.key(0))),
    ),
    ids=("mixup", "cutmix", "mix"),
)
def test_targets_may_be_any_pytree(function, x, targets):
    several = {"labels": targets, "others": (jnp.arange(5.0), jnp.arange(30.0).reshape(5, 2, 3))}
    _, ours = function(x, several)
    # The first image is the only one of its class.
    share = float(ours["labels"][0, 3])
    assert 0.01 < share < 0.99
    assert jax.tree.structure(ours) == jax.tree.structure(several)
    for one, before in zip(jax.tree.leaves(ours), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(one, blended(before, share), rtol=1e-5, atol=1e-6)


KEYS = jax.random.split(jax.random.key(0), 1000)


def drawn(**keywords):
    """Mixes a black and a white image with each of the keys. Returns whether each draw is mixup, whether it is CutMix,
    and the share of the black image by its target."""
    black_and_white = jnp.zeros((2, 24, 24, 1)).at[1].set(1)
    call = jax.jit(jax.vmap(lambda key: mix(black_and_white, jnp.eye(2), **keywords, key=key)))
    mixed, targets = map(np.asarray, call(KEYS))
    # The share of the white image in the pixels and in the target.
    np.testing.assert_allclose(targets[:, 0, 1], mixed[:, 0].mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed[:, 0], 1 - mixed[:, 1], atol=1e-6)
    fades = np.ptp(mixed[:, 0], axis=(1, 2, 3)) == 0
    return fades & (mixed[:, 0].max((1, 2, 3)) > 0), ~fades, targets[:, 0, 0]


def about(array, mean):
    """Whether the mean of the array is within four standard deviations of `mean`."""
    return abs(array.mean() - mean) < 4 * array.std() / np.sqrt(len(array)) + 1e-12


@pytest.mark.slow
def test_both_kinds_come_half_of_the_time():
    faded, pasted, shares = drawn()
    assert about(faded, 0.5) and about(pasted, 0.5)
    # The paper draws mixup's share from Beta(0.8, 0.8).
    assert about(shares[faded], 0.5) and about((shares[faded] - 0.5) ** 2, 1 / (4 * (2 * 0.8 + 1)))


@pytest.mark.slow
def test_numbers_may_be_traced(x, targets, key):
    numbers = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "probability": 0.7, "switch_probability": 0.4}
    mixed = jax.jit(lambda numbers: mix(x, targets, **numbers, key=key))(numbers)
    for ours, expected in zip(mixed, jax.jit(lambda: mix(x, targets, **numbers, key=key))(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


OFF: dict[str, dict[str, Any]] = {
    "probability": {"probability": 0.0},
    "alphas": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0},
}


@pytest.mark.parametrize("keywords", OFF.values(), ids=OFF)
def test_mixing_may_be_off(keywords, x, targets, key):
    mixed, mixed_targets = mix(x, targets, **keywords, key=key)
    assert jnp.array_equal(mixed, x) and jnp.array_equal(mixed_targets, targets)


@pytest.mark.slow
def test_an_alpha_of_zero_leaves_a_kind_out():
    # Also if `switch_probability` selects only that kind.
    faded, _, shares = drawn(mixup_alpha=2.0, cutmix_alpha=0.0, switch_probability=1.0)
    assert faded.all()
    assert about((shares - 0.5) ** 2, 1 / (4 * (2 * 2.0 + 1)))
    faded, pasted, _ = drawn(mixup_alpha=0.0, cutmix_alpha=1.0, switch_probability=0.0)
    # A box may be smaller than a pixel.
    assert not faded.any() and pasted.mean() > 0.98


def test_the_share_of_cutmix_and_the_probability_are_as_given():
    faded, pasted, _ = drawn(probability=0.6, switch_probability=0.25)
    assert about(faded, 0.6 * 0.75) and about(pasted, 0.6 * 0.25)


def test_the_size_of_a_box_is_drawn_from_beta():
    # A share near 1/2 gives a box of half the area. The border cuts it to no less than a quarter. Centres are drawn
    # everywhere, so some boxes are whole and some are cut that much.
    _, pasted, shares = drawn(mixup_alpha=0.0, cutmix_alpha=1000.0)
    assert pasted.all()
    assert 0.49 < shares.min() < 0.56 and 0.85 < shares.max() < 0.9


def test_the_key_decides_alone(x, targets):
    mixing = jax.jit(partial(mix, mixup_alpha=0.8, cutmix_alpha=1.0))
    ours, again = (mixing(x, targets, key=KEYS[0]) for _ in range(2))
    assert jnp.array_equal(ours[0], again[0]) and jnp.array_equal(ours[1], again[1])
    assert not jnp.allclose(ours[0], mixing(x, targets, key=KEYS[1])[0], atol=1e-2)


def test_images_keep_their_dtype(x, targets):
    x = x.astype("bfloat16")
    assert mixup(x, targets, jnp.float32(0.3))[0].dtype == "bfloat16"
    assert cutmix(x, targets, jnp.float32(0.75), jnp.array([4, 6]))[0].dtype == "bfloat16"
    assert mix(x, targets, key=KEYS[0])[0].dtype == "bfloat16"
