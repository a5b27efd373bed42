from dataclasses import replace
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from levitax.data import Preprocessing
from levitax.train import make_step, prepare, RECIPES, TrainState


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# A recipe without random augmentation.
PLAIN = replace(
    RECIPES["finetune"],
    batch_size=8,
    accumulate=1,
    max_shift=0.0,
    max_rotation=0.0,
    max_scale=0.0,
    erase_probability=0.0,
    mixup=0.0,
    cutmix=0.0,
)


@pytest.fixture
def pixels():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 12, 10, 3)), jnp.uint8)


@pytest.fixture
def targets():
    return jnp.eye(8)


@cache
def compiled(recipe, preprocessing):
    return jax.jit(partial(prepare, recipe=recipe, preprocessing=preprocessing))


def run(images, targets, key, *, mean=MEAN, std=STD, **changes):
    preprocessing = Preprocessing(mean=mean, std=std)
    return compiled(replace(PLAIN, **changes), preprocessing)(images, targets, key=key)


def expected(pixels):
    return (np.asarray(pixels, np.float64) / 255 - MEAN) / STD


@pytest.mark.slow
def test_batches_on_an_explicit_mesh(pixels, targets, key):
    changes: dict[str, Any] = {"max_shift": 2.0, "erase_probability": 1.0, "mixup": 0.8, "group_size": 4}
    expected = run(pixels, targets, key, **changes)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    ours = run(jax.device_put(pixels, spread), jax.device_put(targets, spread), key, **changes)
    for one, other in zip(ours, expected, strict=True):
        assert jax.typeof(one).sharding.spec[0] == "data"
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ("float32", "int32", "bool"))
def test_pixels_are_bytes(dtype, pixels, targets, key, unchecked):
    with pytest.raises(TypeError, match=f"`images` have dtype {dtype}; expected uint8, pixels from 0 to 255"):
        run(pixels.astype(dtype), targets, key)


def test_without_anything_random_images_are_normalised(pixels, targets, key):
    images, same = run(pixels, targets, key)
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, expected(pixels), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(same, targets)


@pytest.mark.parametrize("changes", ({}, {"max_rotation": 90.0, "erase_probability": 1.0}), ids=("plain", "changed"))
def test_images_may_be_grey(changes, pixels, targets, key):
    grey = pixels[:, :, :, :1]
    images, _ = run(grey, targets, key, mean=MEAN[:1], std=STD[:1], **changes)
    assert images.shape == grey.shape and jnp.isfinite(images).all()
    close = np.isclose(images, expected(pixels)[:, :, :, :1], atol=1e-5)
    assert close.all() == (not changes)


def share_changed(images, pixels):
    """Returns the share of each image's pixels that differ from normalising alone."""
    return (np.abs(np.asarray(images) - expected(pixels)) > 1e-3).any(-1).mean((1, 2))


MOVES: dict[str, float] = {"max_shift": 3.0, "max_rotation": 90.0, "max_scale": 0.5}


@pytest.mark.parametrize("name", MOVES)
def test_each_image_is_moved_by_a_separate_draw(name, targets, key):
    # Equal images with one bright corner, so that different moves give different images. The fill is black.
    pixels = jnp.zeros((8, 12, 10, 3), jnp.uint8).at[:, 1:5, 1:4].set(255)
    images, same = run(pixels, targets, key, **{name: MOVES[name]})
    np.testing.assert_array_equal(same, targets)
    assert (share_changed(images, pixels) > 0.02).all()
    assert len(np.unique(np.asarray(images).reshape(8, -1), axis=0)) == 8
    # All values are between black and white, including pixels from outside the image.
    black, white = (np.asarray(expected(np.full((1, 1, 1, 3), value))) for value in (0, 255))
    images = np.asarray(images)
    assert (images >= black - 1e-4).all() and (images <= white + 1e-4).all()


def test_each_image_is_erased_by_a_separate_draw(pixels, targets, key):
    images, same = run(pixels, targets, key, erase_probability=0.5)
    np.testing.assert_array_equal(same, targets)
    changed = share_changed(images, pixels)
    assert len(np.unique(changed)) > 2
    assert 0 < (changed > 0).sum() < 8 and changed.max() < 0.5
    every, _ = run(pixels, targets, key, erase_probability=1.0)
    assert (share_changed(every, pixels) > 0).all()


def test_erasing_is_after_normalising(targets, key):
    # The noise is N(0, 1), whatever the spread of the normalised images.
    black = jnp.zeros((8, 32, 32, 3), jnp.uint8)
    images, _ = run(black, targets, key, std=(1e-3, 1e-3, 1e-3), erase_probability=1.0)
    noise = np.asarray(images)[np.asarray(images) > -100]
    assert noise.size > 1000
    assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.1


def test_erasing_is_before_mixing(pixels, targets, key):
    # Mixup blends the noise into the other image too.
    erased, _ = run(pixels, targets, key, erase_probability=1.0)
    mixed, blended = run(pixels, targets, key, erase_probability=1.0, mixup=0.8)
    erased, mixed, share = np.asarray(erased), np.asarray(mixed), float(blended[0, 0])
    assert 0.01 < share < 0.99
    np.testing.assert_allclose(mixed, share * erased + (1 - share) * erased[::-1], rtol=1e-4, atol=1e-5)


def test_moving_is_before_erasing(pixels, targets, key):
    moved, _ = run(pixels, targets, key, max_rotation=90.0)
    both, _ = run(pixels, targets, key, max_rotation=90.0, erase_probability=1.0)
    same = (jnp.abs(both - moved) < 1e-5).all(-1)
    # The erased region is one upright rectangle with sharp edges, which a rotation would have blurred.
    for image in np.asarray(~same):
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize("kind", ("mixup", "cutmix"))
def test_images_are_mixed_with_their_targets(kind, pixels, targets, key):
    # An alpha of 1e4 gives shares of 1/2.
    images, blended = run(pixels, targets, key, **{kind: 1e4})
    share = blended[0, 0]
    np.testing.assert_allclose(blended, share * targets + (1 - share) * targets[::-1], rtol=1e-5, atol=1e-6)
    own = np.isclose(images, expected(pixels), atol=1e-5).all(-1)
    other = np.isclose(images, expected(pixels)[::-1], atol=1e-5).all(-1)
    if kind == "mixup":
        assert abs(share - 0.5) < 0.02
        assert not own.any() and not other.any()
    else:
        # Boxes have 8 by 7 of 12 by 10 pixels; the border cuts them to no less than 4 by 3.
        assert 1 - 56 / 120 - 1e-6 <= share <= 1 - 12 / 120 + 1e-6
        assert (own ^ other).all()
        np.testing.assert_allclose(own.mean((1, 2)), share, rtol=1e-5)


def test_without_a_probability_nothing_is_mixed(pixels, targets, key):
    images, same = run(pixels, targets, key, mixup=0.8, cutmix=1.0, mix_probability=0.0)
    np.testing.assert_allclose(images, expected(pixels), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(same, targets)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "is_cutmix"), [(0.0, False), (1.0, True)])
def test_the_share_of_cutmix_is_that_of_the_recipe(share, is_cutmix, pixels, targets, key):
    images, _ = run(pixels, targets, key, mixup=1.0, cutmix=1.0, switch_probability=share)
    candidates = np.stack([expected(pixels), expected(pixels)[::-1]])
    assert np.isclose(images, candidates, atol=1e-5).any(0).all() == is_cutmix


def test_each_group_is_mixed_within_itself_by_a_separate_draw(pixels, targets, key):
    changes: dict[str, Any] = {"mixup": 1.0, "cutmix": 1.0, "group_size": 4}
    images, blended = run(pixels, targets, key, **changes)
    blended = np.asarray(blended)
    shares = blended[[0, 4], [0, 4]]
    assert (shares > 0.01).all() and (shares < 0.999).all() and abs(shares[0] - shares[1]) > 0.01
    within = [share * np.eye(4) + (1 - share) * np.eye(4)[::-1] for share in shares]
    np.testing.assert_allclose(
        blended, np.block([[within[0], np.zeros((4, 4))], [np.zeros((4, 4)), within[1]]]), rtol=1e-4, atol=1e-6
    )
    # Other images in the second group do not change the first group.
    others = jnp.concatenate([pixels[:4], 255 - pixels[4:]])
    unchanged, _ = run(others, targets, key, **changes)
    np.testing.assert_array_equal(images[:4], unchanged[:4])
    assert not np.allclose(images[4:], unchanged[4:], atol=1e-2)


def test_a_batch_that_the_groups_do_not_divide(pixels, targets, key):
    with pytest.raises(ValueError, match="`group_size` is 4, which does not divide a batch of 6 images"):
        run(pixels[:6], targets[:6], key, group_size=4)


class GroupSum(eqx.Module):
    """A model whose output is the sum over the images that share statistics."""

    scale: jax.Array

    def __call__(self, image, state, *, key=None):
        del key
        return self.scale * jax.lax.psum(image.sum(), "batch"), state


def test_mixed_images_share_their_statistics(key):
    # Images of one pixel, with powers of 2 as values: every sum is different.
    powers = (2 ** np.arange(8)).astype(np.uint8)
    recipe = replace(PLAIN, mixup=1.0, group_size=2, accumulate=2)
    call = partial(prepare, recipe=recipe, preprocessing=Preprocessing(mean=(0.0,), std=(1 / 255,)))
    _, blended = jax.jit(call)(jnp.asarray(powers.reshape(8, 1, 1, 1)), jnp.eye(8), key=key)
    mixed = {tuple(np.flatnonzero(row)) for row in np.asarray(blended)}
    assert len(mixed) == 4
    sums = []
    model, state = eqx.nn.make_with_state(GroupSum)(jnp.ones((), jnp.float32))
    optimizer = optax.sgd(0.0)

    def loss(outputs, targets):
        jax.debug.callback(lambda *arrays: sums.append(jax.tree.map(np.asarray, arrays)), outputs, targets)
        return outputs.mean()

    step = make_step(loss, accumulate=recipe.accumulate, group_size=recipe.group_size)
    images = jnp.asarray(powers, jnp.float32).reshape(8, 1, 1, 1)
    jax.block_until_ready(step(TrainState(model, state, optimizer, key=key), images, jnp.arange(8)))
    jax.effects_barrier()
    assert sum(len(numbers) for _, numbers in sums) == 8
    for outputs, numbers in sums:
        for total, number in zip(outputs, numbers, strict=True):
            together = {place for place in range(8) if int(total) >> place & 1}
            assert next(set(pair) for pair in mixed if number in pair) <= together


@pytest.mark.parametrize("changes", ({"erase_probability": 0.5}, {"cutmix": 1e4}), ids=str)
def test_the_key_decides_alone(changes, pixels, targets):
    ours, again, other = (run(pixels, targets, jax.random.key(seed), **changes) for seed in (0, 0, 1))
    assert jnp.array_equal(ours[0], again[0]) and jnp.array_equal(ours[1], again[1])
    assert not jnp.allclose(ours[0], other[0], atol=0.1)


def test_draws_do_not_depend_on_other_augmentations(pixels, targets, key):
    erased, _ = run(pixels, targets, key, erase_probability=0.5)
    moved, _ = run(pixels, targets, key, max_shift=1e-3, erase_probability=0.5)
    np.testing.assert_allclose(moved, erased, atol=0.02)
