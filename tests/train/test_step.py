from functools import reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import levitax
from levitax.train import cross_entropy, make_step, TrainState


# Not Adam, which makes a whole step of a gradient that is zero but for rounding. Decay needs the parameters, momentum
# a state.
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
SMALL: dict[str, Any] = {"image_size": 8, "stages": 1, "dim": 16, "heads": 1, "dropout": 0.5}


def start(model_and_state, key):
    model, state = model_and_state
    return TrainState(model, state, OPTIMIZER, key=key)


@pytest.fixture
def trained(make, randomise):
    return randomise(*make(**SMALL))


@pytest.fixture
def train_state(trained, key):
    return start(trained, key)


@pytest.fixture
def batches(images):
    return [(images(4, 8, 8, 3, seed=seed), jnp.arange(4) + seed % 2) for seed in range(4)]


def arrays(tree):
    return list(filter(eqx.is_array, jax.tree.leaves(tree)))


def at(train_state, number):
    """The train state before the step of this number."""
    return eqx.tree_at(lambda train_state: train_state.step, train_state, jnp.int32(number))


def run(step, train_state, batches):
    return reduce(lambda train_state, batch: step(train_state, *batch)[0], batches, train_state)


@eqx.filter_jit
def by_hand(model_and_state, batch, key):
    """Loss, gradient, and what one step of optax makes of model, state and the optimiser's state."""
    model, state = model_and_state
    images, labels = batch

    def compute_loss(model):
        outputs, new_state = levitax.batched(model)(images, state, key=key)
        losses = [optax.losses.softmax_cross_entropy_with_integer_labels(head, labels).mean() for head in outputs]
        return sum(losses) / 2, new_state

    (loss, state), gradient = eqx.filter_value_and_grad(compute_loss, has_aux=True)(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = OPTIMIZER.update(gradient, OPTIMIZER.init(params), params)
    return loss, gradient, (eqx.apply_updates(model, updates), state, opt_state)


@pytest.mark.parametrize("number", (0, 3))
def test_a_step_is_one_of_optax_with_a_key_of_its_number(number, train_state, trained, batches, key, error):
    expected = by_hand(trained, batches[0], jax.random.fold_in(key, number))
    loss, gradient, (model, state, opt_state) = expected
    after, metrics = make_step(OPTIMIZER)(at(train_state, number), *batches[0])
    assert error(metrics.loss, loss) < 1e-6
    assert error(arrays(after.model), arrays(model)) < 1e-5
    assert error(arrays(after.state), arrays(state)) < 1e-5
    assert error(arrays(after.opt_state), arrays(opt_state)) < 1e-5
    assert after.step == number + 1
    assert jnp.array_equal(jax.random.key_data(after.key), jax.random.key_data(key))
    squares = [np.square(np.asarray(array, np.float64)).sum() for array in arrays(gradient)]
    assert metrics.grad_norm == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_every_step_drops_out_anew(train_state, trained, batches, key):
    step = make_step(OPTIMIZER)
    again = start(trained, key)
    losses = [step(at(one, number), *batches[0])[1].loss for number, one in enumerate((train_state, again))]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_train_state_is_used_up_and_what_it_was_made_of_is_not(train_state, trained, batches, key):
    make_step(OPTIMIZER)(train_state, *batches[0])
    assert all(array.is_deleted() for array in arrays((train_state.model, train_state.state, train_state.opt_state)))
    assert not any(array.is_deleted() for array in arrays((trained, key)))
    model, state = trained
    outputs, _ = eqx.filter_jit(levitax.batched(model))(batches[0][0], state, key=key)
    assert jnp.isfinite(outputs.classification).all()


def test_the_batch_stays_usable(train_state, batches):
    # The weight could be given up for the memory of the loss.
    images, labels = batches[0]
    weight = jnp.float32(2)
    loss = lambda outputs, targets: targets[1] * cross_entropy(outputs, targets[0])
    make_step(OPTIMIZER, loss)(train_state, images, (labels, weight))
    assert not any(array.is_deleted() for array in (images, labels, weight))


def test_other_data_are_not_compiled_for_again(train_state, batches):
    traces = []

    def loss(outputs, labels):
        traces.append(labels)
        return cross_entropy(outputs, labels)

    run(make_step(OPTIMIZER, loss), train_state, batches)
    assert len(traces) == 1


def test_batches_may_be_of_numpy(train_state, trained, batches, key):
    step = make_step(OPTIMIZER)
    _, metrics = step(train_state, *batches[0])
    _, of_numpy = step(start(trained, key), *map(np.asarray, batches[0]))
    assert metrics == of_numpy


def with_key(train_state, convert):
    # Equinox saves no typed keys, only their data.
    return eqx.tree_at(lambda train_state: train_state.key, train_state, replace_fn=convert)


def test_a_run_taken_up_again_goes_on_as_it_would_have(train_state, trained, batches, make, key, tmp_path):
    file = tmp_path / "train_state.eqx"
    half = run(make_step(OPTIMIZER), train_state, batches[:2])
    eqx.tree_serialise_leaves(file, with_key(half, jax.random.key_data))
    other = start(make(**SMALL), jax.random.key(1))
    resumed = eqx.tree_deserialise_leaves(file, with_key(other, jax.random.key_data))
    resumed = with_key(resumed, jax.random.wrap_key_data)
    resumed = run(make_step(OPTIMIZER), resumed, batches[2:])
    uninterrupted = run(make_step(OPTIMIZER), start(trained, key), batches)
    assert uninterrupted.step == 4
    assert eqx.tree_equal(resumed, uninterrupted)
