"""Training in JAX's 64-bit mode and with strict dtype promotion. CI runs all other tests in these modes too."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.data import Preprocessing
from levitax.train import make_step, one_hot, prepare, Recipe, TrainState


# All random parts of training, each with a high probability.
RECIPE = replace(
    Recipe(),
    epochs=2,
    batch_size=8,
    max_shift=1.0,
    max_rotation=10.0,
    max_scale=0.1,
    erase_probability=0.5,
    mix_probability=0.8,
    distillation="none",
    warmup_epochs=1,
    learning_rate=1.0,
    warmup_learning_rate=1e-2,
    # With a small eps, AdamW would follow the sign of gradients that are only rounding errors.
    eps=1e-2,
    group_size=4,
    ema_decay=0.9,
)


@pytest.fixture
def set_modes():
    """Sets 64-bit mode and dtype promotion for one test."""
    names = ("jax_enable_x64", "jax_numpy_dtype_promotion")
    before = [getattr(jax.config, name) for name in names]

    def set_modes(*values):
        for name, value in zip(names, values, strict=True):
            jax.config.update(name, value)

    yield set_modes
    set_modes(*before)


def trained(make):
    """Returns the images and targets of three training steps, and the model after them."""
    model, state = make(image_size=8, stages=1, dim=16, heads=1, drop_path=0.5, activation="silu")
    optimizer = RECIPE.optimizer(2)
    train_state = TrainState(model, state, optimizer, ema_decay=RECIPE.ema_decay, key=jax.random.key(0))
    step = make_step(RECIPE.loss(), accumulate=2, group_size=2)
    run = jax.jit(partial(prepare, recipe=RECIPE, preprocessing=Preprocessing()))
    rng = np.random.default_rng(0)
    seen = []
    for number in range(3):
        pixels, labels = rng.integers(0, 256, (8, 8, 8, 3), np.uint8), rng.integers(0, 5, 8)
        batch = run(jnp.asarray(pixels), one_hot(labels, 5), key=jax.random.key(number))
        train_state, metrics = step(train_state, *batch)
        seen.append((batch, metrics))
    predict = levitax.fuse(*train_state.averaged())
    return seen, predict, jax.jit(jax.vmap(predict))(seen[-1][0][0])


@pytest.mark.slow
def test_wide_numbers_and_strict_promotion_train_as_the_defaults(make, set_modes):
    set_modes(False, "standard")
    expected = jax.tree.map(np.asarray, eqx.filter(trained(make), eqx.is_array))
    set_modes(True, "strict")
    ours = jax.tree.map(np.asarray, eqx.filter(trained(make), eqx.is_array))
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
