from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.train import EvalBatch, evaluate, evaluate_batches, Evaluation, predict_logits


IMAGES = 7
predictors = pytest.mark.parametrize("predictor", (levitax.Predictor, levitax.fuse), ids=("as it is", "fused"))
# Smaller than the number of images, equal to it, larger.
batch_sizes = pytest.mark.parametrize("batch_size", (3, IMAGES, 10))


@pytest.fixture
def trained(make, randomise):
    return randomise(*make(image_size=8, stages=1, dim=16, heads=1))


@pytest.fixture
def x(images):
    return np.asarray(images(IMAGES, 8, 8, 3))


def one_by_one(predict, x):
    run = eqx.filter_jit(lambda predict, image: predict(image))
    return np.stack([run(predict, image) for image in x])


def cross_entropies(logits, labels):
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -np.log(probabilities[np.arange(len(labels)), labels])


@predictors
@batch_sizes
def test_logits_are_those_of_single_images(predictor, batch_size, trained, x):
    predict = predictor(*trained)
    logits = predict_logits(predict, x, batch_size=batch_size)
    np.testing.assert_allclose(logits, one_by_one(predict, x), rtol=1e-5, atol=1e-5)


@predictors
@batch_sizes
def test_loss_and_accuracy_are_those_of_single_images(predictor, batch_size, trained, x):
    predict = predictor(*trained)
    logits = one_by_one(predict, x)
    # The first four are right.
    labels = (logits.argmax(-1) + (np.arange(IMAGES) >= 4)) % 5
    evaluation = evaluate(predict, x, labels, batch_size=batch_size)
    assert evaluation.loss == pytest.approx(cross_entropies(logits, labels).mean(), rel=1e-5)
    assert evaluation.accuracy == 4 / IMAGES


class Pixels(eqx.Module):
    """Its logits are the pixels of the image, and NaN where all are 0."""

    def __call__(self, image, state, *, key=None):
        del key
        return image.ravel() * (image.max() / image.max()), state


PIXELS: Any = levitax.Predictor(Pixels(), eqx.nn.State(Pixels()))


def draw(images, classes):
    rng = np.random.default_rng(0)
    return rng.normal(size=(images, 1, classes, 1)).astype(np.float32), rng.integers(0, classes, images)


# Below five classes all of them are among the five likeliest.
@pytest.mark.parametrize("classes", (2, 4, 5, 6, 10))
def test_every_number_is_what_it_says(classes):
    x, labels = draw(40, classes)
    logits = x.reshape(40, classes)
    loss, accuracy, top5, confusion = evaluate(PIXELS, x, labels, batch_size=16)
    order = np.argsort(-logits, axis=-1)
    assert loss == pytest.approx(cross_entropies(logits, labels).mean(), rel=1e-5)
    assert accuracy == pytest.approx((order[:, 0] == labels).mean())
    assert top5 == pytest.approx((order[:, :5] == labels[:, None]).any(-1).mean())
    assert (top5 == 1) == (classes <= 5)
    expected = np.zeros((classes, classes), int)
    for label, taken_for in zip(labels, order[:, 0], strict=True):
        expected[label, taken_for] += 1
    np.testing.assert_array_equal(confusion, expected)
    assert not np.array_equal(expected, expected.T)


def test_the_accuracy_of_a_class_without_images_is_nan():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    evaluation = Evaluation(0.5, 0.5, 1.0, confusion)
    np.testing.assert_array_equal(evaluation.per_class, [0.75, np.nan, 0])


def test_what_weighs_nothing_does_not_count():
    x, labels = draw(12, 6)
    # Black images, which the predictor makes NaN of, and others with labels of their own.
    counts = np.arange(12) % 3 != 1
    filled = np.where((np.arange(12) % 2 == 1)[:, None, None, None] & ~counts[:, None, None, None], 0, x)
    assert np.isnan(predict_logits(PIXELS, filled)).any()
    weights = counts.astype(np.float32)
    batches = [EvalBatch(filled[rows], labels[rows], weights[rows]) for rows in (slice(6), slice(6, 12))]
    ours, expected = evaluate_batches(PIXELS, batches), evaluate(PIXELS, x[counts], labels[counts])
    assert ours.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (ours.accuracy, ours.top5) == (expected.accuracy, expected.top5)
    np.testing.assert_array_equal(ours.confusion, expected.confusion)


def test_batches_may_be_of_jax_and_come_one_by_one():
    x, labels = draw(12, 6)
    batches = (
        EvalBatch(jnp.asarray(x[rows]), jnp.asarray(labels[rows]), jnp.ones(4)) for rows in np.split(np.arange(12), 3)
    )
    ours, expected = evaluate_batches(PIXELS, batches), evaluate(PIXELS, x, labels, batch_size=4)
    assert ours[:3] == expected[:3]
    np.testing.assert_array_equal(ours.confusion, expected.confusion)


def test_nothing_cannot_be_evaluated():
    x, labels = draw(4, 6)
    for function in (lambda: evaluate(PIXELS, x[:0], labels[:0]), lambda: predict_logits(PIXELS, x[:0])):
        with pytest.raises(ValueError, match="`images` is empty"):
            function()
    nothing = EvalBatch(x, labels, np.zeros(4, np.float32))
    for batches in ([], [nothing]):
        with pytest.raises(ValueError, match="no images to evaluate"):
            evaluate_batches(PIXELS, batches)
