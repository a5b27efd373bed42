import equinox as eqx
import numpy as np
import pytest

import levitax
from levitax.train import evaluate, predict_logits


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
    logits = one_by_one(predict, x).astype(np.float64)
    # The first four are right.
    labels = (logits.argmax(-1) + (np.arange(IMAGES) >= 4)) % 5
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    loss, accuracy = evaluate(predict, x, labels, batch_size=batch_size)
    assert loss == pytest.approx(-np.log(probabilities[np.arange(IMAGES), labels]).mean(), rel=1e-5)
    assert accuracy == 4 / IMAGES
