"""Passes wrong labels, targets, weights and teacher logits to every public function that takes them. A function raises
an error if the values are concrete, returns NaN if they are traced, and never returns a finite number."""

import importlib
import inspect
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import levitax
from levitax.data import Preprocessing
from levitax.nn import DistilledLogits
from levitax.train import (
    cross_entropy,
    cutmix,
    distillation_loss,
    EvalBatch,
    evaluate,
    evaluate_batches,
    make_step,
    mix,
    mixup,
    one_hot,
    prepare,
    RECIPES,
    shard_batch,
    TeacherTargets,
    TrainState,
)


pytestmark = pytest.mark.usefixtures("unchecked")

BATCH, CLASSES = 6, 5
rng = np.random.default_rng(0)
LOGITS, OTHER_LOGITS, TEACHER = rng.normal(0, 3, (3, BATCH, CLASSES)).astype(np.float32)
HEADS = DistilledLogits(jnp.asarray(LOGITS), jnp.asarray(OTHER_LOGITS))
LABELS = np.array([0, 1, 2, 3, 4, 1], np.int32)
DISTRIBUTIONS = rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
WEIGHTS = np.ones(BATCH, np.float32)


def changed(array, row, value, dtype=None):
    """Returns `array` with another `value` in one row."""
    array = np.array(array, dtype)
    array[row] = value
    return array


class Logits(eqx.Module):
    """A model whose logits are the pixels of the image."""

    scale: jax.Array

    def __call__(self, image, state, *, key=None):
        del key
        return self.scale * image.ravel(), state


MODEL, STATE = eqx.nn.make_with_state(Logits)(jnp.ones((), jnp.float32))
PREDICT: Any = levitax.Predictor(MODEL, STATE)
IMAGES = LOGITS.reshape(BATCH, 1, CLASSES, 1)


OPTIMIZER = optax.sgd(0.1)


@cache
def step():
    return make_step()


def after_a_step(labels):
    """Returns the loss and the only parameter of the model after one step."""
    train_state = TrainState(MODEL, STATE, OPTIMIZER, key=jax.random.key(0))
    train_state, metrics = step()(train_state, jnp.asarray(IMAGES), labels)
    return metrics.loss, train_state.model.scale


# Functions of the labels alone.
LOSSES: dict[str, Callable[[Any], Any]] = {
    "cross_entropy": lambda labels: cross_entropy(jnp.asarray(LOGITS), labels),
    "cross_entropy of two heads": lambda labels: cross_entropy(HEADS, labels, label_smoothing=0.1),
    "distillation_loss, hard": lambda labels: distillation_loss(HEADS, TeacherTargets(labels, TEACHER)),
    "distillation_loss, soft": lambda labels: distillation_loss(HEADS, TeacherTargets(labels, TEACHER), kind="soft"),
}
METRICS: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda labels: evaluate(PREDICT, IMAGES, labels, batch_size=4)[:3],
    "evaluate_batches": lambda labels: evaluate_batches(PREDICT, [EvalBatch(IMAGES, labels, WEIGHTS)])[:3],
}
TRAINING: dict[str, Callable[[Any], Any]] = {"make_step": after_a_step}
# Arguments of functions that take one row per image.
CENTRE = jnp.array([0, 2])
BYTES = np.zeros((BATCH, 1, CLASSES, 1), np.uint8)
RECIPE = RECIPES["finetune"]
MIXING: dict[str, Callable[[Any], Any]] = {
    "mixup": lambda targets: mixup(jnp.asarray(IMAGES), targets, jnp.float32(0.5)),
    "cutmix": lambda targets: cutmix(jnp.asarray(IMAGES), targets, jnp.float32(0.5), CENTRE),
    "mix": lambda targets: mix(jnp.asarray(IMAGES), targets, key=jax.random.key(0)),
    "prepare": lambda targets: prepare(
        jnp.asarray(BYTES), targets, RECIPE, preprocessing=Preprocessing(mean=[0.5], std=[0.5]), key=jax.random.key(0)
    ),
}
# Public names that take one of these arguments, with their test or the reason why there is none.
TAKEN = ("labels", "targets", "weights", "teacher_logits", "batches")
COVERED = {
    "levitax.train.cross_entropy",
    "levitax.train.distillation_loss",
    "levitax.train.one_hot",
    "levitax.train.evaluate",
    "levitax.train.evaluate_batches",
    "levitax.train.mixup",
    "levitax.train.cutmix",
    "levitax.train.mix",
    "levitax.train.prepare",
}
CONTAINERS = {
    # Checked by the functions that take them.
    "levitax.train.TeacherTargets",
    "levitax.train.EvalBatch",
    # Results of the readers.
    "levitax.data.Batch",
    # Data sets, whose labels `open_data` checks.
    "levitax.data.Arrays",
    "levitax.data.ImageFiles",
    "levitax.data.ImageTable",
    # A split of a data set, in the order of a model's classes.
    "levitax.data.Relabelled",
}


def test_every_public_name_that_takes_labels_is_covered():
    found = set()
    for module in ("levitax.train", "levitax.data"):
        package = importlib.import_module(module)
        for name in dir(package):
            value = getattr(package, name)
            if name.startswith("_") or not callable(value) or not getattr(value, "__module__", "").startswith(module):
                continue
            if set(TAKEN) & set(inspect.signature(value).parameters):
                found.add(f"{module}.{name}")
    assert found == COVERED | CONTAINERS


# Wrong dtypes and shapes, which are an error under `jax.jit` too.
WRONG_FORMS: dict[str, Any] = {
    "floats": LABELS.astype(np.float32),
    "booleans": LABELS > 2,
    "a column": LABELS[:, None],
    "a row": LABELS[None, :],
    "one for all": LABELS[:1],
    "too few": LABELS[:5],
    "too many": np.tile(LABELS, 2),
    "none": LABELS[:0],
    "a number": np.int32(1),
    "integer distributions": np.eye(CLASSES, dtype=np.int32)[LABELS],
    "boolean distributions": np.eye(CLASSES, dtype=bool)[LABELS],
    "fewer classes": DISTRIBUTIONS[:, :4],
    "one class": DISTRIBUTIONS[:, :1],
    "too few distributions": DISTRIBUTIONS[:1],
    "three axes": DISTRIBUTIONS[None],
}
NO_ARRAYS: dict[str, Any] = {
    "nothing": None,
    "names": np.array(["cat", "dog", "cat", "dog", "cat", "dog"]),
    "a word": "cat",
    "a list of numbers": [0.0, 1.0, 2.0, 3.0, 4.0, 1.0],
    "a ragged list": [[0], [1, 2], [3], [4], [0], [1]],
    "a tuple": TeacherTargets(LABELS, TEACHER),
}
# One wrong value.
WRONG_NUMBERS: dict[str, Any] = {
    "negative": changed(LABELS, 3, -1),
    "too large": changed(LABELS, 3, CLASSES),
    "far too large": changed(LABELS, 3, 2**31 - 1),
    "negative byte": changed(LABELS, 3, -128, np.int8),
    "too large for a byte": changed(LABELS, 3, 255, np.uint8),
}
# JAX truncates these before it calls a function.
WIDE_NUMBERS: dict[str, Any] = {
    "wide": changed(LABELS, 3, 2**32 + 1, np.int64),
    "wide and negative": changed(LABELS, 3, 1 - 2**32, np.int64),
    "wide without sign": changed(LABELS, 3, 2**63 + 1, np.uint64),
}
WRONG_DISTRIBUTIONS: dict[str, Any] = {
    "sum": changed(DISTRIBUTIONS, 3, 0.9 * DISTRIBUTIONS[3]),
    "percent": changed(DISTRIBUTIONS, 3, 100 * DISTRIBUTIONS[3]),
    "zeros": changed(DISTRIBUTIONS, 3, 0),
    "negative": changed(DISTRIBUTIONS, 3, [-0.5, 0.5, 0.5, 0.5, 0]),
    "NaN": changed(DISTRIBUTIONS, (3, 2), np.nan),
    "infinite": changed(DISTRIBUTIONS, (3, 2), np.inf),
    "sum, float16": changed(DISTRIBUTIONS, 3, 0.9 * DISTRIBUTIONS[3], np.float16),
    "sum, bfloat16": changed(DISTRIBUTIONS, 3, 0.9 * DISTRIBUTIONS[3], ml_dtypes.bfloat16),
}

by_name = lambda table: pytest.mark.parametrize("name", table)
called = lambda *tables: pytest.mark.parametrize(
    "call", [call for table in tables for call in table.values()], ids=[name for table in tables for name in table]
)


def outcome(call, *arguments):
    """Returns the result of the call as NumPy arrays, or the error."""
    try:
        return jax.tree.map(np.asarray, call(*arguments))
    except (TypeError, ValueError) as error:
        return error


def is_nan(result):
    return not isinstance(result, Exception) and all(np.isnan(leaf).all() for leaf in jax.tree.leaves(result))


@by_name(WRONG_FORMS)
@called(LOSSES, METRICS, TRAINING)
def test_labels_of_a_wrong_form_are_refused_under_jit_too(name, call):
    labels = WRONG_FORMS[name]
    assert isinstance(outcome(call, labels), Exception)
    if call in LOSSES.values():
        message = outcome(jax.jit(call), labels)
        assert isinstance(message, Exception) and str(np.shape(labels)) in str(message)


@by_name(NO_ARRAYS)
@called(LOSSES, METRICS, TRAINING, {"one_hot": lambda labels: one_hot(labels, CLASSES)})
def test_labels_that_are_not_arrays_are_refused(name, call):
    assert isinstance(outcome(call, NO_ARRAYS[name]), Exception)


@by_name(WRONG_NUMBERS | WIDE_NUMBERS)
@called(LOSSES, METRICS, {"one_hot": lambda labels: one_hot(labels, CLASSES)})
def test_concrete_wrong_labels_are_refused_with_value_rule_and_position(name, call):
    labels = (WRONG_NUMBERS | WIDE_NUMBERS)[name]
    message = outcome(call, labels)
    assert isinstance(message, ValueError)
    assert re.search(rf"abels\[3\]` is {labels[3]}; expected|Image 3 has label {labels[3]}; expected", str(message))
    assert "from 0 to 4" in str(message) or re.search("fit in u?int32", str(message))
    if name in WRONG_NUMBERS:
        assert isinstance(outcome(call, jnp.asarray(labels)), ValueError)


@by_name(WRONG_DISTRIBUTIONS)
@called(LOSSES)
def test_concrete_wrong_distributions_are_refused(name, call):
    for convert in (np.asarray, jnp.asarray):
        message = outcome(call, convert(WRONG_DISTRIBUTIONS[name]))
        assert isinstance(message, ValueError)
        assert "abels[3]`" in str(message) and "sums to" in str(message) and "sum to 1" in str(message)


def test_the_first_wrong_label_is_named_and_the_others_are_counted():
    with pytest.raises(ValueError, match=r"`labels\[1\]` is 9, and 2 more .* expected .* from 0 to 4"):
        cross_entropy(jnp.asarray(LOGITS), np.array([0, 9, 2, -1, 4, 7]))
    with pytest.raises(ValueError, match=r"`labels\[1\]` is 9; expected .* from 0 to 4"):
        cross_entropy(jnp.zeros((2, 5)), np.array([0, 9]))
    with pytest.raises(ValueError, match=r"`targets\.labels\[1\]` is 9, and 2 more"):
        distillation_loss(HEADS, TeacherTargets(np.array([0, 9, 2, -1, 4, 7]), TEACHER))


@called(LOSSES)
def test_traced_wrong_labels_make_the_loss_and_its_gradient_nan(call):
    # Compiles once for each dtype and shape.
    run = jax.jit(call)
    for labels in (WRONG_NUMBERS | WRONG_DISTRIBUTIONS).values():
        assert is_nan(outcome(run, labels)), labels
    for labels in (LABELS, LABELS.astype(np.int8), LABELS.astype(np.uint8), DISTRIBUTIONS):
        np.testing.assert_allclose(run(labels), call(labels), rtol=1e-6)


def test_traced_wrong_labels_make_the_gradient_nan():
    # A finite gradient would train on the wrong row.
    gradient = jax.jit(jax.grad(cross_entropy))
    for labels in (WRONG_NUMBERS["negative"], WRONG_NUMBERS["too large"], *WRONG_DISTRIBUTIONS.values()):
        assert np.isnan(gradient(jnp.asarray(LOGITS), labels)[3]).all()
    # The labels are concrete, although the logits are traced.
    with pytest.raises(ValueError, match=r"`labels\[3\]` is -1"):
        jax.jit(lambda logits: cross_entropy(logits, WRONG_NUMBERS["negative"]))(LOGITS)


def test_a_vmap_hides_values_too():
    labels = np.stack([LABELS, WRONG_NUMBERS["too large"]])
    losses = jax.vmap(partial(cross_entropy, jnp.asarray(LOGITS)))(labels)
    assert np.isfinite(losses[0]) and np.isnan(losses[1])


@by_name(WRONG_NUMBERS | WRONG_DISTRIBUTIONS)
def test_a_training_step_with_wrong_labels_is_nan(name):
    assert is_nan(outcome(after_a_step, (WRONG_NUMBERS | WRONG_DISTRIBUTIONS)[name]))


def test_one_hot_of_traced_wrong_labels_is_a_row_of_nan():
    for labels in WRONG_NUMBERS.values():
        rows = np.array(jax.jit(partial(one_hot, classes=CLASSES))(labels))
        assert np.isnan(rows[3]).all()
        np.testing.assert_array_equal(np.delete(rows, 3, 0), np.delete(np.eye(CLASSES)[LABELS], 3, 0))


@pytest.mark.parametrize("dtype", ("int8", "uint8", "int16", "uint32", "int64", "uint64"))
def test_labels_may_be_integers_of_any_kind(dtype):
    labels = LABELS.astype(dtype)
    # More classes than a byte can hold.
    rows = np.asarray(one_hot(labels, 300))
    np.testing.assert_array_equal(rows, np.eye(300)[LABELS])
    assert cross_entropy(jnp.asarray(LOGITS), labels) == cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    assert evaluate(PREDICT, IMAGES, labels)[:3] == evaluate(PREDICT, IMAGES, LABELS)[:3]


def test_a_list_of_integers_is_as_good_as_an_array():
    listed: Any = LABELS.tolist()
    assert cross_entropy(jnp.asarray(LOGITS), listed) == cross_entropy(jnp.asarray(LOGITS), LABELS)
    assert evaluate(PREDICT, IMAGES, listed)[:3] == evaluate(PREDICT, IMAGES, LABELS)[:3]
    with pytest.raises(ValueError, match=r"`labels\[1\]` is 9"):
        cross_entropy(jnp.zeros((2, 5)), [0, 9])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", (np.float32, np.float16, ml_dtypes.bfloat16))
@pytest.mark.parametrize("classes", (2, 1000))
def test_rounding_alone_makes_no_distribution_wrong(classes, dtype):
    # Rows of mixing and of softmax: computed in this dtype, or rounded to bfloat16 and cast back.
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (8, classes)), dtype)
    numbers = jnp.asarray(rng.integers(0, classes, 8))
    mixed = mixup(jnp.zeros((8, 1, 1, 1)), one_hot(numbers, classes).astype(logits.dtype), jnp.float32(0.3))[1]
    twice = mixup(jnp.zeros((8, 1, 1, 1)), mixed, jnp.float32(0.7))[1]
    soft = jax.nn.softmax(logits)
    for targets in (mixed, twice, soft, soft.astype(jnp.bfloat16).astype(jnp.float32), soft.astype(jnp.float32)):
        assert np.isfinite(cross_entropy(jnp.zeros((8, classes)), targets))
        assert np.isfinite(jax.jit(cross_entropy)(jnp.zeros((8, classes)), targets))


WRONG_TEACHERS: dict[str, Any] = {
    "NaN": changed(TEACHER, (3, 2), np.nan),
    "a row of NaN": changed(TEACHER, 3, np.nan),
    "infinite": changed(TEACHER, (3, 2), np.inf),
    "minus infinite": changed(TEACHER, (3, 2), -np.inf),
    "infinite, float16": changed(TEACHER, (3, 2), np.inf, np.float16),
    "NaN, bfloat16": changed(TEACHER, (3, 2), np.nan, ml_dtypes.bfloat16),
}
WRONG_TEACHER_FORMS: dict[str, Any] = {
    "integers": TEACHER.astype(np.int32),
    "booleans": TEACHER > 0,
    "classes": TEACHER[:, :4],
    "one class": TEACHER[:, :1],
    "images": TEACHER[:5],
    "one image": TEACHER[:1],
    "class numbers": TEACHER.argmax(-1),
    "three axes": TEACHER[None],
    "nothing": None,
    "two heads": DistilledLogits(TEACHER, TEACHER),
}
kinds = pytest.mark.parametrize("kind", ("hard", "soft"))


@kinds
def test_teacher_logits_that_are_not_finite_are_refused_or_nan(kind):
    distill = lambda teacher: distillation_loss(HEADS, TeacherTargets(LABELS, teacher), kind=kind)
    gradient = jax.jit(
        lambda teacher: jax.grad(lambda heads: distillation_loss(heads, TeacherTargets(LABELS, teacher), kind=kind))(
            HEADS
        ).distillation[3]
    )
    for teacher in WRONG_TEACHERS.values():
        message = outcome(distill, teacher)
        assert isinstance(message, ValueError)
        assert "`targets.teacher_logits[3]` holds" in str(message) and "expected finite" in str(message)
        assert is_nan(outcome(jax.jit(distill), teacher)) and is_nan(outcome(gradient, teacher))
    for name, teacher in WRONG_TEACHER_FORMS.items():
        assert isinstance(outcome(distill, teacher), Exception), name
        if name not in ("nothing", "two heads"):
            assert isinstance(outcome(jax.jit(distill), teacher), Exception), name


@kinds
def test_targets_of_distillation_are_labels_with_logits_of_a_teacher(kind):
    for targets in (LABELS, (LABELS, TEACHER), None):
        with pytest.raises(TypeError, match=r"`targets` is of type .*expected a `levitax\.train\.TeacherTargets`"):
            distillation_loss(HEADS, targets, kind=kind)  # type: ignore[arg-type]


WRONG_LOGITS: dict[str, Any] = {
    "integers": LOGITS.astype(np.int32),
    "one image": LOGITS[0],
    "three axes": LOGITS[None],
    "no images": LOGITS[:0],
    "with the state": (LOGITS, None),
    "heads of two sizes": DistilledLogits(jnp.asarray(LOGITS), jnp.asarray(LOGITS[:, :4])),
    "nothing": None,
}


@by_name(WRONG_LOGITS)
def test_logits_of_a_wrong_form_are_refused(name):
    logits = WRONG_LOGITS[name]
    labels = LABELS[: len(logits)] if name == "no images" else LABELS
    for loss in (
        cross_entropy,
        lambda logits, labels: distillation_loss(
            DistilledLogits(logits, logits), TeacherTargets(labels, TEACHER[: len(labels)])
        ),
    ):
        with pytest.raises((TypeError, ValueError), match="`logits"):
            loss(logits, labels)


# For each keyword: the call, wrong values, and right values at the limits.
NUMBERS: dict[str, tuple[Callable[[Any], Any], list[Any], list[Any]]] = {
    "label_smoothing": (
        lambda value: cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), label_smoothing=value),
        [-0.1, 1.0, 1.5, np.nan],
        [0.0, 0.99],
    ),
    "alpha": (
        lambda value: distillation_loss(HEADS, TeacherTargets(LABELS, TEACHER), alpha=value),
        [-0.1, 1.1, np.nan],
        [0.0, 1.0],
    ),
    "temperature": (
        lambda value: distillation_loss(HEADS, TeacherTargets(LABELS, TEACHER), kind="soft", temperature=value),
        [0.0, -1.0, np.nan, np.inf],
        [0.1, 10.0],
    ),
    "lam": (
        lambda value: mixup(jnp.asarray(IMAGES), jnp.asarray(DISTRIBUTIONS), value),
        [-0.1, 1.1, np.nan],
        [0.0, 1.0],
    ),
    "lam of cutmix": (
        lambda value: cutmix(jnp.asarray(IMAGES), jnp.asarray(DISTRIBUTIONS), value, CENTRE),
        [-0.1, 1.1, np.nan],
        [0.0, 1.0],
    ),
}


@by_name(NUMBERS)
def test_numbers_out_of_range_are_refused_or_nan(name):
    call, wrong, right = NUMBERS[name]
    run, keyword = jax.jit(call), name.split()[0]
    for value in wrong:
        for convert in (float, np.float32, jnp.float32):
            with pytest.raises(ValueError, match=rf"`{keyword}` is {str(value)[:3]}.*; expected"):
                call(convert(value))
        assert is_nan(outcome(run, jnp.float32(value)))
    for value in right:
        for result in (call(value), run(jnp.float32(value))):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    for value in ("much", None, True, np.zeros(2)):
        with pytest.raises(TypeError, match=rf"`{keyword}` is"):
            call(value)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("mixup_alpha", (-1.0, np.nan, np.inf)),
        ("cutmix_alpha", (-1.0, np.nan, np.inf)),
        ("probability", (-0.1, 1.1, np.nan)),
        ("switch_probability", (-0.1, 1.1, np.nan)),
    ],
)
def test_parameters_of_mixing_out_of_range_are_refused(keyword, values):
    for value in values:
        with pytest.raises(ValueError, match=f"`{keyword}` is"):
            mix(jnp.asarray(IMAGES), jnp.asarray(DISTRIBUTIONS), **{keyword: value}, key=jax.random.key(0))


WRONG_MIXED: dict[str, Any] = {
    "class numbers": jnp.asarray(LABELS),
    "booleans": jnp.asarray(LABELS > 2),
    "too few": jnp.asarray(DISTRIBUTIONS[:5]),
    "one": jnp.asarray(DISTRIBUTIONS[:1]),
    "too many": jnp.asarray(np.tile(DISTRIBUTIONS, (2, 1))),
    "a number": jnp.float32(1),
    "one of several": {"right": jnp.asarray(DISTRIBUTIONS), "wrong": jnp.asarray(DISTRIBUTIONS[:5])},
}


@by_name(WRONG_MIXED)
@called(MIXING)
def test_targets_that_cannot_be_mixed_are_refused(name, call):
    # Without mixing, class numbers are accepted and returned unchanged.
    if call is MIXING["prepare"] and name in ("class numbers", "booleans"):
        return
    for run in (call, jax.jit(call)):
        message = outcome(run, WRONG_MIXED[name])
        assert isinstance(message, Exception) and "targets" in str(message)


def test_images_that_cannot_be_mixed_are_refused():
    for function in (mixup, partial(cutmix, centre=CENTRE)):
        with pytest.raises(TypeError, match=r"`images` has .* dtype uint8; expected floating"):
            function(jnp.asarray(BYTES), jnp.asarray(DISTRIBUTIONS), lam=jnp.float32(0.5))


def test_a_box_lies_in_the_image():
    paste = lambda centre: cutmix(jnp.asarray(IMAGES), jnp.asarray(DISTRIBUTIONS), jnp.float32(0.5), centre)
    for centre in ([1, 2], [0, 5], [-1, 2]):
        with pytest.raises(ValueError, match=r"`centre\[\d\]` is -?\d; expected"):
            paste(jnp.array(centre))
        assert is_nan(outcome(jax.jit(paste), jnp.array(centre)))


def test_labels_sharded_over_devices_are_checked():
    mesh = levitax.train.make_mesh()
    labels = np.tile(WRONG_NUMBERS["too large"], mesh.size)
    logits = np.tile(LOGITS, (mesh.size, 1))
    spread = shard_batch((logits, labels), mesh)
    with pytest.raises(ValueError, match=r"`labels\[3\]` is 5"):
        cross_entropy(*spread)
