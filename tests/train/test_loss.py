import jax.numpy as jnp
import numpy as np
import pytest

from levitax.nn import DistilledLogits
from levitax.train import cross_entropy


rng = np.random.default_rng(0)
LOGITS, OTHER_LOGITS = rng.normal(0, 3, (2, 6, 5)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 1])
DISTRIBUTIONS = rng.dirichlet(np.ones(5), 6).astype(np.float32)

targets = pytest.mark.parametrize("labels", (LABELS, DISTRIBUTIONS), ids=("numbers", "distributions"))
smoothings = pytest.mark.parametrize("smoothing", (0.0, 0.1, 1.0))


def expected(logits, labels, smoothing):
    """The definition, in float64."""
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = np.eye(5)[labels] if labels.ndim == 1 else labels.astype(np.float64)
    wanted = (1 - smoothing) * wanted + smoothing / 5
    return -(wanted * np.log(probabilities)).sum(-1).mean()


@targets
@smoothings
def test_it_is_the_mean_cross_entropy(labels, smoothing):
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(labels), label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected(LOGITS, labels, smoothing), rtol=1e-6)


@targets
@smoothings
def test_of_two_heads_it_is_the_mean(labels, smoothing):
    logits = DistilledLogits(jnp.asarray(LOGITS), jnp.asarray(OTHER_LOGITS))
    loss = cross_entropy(logits, jnp.asarray(labels), label_smoothing=smoothing)
    mean = (expected(LOGITS, labels, smoothing) + expected(OTHER_LOGITS, labels, smoothing)) / 2
    np.testing.assert_allclose(loss, mean, rtol=1e-6)


def test_nothing_is_smoothed_unless_asked_for():
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(loss, expected(LOGITS, LABELS, 0.0), rtol=1e-6)


def test_large_logits_do_not_overflow():
    logits = jnp.array([[1000.0, 0.0, -1000.0]])
    assert cross_entropy(logits, jnp.array([1])) == 1000
