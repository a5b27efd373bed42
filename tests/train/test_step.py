from functools import reduce
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import levitax
from levitax.train import cross_entropy, head_only, make_mesh, make_step, shard_batch, trainable, TrainState
from tests.equality import tree_equal


# Not Adam, which turns a rounding error in place of a zero gradient into a whole step. Weight decay needs the
# parameters, momentum needs a state.
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
# Shared by the tests, so that it compiles once for each model.
STEP = make_step()
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
    """Returns the train state before the step of this number."""
    return eqx.tree_at(lambda train_state: train_state.step, train_state, jnp.int32(number))


def run(step, train_state, batches):
    return reduce(lambda train_state, batch: step(train_state, *batch)[0], batches, train_state)


@eqx.filter_jit
def by_hand(model_and_state, batch, key):
    """Returns loss and gradient, and model, state and optimiser state after one step of optax."""
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


@pytest.mark.parametrize("number", (3, pytest.param(0, marks=pytest.mark.slow)))
def test_a_step_is_one_of_optax_with_a_key_of_its_number(number, train_state, trained, batches, key, error):
    expected = by_hand(trained, batches[0], jax.random.fold_in(key, number))
    loss, gradient, (model, state, opt_state) = expected
    after, metrics = STEP(at(train_state, number), *batches[0])
    assert error(metrics.loss, loss) < 1e-6
    assert error(arrays(after.model), arrays(model)) < 1e-5
    assert error(arrays(after.state), arrays(state)) < 1e-5
    assert error(arrays(after.opt_state), arrays(opt_state)) < 1e-5
    assert after.step == number + 1
    assert jnp.array_equal(jax.random.key_data(after.key), jax.random.key_data(key))
    squares = [np.square(np.asarray(array, np.float64)).sum() for array in arrays(gradient)]
    assert metrics.grad_norm == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_every_step_drops_out_anew(train_state, trained, batches, key):
    again = start(trained, key)
    losses = [STEP(at(one, number), *batches[0])[1].loss for number, one in enumerate((train_state, again))]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_step_uses_up_the_train_state_but_not_the_original_model(train_state, trained, batches, key):
    STEP(train_state, *batches[0])
    assert all(array.is_deleted() for array in arrays((train_state.model, train_state.state, train_state.opt_state)))
    assert not any(array.is_deleted() for array in arrays((trained, key)))
    model, state = trained
    outputs, _ = eqx.filter_jit(levitax.batched(model))(batches[0][0], state, key=key)
    assert jnp.isfinite(outputs.classification).all()


def test_the_batch_stays_usable(train_state, batches):
    # XLA could reuse the memory of the weight for the loss.
    images, labels = batches[0]
    weight = jnp.float32(2)
    loss = lambda outputs, targets: targets[1] * cross_entropy(outputs, targets[0])
    make_step(loss)(train_state, images, (labels, weight))
    assert not any(array.is_deleted() for array in (images, labels, weight))


@pytest.mark.slow
def test_other_data_do_not_recompile_the_step(train_state, batches):
    traces = []

    def loss(outputs, labels):
        traces.append(labels)
        return cross_entropy(outputs, labels)

    run(make_step(loss), train_state, batches)
    assert len(traces) == 1


def test_batches_may_be_of_numpy(train_state, trained, batches, key):
    _, metrics = STEP(train_state, *batches[0])
    _, of_numpy = STEP(start(trained, key), *map(np.asarray, batches[0]))
    assert metrics == of_numpy


def test_a_rate_is_changed_between_steps_by_a_number(rows, key):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    moved = []
    for rate in (0.0, 0.5):
        train_state, _ = STEP(TrainState(*make_small(Map, key), optimizer, key=key), *rows)
        before = np.asarray(train_state.model.linear.bias)
        opt_state: Any = train_state.opt_state
        opt_state.hyperparams["learning_rate"] = rate
        train_state, _ = STEP(train_state, *rows)
        moved.append(np.abs(np.asarray(train_state.model.linear.bias) - before).max())
    assert moved[0] == 0 and moved[1] > 1e-3


@pytest.mark.slow
def test_an_optimizer_may_count_in_numbers_of_python(rows, key):
    optimizer = optax.GradientTransformation(lambda params: 0, lambda updates, state, params=None: (updates, state + 1))
    train_state = TrainState(*make_small(Normed, key), optimizer, key=key)
    assert run(STEP, train_state, [rows] * 3).opt_state == 3


def test_an_optimizer_may_keep_the_parameters_it_starts_from(rows, key):
    # `optax.contrib.prodigy` does this.
    optimizer = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, state)
    )
    made = make_small(Normed, key)
    STEP(TrainState(*made, optimizer, key=key), *rows)
    assert not any(array.is_deleted() for array in arrays(made))


def with_key(train_state, convert):
    # Equinox does not save typed keys, only their data.
    return eqx.tree_at(lambda train_state: train_state.key, train_state, replace_fn=convert)


def test_a_resumed_run_goes_on_as_an_uninterrupted_one(train_state, trained, batches, make, key, tmp_path):
    file = tmp_path / "train_state.eqx"
    half = run(STEP, train_state, batches[:2])
    eqx.tree_serialise_leaves(file, with_key(half, jax.random.key_data))
    other = start(make(**SMALL), jax.random.key(1))
    resumed = eqx.tree_deserialise_leaves(file, with_key(other, jax.random.key_data))
    resumed = with_key(resumed, jax.random.wrap_key_data)
    resumed = run(STEP, resumed, batches[2:])
    uninterrupted = run(STEP, start(trained, key), batches)
    assert uninterrupted.step == 4
    assert tree_equal(resumed, uninterrupted)


class Map(eqx.Module):
    """A linear layer with dropout and without normalisation, so that a batch is the sum of its microbatches. Its state
    counts the calls."""

    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    calls: eqx.nn.StateIndex[jax.Array]

    def __init__(self, *, key):
        self.linear = eqx.nn.Linear(3, 5, dtype=jnp.float32, key=key)
        self.dropout = eqx.nn.Dropout(0.5)
        self.calls = eqx.nn.StateIndex(jnp.array(0))

    def __call__(self, x, state, *, key=None):
        state = state.set(self.calls, state.get(self.calls) + 1)
        return self.linear(self.dropout(x, key=key)), state


class Normed(eqx.Module):
    """A linear layer with a normalisation and without dropout."""

    norm: levitax.nn.BatchNorm
    linear: eqx.nn.Linear

    def __init__(self, *, key):
        self.norm = levitax.nn.BatchNorm(3)
        self.linear = eqx.nn.Linear(3, 5, dtype=jnp.float32, key=key)

    def __call__(self, x, state, *, key=None):
        del key
        x, state = self.norm(x, state)
        return self.linear(x), state


@pytest.fixture
def rows(images):
    """Six examples of three numbers each, all different, and their labels."""
    return images(6, 3) * jnp.linspace(0.5, 3, 6, dtype=jnp.float32)[:, None], jnp.array([0, 1, 2, 3, 4, 0])


def make_small(kind, key):
    return eqx.nn.make_with_state(kind)(key=key)


def losses_and_statistics(model, state, batch, parts):
    """Returns the loss of each microbatch and the statistics after all of them. `parts` are lists of rows."""
    losses = []
    for part in parts:
        outputs, state = levitax.batched(model)(batch[0][part], state)
        losses.append(cross_entropy(outputs, batch[1][part]))
    return losses, model.norm.running(state)


@pytest.mark.parametrize("accumulate", (2, 3))
def test_gradients_of_microbatches_are_those_of_the_batch(accumulate, rows, key, error):
    made = make_small(Map, key)
    expected, expected_metrics = STEP(start(made, key), *rows)
    ours, metrics = make_step(accumulate=accumulate)(start(made, key), *rows)
    # Dropout is that of the whole batch too.
    assert error(metrics.loss, expected_metrics.loss) < 1e-6
    assert error(metrics.grad_norm, expected_metrics.grad_norm) < 1e-6
    assert error(arrays(ours.model), arrays(expected.model)) < 1e-6
    assert error(arrays(ours.opt_state), arrays(expected.opt_state)) < 1e-6
    assert error(ours.model.linear.weight, made[0].linear.weight) > 1e-3
    # The microbatches run one after the other.
    assert ours.state.get(ours.model.calls) == accumulate
    assert (ours.step, expected.step) == (1, 1)


@pytest.mark.parametrize("accumulate", (2, pytest.param(3, marks=pytest.mark.slow)))
def test_a_microbatch_has_every_nth_image_and_separate_statistics(accumulate, rows, key, error):
    made = make_small(Normed, key)
    after, metrics = make_step(accumulate=accumulate)(start(made, key), *rows)
    parts = [np.arange(first, 6, accumulate) for first in range(accumulate)]
    losses, statistics = losses_and_statistics(*made, rows, parts)
    assert error(metrics.loss, np.mean(losses)) < 1e-6
    assert error(after.model.norm.running(after.state), statistics) < 1e-6
    # Microbatches of consecutive rows would have other losses.
    losses, _ = losses_and_statistics(*make_small(Normed, key), rows, np.split(np.arange(6), accumulate))
    assert error(metrics.loss, np.mean(losses)) > 1e-3


def test_the_gradient_is_the_mean_over_the_microbatches(rows, key, error):
    made = make_small(Normed, key)
    optimizer = optax.sgd(1.0)
    train_state = TrainState(made[0], made[1], optimizer, key=key)
    after, metrics = make_step(accumulate=2)(train_state, *rows)

    @eqx.filter_grad
    def gradient(model):
        losses, _ = losses_and_statistics(model, made[1], rows, (np.arange(0, 6, 2), np.arange(1, 6, 2)))
        return (losses[0] + losses[1]) / 2

    expected = gradient(made[0])
    assert error(arrays(after.model), arrays(eqx.apply_updates(made[0], jax.tree.map(jnp.negative, expected)))) < 1e-6
    assert metrics.grad_norm == pytest.approx(float(optax.tree.norm(arrays(expected))), rel=1e-5)


def test_statistics_may_be_those_of_groups(rows, key, error):
    made = make_small(Normed, key)
    after, metrics = make_step(group_size=2)(start(made, key), *rows)
    alone = [losses_and_statistics(*made, rows, [rows_]) for rows_ in np.split(np.arange(6), 3)]
    assert error(metrics.loss, np.mean([losses[0] for losses, _ in alone])) < 1e-6
    mean = jax.tree.map(lambda *arrays: np.mean(arrays, axis=0), *(statistics for _, statistics in alone))
    assert error(after.model.norm.running(after.state), mean) < 1e-6


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"accumulate": 4}, "`accumulate` is 4, which does not divide a batch of 6 images"),
        ({"group_size": 4}, "`group_size` is 4, which does not divide a batch of 6 images"),
        (
            {"accumulate": 2, "group_size": 2},
            "`accumulate` is 2, which does not divide a batch of 6 images in groups of 2",
        ),
    ],
    ids=str,
)
def test_a_batch_that_cannot_be_split(keywords, message, rows, key):
    train_state = start(make_small(Normed, key), key)
    with pytest.raises(ValueError, match=message):
        make_step(**keywords)(train_state, *rows)
    # The refused call leaves the train state usable.
    assert not any(array.is_deleted() for array in arrays(train_state))


@pytest.mark.parametrize("accumulate", (1, 2))
@pytest.mark.parametrize("kind", (Map, Normed))
def test_an_empty_batch_is_refused(kind, accumulate, rows, key):
    train_state = start(make_small(kind, key), key)
    with pytest.raises(ValueError, match="`images` is an empty batch; expected at least one image"):
        make_step(accumulate=accumulate)(train_state, rows[0][:0], rows[1][:0])
    assert not any(array.is_deleted() for array in arrays(train_state))


def only_bias(model):
    return eqx.tree_at(lambda model: model.linear.weight, trainable(model), None)


def test_arguments_of_other_types(rows, key, unchecked):
    model, state = make_small(Normed, key)
    for optimizer in ("adamw", None, 1e-3):
        message = f"`optimizer` is of type `{type(optimizer).__name__}`; expected one of optax"
        with pytest.raises(TypeError, match=message):
            TrainState(model, state, cast(Any, optimizer), key=key)
    with pytest.raises(TypeError, match=r"`loss` is of type `GradientTransformation.*; a train state holds the optim"):
        make_step(cast(Any, OPTIMIZER))
    with pytest.raises(TypeError, match=r"`train_state` is of type `Normed`; expected a `levitax\.train"):
        make_step()(cast(Any, model), *rows)


@pytest.mark.parametrize("inside", (False, True), ids=("alone", "inside"))
def test_a_model_in_float16_is_not_trained(inside, make, batches, key):
    model, state = make(**SMALL, dtype="float16")
    train_state = start(({"backbone": model} if inside else model, state), key)
    message = r"The model has `dtype` 'float16'.*below 6e-8 would become 0.*above 65,504 infinite.*`dtype=.bfloat16.`"
    with pytest.raises(ValueError, match=message):
        STEP(train_state, *batches[0])


@pytest.mark.parametrize("accumulate", (1, 2))
def test_a_train_state_is_used_once(accumulate, rows, key):
    train_state = TrainState(*make_small(Normed, key), OPTIMIZER, key=key)
    step = make_step(accumulate=accumulate)
    step(train_state, *rows)
    with pytest.raises(
        ValueError, match=r"A step has used up this train state.*`train_state, metrics = step\(train_state"
    ):
        step(train_state, *rows)


@pytest.mark.parametrize("accumulate", (1, 2))
def test_labels_may_be_a_list(accumulate, rows, key):
    step = make_step(accumulate=accumulate)
    losses = [
        step(TrainState(*make_small(Normed, key), OPTIMIZER, key=key), rows[0], labels)[1].loss
        for labels in (rows[1], rows[1].tolist())
    ]
    assert losses[0] == losses[1]


@pytest.mark.skipif(jax.dtypes.canonicalize_dtype(np.int64) == np.int64, reason="64 bits hold them")
def test_labels_are_not_cut_to_32_bits(rows, key):
    labels = np.asarray(rows[1], np.int64) + 2**32
    step = make_step()
    with pytest.raises(ValueError, match=r"`targets\[0\]` is 4294967296, .*; expected numbers that fit in int32"):
        step(TrainState(*make_small(Normed, key), OPTIMIZER, key=key), rows[0], labels)
    with pytest.raises(ValueError, match=r"`batch\[1\]\[0\]` is 4294967296"):
        shard_batch((rows[0], labels), make_mesh())


def test_the_arrays_of_a_batch_have_as_many_rows(rows, key):
    class Sum(Map):
        def __call__(self, x, state, *, key=None):
            return super().__call__(x["a"] + x["b"], state, key=key)

    train_state = start(make_small(Sum, key), key)
    with pytest.raises(ValueError, match=r"`images` has arrays of shapes \(6, 3\), \(5, 3\); expected a leading axis"):
        make_step()(train_state, {"a": rows[0], "b": rows[0][:5]}, rows[1])


@pytest.mark.usefixtures("unchecked")
def test_groups_are_counted_and_a_mesh_is_one():
    with pytest.raises(ValueError, match="`group_size` is 0; expected an integer of at least 1"):
        make_step(group_size=0)
    with pytest.raises(TypeError, match=r"`mesh` is of type `str`; expected .*`levitax\.train\.make_mesh\(\)`"):
        make_step(mesh="data")  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("keywords", "kind"),
    [({"accumulate": 0}, ValueError), ({"accumulate": -1}, ValueError), ({"accumulate": 2.0}, TypeError)],
    ids=str,
)
def test_parts_are_counted(keywords, kind):
    with pytest.raises(kind, match=r"`accumulate` is .*; expected an integer of at least 1"):
        make_step(**keywords)


def test_frozen_parameters_stay_equal_to_the_bit(trained, batches, key):
    model, state = trained
    train_state = TrainState(model, state, OPTIMIZER, parameters=head_only, ema_decay=0.9, key=key)
    assert sum(array.size for array in arrays(train_state.opt_state)) == levitax.count_parameters(model.head)
    # Decay and momentum would move frozen parameters even without a gradient.
    train_state = run(STEP, train_state, batches)
    rest = lambda model: arrays(eqx.tree_at(lambda model: model.head, model, None))
    for after in (train_state.model, train_state.averaged()[0]):
        for ours, before in zip(rest(after), rest(model), strict=True):
            np.testing.assert_array_equal(ours, before)
        moved = zip(arrays(after.head), arrays(model.head), strict=True)
        assert all(jnp.abs(ours - before).max() > 1e-4 for ours, before in moved)


def test_the_gradient_is_that_of_the_trained_parameters(rows, key, error):
    made = make_small(Map, key)
    train_state = TrainState(made[0], made[1], OPTIMIZER, parameters=only_bias, key=key)
    ours, metrics = STEP(train_state, *rows)
    expected, all_metrics = STEP(start(made, key), *rows)
    assert error(metrics.loss, all_metrics.loss) < 1e-6
    assert error(ours.model.linear.bias, expected.model.linear.bias) < 1e-6
    # The momentum is the gradient plus the decay of the bias.
    gradient = jax.tree.leaves(ours.opt_state)[0] - 0.1 * jax.tree.leaves(only_bias(made[0]))[0]
    assert metrics.grad_norm == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-5)


def test_the_average_follows_its_recursion(rows, key):
    model, state = make_small(Normed, key)
    train_state = TrainState(model, state, OPTIMIZER, ema_decay=0.7, key=key)
    step = make_step()
    current = lambda train_state: [
        np.asarray(array, np.float64) for array in arrays((train_state.model, train_state.state))
    ]
    expected = current(train_state)
    for number in range(5):
        train_state, _ = step(train_state, rows[0] + number, rows[1])
        expected = [0.7 * old + 0.3 * new for old, new in zip(expected, current(train_state), strict=True)]
    ours = [np.asarray(array) for array in arrays(train_state.averaged())]
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert any(np.abs(one - other).max() > 0.01 for one, other in zip(ours, current(train_state), strict=True))


@pytest.mark.slow
def test_computing_again_makes_the_same_step(make, trained, batches, key, error):
    model, state = trained
    again, _ = make(**SMALL, remat=True)
    again = jax.tree.unflatten(jax.tree.structure(again), jax.tree.leaves(model))
    assert again.config.remat and not model.config.remat
    expected, expected_metrics = STEP(start(trained, key), *batches[0])
    ours, metrics = STEP(start((again, state), key), *batches[0])
    assert error(metrics, expected_metrics) < 1e-6
    assert error(arrays(ours.state), arrays(expected.state)) < 1e-6
    assert error(arrays(ours.model), arrays(expected.model)) < 1e-6
