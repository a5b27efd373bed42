from typing import Any, assert_type

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import levitax
from levitax.train import head_only, make_step, TrainState
from tests.equality import tree_equal


OPTIMIZER = optax.sgd(0.5)
DECAY = 0.75


class Odd(eqx.Module):
    """A model with leaves other than weights: integer and boolean arrays, a flag, a number, a count in the state, and a
    normalisation with its statistics."""

    weight: jax.Array
    norm: levitax.nn.BatchNorm
    order: jax.Array
    mask: jax.Array
    flag: bool
    rate: float
    calls: eqx.nn.StateIndex[jax.Array]

    def __init__(self):
        self.weight = jnp.float32([1.0, 2.0, 3.0])
        self.norm = levitax.nn.BatchNorm(3)
        self.order = jnp.int32([2, 0, 1])
        self.mask = jnp.array([True, False, True])
        self.flag = True
        self.rate = 0.5
        self.calls = eqx.nn.StateIndex(jnp.int32(0))

    def __call__(self, x, state, *, key=None):
        del key
        state = state.set(self.calls, state.get(self.calls) + 1)
        y, state = self.norm(x[self.order], state)
        return self.rate * jnp.where(self.mask, self.weight * y, y).sum(), state


def loss(outputs, targets):
    return ((outputs - targets) ** 2).mean()


@pytest.fixture
def made():
    return eqx.nn.make_with_state(Odd)()


@pytest.fixture
def start(made, key):
    model, state = made
    return lambda **keywords: TrainState(model, state, OPTIMIZER, **keywords, key=key)


@pytest.fixture
def batches(images):
    return [(images(6, 3, seed=seed), images(6, seed=10 + seed)) for seed in range(3)]


step = make_step(loss)


def test_the_average_starts_as_the_model(start, made):
    assert tree_equal(start(ema_decay=DECAY).averaged(), made)


@pytest.mark.parametrize("keywords", ({}, {"ema_decay": None}), ids=("default", "given"))
def test_without_an_average_there_is_none(keywords, start):
    assert start(**keywords).ema is None
    with pytest.raises(ValueError, match=r"There is no average.*`ema_decay=`"):
        start(**keywords).averaged()


def test_a_step_keeps_the_type_of_the_model(batches, key):
    model, state = eqx.nn.make_with_state(Odd)()
    train_state = TrainState(model, state, OPTIMIZER, ema_decay=DECAY, key=key)
    train_state, _ = step(train_state, images=batches[0][0], targets=batches[0][1])
    # Pyright checks these types.
    assert type(assert_type(train_state.model, Odd)) is Odd
    assert type(assert_type(train_state.averaged()[0], Odd)) is Odd


def test_the_average_shares_no_arrays_with_the_model(start, made, batches):
    step(start(ema_decay=DECAY), *batches[0])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(made) if eqx.is_array(leaf))


def test_floating_point_arrays_are_averaged_and_nothing_else_is(start, batches):
    train_state = start(ema_decay=DECAY)
    # Integers that averaging would change.
    order = jnp.int32([1, 2, 0])
    weights, means = [np.array([1.0, 2.0, 3.0])], [np.zeros(3)]
    average: Any = [weights[0], means[0]]
    for number, batch in enumerate(batches):
        if number == 1:
            train_state = eqx.tree_at(lambda train_state: train_state.model.order, train_state, order)
        train_state, _ = step(train_state, *batch)
        weights.append(np.asarray(train_state.model.weight))
        means.append(np.asarray(train_state.model.norm.running(train_state.state).mean))
        average = [DECAY * old + (1 - DECAY) * new[-1] for old, new in zip(average, (weights, means), strict=True)]
    model, state = train_state.averaged()
    np.testing.assert_allclose(model.weight, average[0], rtol=1e-6)
    np.testing.assert_allclose(model.norm.running(state).mean, average[1], rtol=1e-5, atol=1e-7)
    assert np.abs(average[0] - weights[-1]).max() > 0.01 and np.abs(average[1] - means[-1]).max() > 0.01
    np.testing.assert_array_equal(model.order, [1, 2, 0])
    np.testing.assert_array_equal(model.mask, [True, False, True])
    assert (model.order.dtype, model.mask.dtype) == (jnp.int32, jnp.bool_)
    assert model.flag is True and model.rate == 0.5
    count = state.get(model.calls)
    assert count.dtype == jnp.int32 and count == 3


def test_averaging_leaves_the_model_that_is_trained(start, batches):
    averaging, plain = start(ema_decay=DECAY), start()
    for batch in batches:
        (averaging, _), (plain, _) = step(averaging, *batch), step(plain, *batch)
    assert plain.ema is None
    assert tree_equal((averaging.model, averaging.state), (plain.model, plain.state))


def test_a_decay_of_one_keeps_the_average_as_it_is(start, made, batches):
    train_state = start(ema_decay=1.0)
    for batch in batches:
        train_state, _ = step(train_state, *batch)
    model, state = train_state.averaged()
    np.testing.assert_array_equal(model.weight, made[0].weight)
    assert tree_equal(model.norm.running(state), made[0].norm.running(made[1]))
    assert not jnp.allclose(train_state.model.weight, made[0].weight)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("decay", (-0.1, 1.1, 99.996, float("nan"), float("inf"), "0.9", True))
def test_decays_are_from_0_to_1(decay, start):
    with pytest.raises(ValueError, match=r"`ema_decay` is .*; expected a number from 0 to 1 or None"):
        start(ema_decay=decay)


def test_nothing_to_train_is_refused(make, key):
    model, state = make(num_classes=0)
    with pytest.raises(ValueError, match=r"`parameters` picks no array.*`num_classes=0` has no head for `head_only`"):
        TrainState(model, state, OPTIMIZER, parameters=head_only, key=key)


# With 0.99996, factors that do not add up to 1 in float32 would change the average by 1e-4 over time.
@pytest.mark.parametrize("decay", (0.99996, 0.9))
def test_the_average_of_a_constant_model_is_constant(decay, key):
    class Still(eqx.Module):
        weight: jax.Array

        def __call__(self, x, state, *, key=None):
            del key
            return x * self.weight.sum(), state

    model, state = eqx.nn.make_with_state(Still)(jax.random.normal(key, (1000,)))
    optimizer = optax.sgd(0.0)
    train_state = TrainState(model, state, optimizer, ema_decay=decay, key=key)
    still = make_step(loss)
    for _ in range(100):
        train_state, _ = still(train_state, jnp.ones(2), jnp.ones(2))
    np.testing.assert_array_equal(train_state.averaged()[0].weight, model.weight)
