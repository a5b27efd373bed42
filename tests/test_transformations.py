"""Transformations of JAX and Equinox work on models, because models are PyTrees."""

from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.train import cross_entropy


# One stage, to compile faster.
SMALL: dict[str, Any] = {
    "image_size": 8,
    "stages": 1,
    "dim": 16,
    "heads": 1,
    "depth": 1,
    "patch_size": 4,
    "key_dim": 8,
    "num_classes": 5,
}


def flat(tree):
    return jax.flatten_util.ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))[0]


@pytest.mark.slow
def test_an_ensemble_is_made_and_evaluated_by_vmap(images):
    create = eqx.filter_vmap(lambda key: eqx.nn.make_with_state(levitax.LeViT)(**SMALL, key=key))
    keys = jax.random.split(jax.random.key(0), 3)
    models, states = create(keys)
    x = images(2, 8, 8, 3)

    @eqx.filter_jit
    @eqx.filter_vmap(in_axes=(eqx.if_array(0), eqx.if_array(0), None))
    def evaluate(model, state, x):
        return levitax.batched(model)(x, state)[0]

    logits = evaluate(eqx.nn.inference_mode(models), states, x)
    assert logits.shape == (3, 2, 5)
    for index, key in enumerate(keys):
        model, state = eqx.nn.make_with_state(levitax.LeViT)(**SMALL, key=key)
        expected, _ = eqx.filter_jit(levitax.batched(eqx.nn.inference_mode(model)))(x, state)
        np.testing.assert_allclose(logits[index], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_of_single_examples_add_up_to_that_of_the_batch(make, randomise, images, error):
    model, state = randomise(*make())
    model = eqx.nn.inference_mode(model)
    x, labels = images(3, 16, 16, 3), jnp.array([0, 3, 4])

    def loss(model, image, label):
        logits, _ = model(image, state)
        return -jax.nn.log_softmax(logits)[label]

    @eqx.filter_jit
    def both(model):
        single = jax.vmap(eqx.filter_grad(loss), in_axes=(None, 0, 0))(model, x, labels)
        batch = eqx.filter_grad(lambda model: jax.vmap(loss, in_axes=(None, 0, 0))(model, x, labels).sum())(model)
        return jax.tree.leaves(single), jax.tree.leaves(batch)

    single, batch = both(model)
    assert all(gradient.shape[0] == 3 for gradient in single)
    # 1e-4 is the tolerance for gradients in `tests/parity/cases.py`.
    assert error([gradient.sum(0) for gradient in single], batch) < 1e-4


@pytest.mark.slow
def test_the_hessian_is_symmetric(randomise, images, key):
    # SiLU is twice differentiable, unlike hard-swish.
    model, state = randomise(*eqx.nn.make_with_state(levitax.LeViT)(**SMALL, activation="silu", key=key))
    x, labels = images(4, 8, 8, 3), jnp.array([0, 1, 2, 3])
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    point, unravel = jax.flatten_util.ravel_pytree(arrays)

    def loss(point):
        logits, _ = levitax.batched(eqx.combine(unravel(point), static))(x, state)
        return cross_entropy(logits, labels)

    u, v = jax.random.normal(key, (2, *point.shape), point.dtype)
    product = jax.jit(lambda vector: jax.jvp(jax.grad(loss), (point,), (vector,))[1])
    uhv, vhu = u @ product(v), v @ product(u)
    assert np.isfinite(uhv) and abs(uhv) > 1e-3
    np.testing.assert_allclose(uhv, vhu, rtol=1e-4)


@pytest.mark.parametrize("distillation", (False, True))
def test_the_head_is_exchanged_for_other_classes(distillation, make, randomise, images):
    model, state = randomise(*make(distillation=distillation))
    heads = lambda model: [model.head.classification, model.head.distillation] if distillation else [model.head]
    linear = lambda model: [array for head in heads(model) for array in (head.weight, head.bias)]
    new = [jnp.ones((7, 24)), jnp.arange(7.0)] * len(heads(model))
    model = eqx.nn.inference_mode(eqx.tree_at(linear, model, new))
    logits, _ = eqx.filter_jit(model)(images(16, 16, 3), state)
    np.testing.assert_allclose(logits - logits[0], np.arange(7), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_checkpointed_model_has_the_same_gradients(randomise, images, key, error):
    model, state = randomise(*eqx.nn.make_with_state(levitax.LeViT)(**SMALL, drop_path=0.2, key=key))
    x = images(4, 8, 8, 3)

    def loss(model, wrap):
        logits, new = levitax.batched(wrap(model))(x, state, key=key)
        return cross_entropy(logits, jnp.array([0, 1, 2, 3])), new

    run = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))
    ours, theirs = (run(model, wrap) for wrap in (eqx.filter_checkpoint, lambda model: model))
    # Compared as one vector: before a normalisation, the gradient of a bias is zero except for rounding.
    assert error(flat(ours), flat(theirs)) < 1e-5


class Pair(eqx.Module):
    """A module of a user: two LeViTs, one of which gets the image upside down, and a linear layer."""

    upright: levitax.LeViT
    flipped: levitax.LeViT
    linear: eqx.nn.Linear

    def __init__(self, *, key):
        keys = jax.random.split(key, 3)
        sizes: Any = SMALL | {"num_classes": 0}
        self.upright, self.flipped = (levitax.LeViT(**sizes, key=key) for key in keys[:2])
        self.linear = eqx.nn.Linear(32, 5, dtype=jnp.float32, key=keys[2])

    def __call__(self, image, state, *, key=None):
        one, state = self.upright(image, state, key=key)
        other, state = self.flipped(2 * image[::-1] + 1, state, key=key)
        return self.linear(jnp.concatenate(jax.tree.leaves([one, other]))), state


def test_levits_inside_a_users_module_train_and_keep_separate_statistics(images, key, error):
    model, state = eqx.nn.make_with_state(Pair)(key=key)
    x, labels = images(8, 8, 8, 3), jnp.arange(8) % 5

    def loss(model, state):
        logits, state = levitax.batched(model)(x, state)
        return cross_entropy(logits, labels), state

    @eqx.filter_jit
    def step(model, state):
        (value, state), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(model, state)
        return eqx.apply_updates(model, jax.tree.map(lambda gradient: -0.01 * gradient, gradients)), state, value

    after, new, first = step(model, state)
    _, _, second = step(after, new)
    assert second < first

    # Each LeViT has the same statistics as alone.
    first_norm = lambda levit: levit.stem.convolutions[0].norm
    upright, flipped = (first_norm(levit).running(new) for levit in (model.upright, model.flipped))
    assert not np.allclose(upright.mean, flipped.mean)

    @eqx.filter_jit
    def alone(levit, x):
        return first_norm(levit).running(levitax.batched(levit)(x, state)[1])

    assert error(upright, alone(model.upright, x)) < 1e-5
    assert error(flipped, alone(model.flipped, 2 * x[:, ::-1] + 1)) < 1e-5


def test_training_steps_compile_once(images, key):
    model, state = eqx.nn.make_with_state(levitax.LeViT)(**SMALL, drop_path=0.1, key=key)

    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def step(model, state, x, key):
        logits, state = levitax.batched(model)(x, state, key=key)
        return jax.tree.map(lambda leaf: leaf * 0.99 if eqx.is_inexact_array(leaf) else leaf, model), state, logits

    for seed in range(3):
        model, state, _ = step(model, state, images(2, 8, 8, 3, seed=seed), jax.random.key(seed))
