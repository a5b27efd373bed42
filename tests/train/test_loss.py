from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from levitax.nn import DistilledLogits
from levitax.train import cross_entropy, distillation_loss, one_hot, TeacherTargets


rng = np.random.default_rng(0)
LOGITS, OTHER_LOGITS = rng.normal(0, 3, (2, 6, 5)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 1])
DISTRIBUTIONS = rng.dirichlet(np.ones(5), 6).astype(np.float32)

targets = pytest.mark.parametrize("labels", (LABELS, DISTRIBUTIONS), ids=("numbers", "distributions"))
smoothings = pytest.mark.parametrize("smoothing", (0.0, 0.1, 0.9))


def expected(logits, labels, smoothing):
    """Returns the cross-entropy by its definition, in float64."""
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
def test_the_loss_of_two_heads_is_their_mean(labels, smoothing):
    logits = DistilledLogits(jnp.asarray(LOGITS), jnp.asarray(OTHER_LOGITS))
    loss = cross_entropy(logits, jnp.asarray(labels), label_smoothing=smoothing)
    mean = (expected(LOGITS, labels, smoothing) + expected(OTHER_LOGITS, labels, smoothing)) / 2
    np.testing.assert_allclose(loss, mean, rtol=1e-6)


def test_labels_are_not_smoothed_by_default():
    loss = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(loss, expected(LOGITS, LABELS, 0.0), rtol=1e-6)


def test_large_logits_do_not_overflow():
    logits = jnp.array([[1000.0, 0.0, -1000.0]])
    assert cross_entropy(logits, jnp.array([1])) == 1000


TEACHER_LOGITS = rng.normal(0, 3, (6, 5)).astype(np.float32)
HEADS = DistilledLogits(jnp.asarray(LOGITS), jnp.asarray(OTHER_LOGITS))
# The teacher's predictions differ from the labels.
assert (TEACHER_LOGITS.argmax(-1) != LABELS).any()


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def expected_hard(labels, alpha, smoothing):
    base = expected(LOGITS, labels, smoothing)
    return (1 - alpha) * base + alpha * expected(OTHER_LOGITS, TEACHER_LOGITS.argmax(-1), 0.0)


def expected_soft(labels, alpha, temperature, smoothing):
    student, teacher = (softmax(logits.astype(np.float64) / temperature) for logits in (OTHER_LOGITS, TEACHER_LOGITS))
    divergence = (teacher * np.log(teacher / student)).sum() / teacher.size
    return (1 - alpha) * expected(LOGITS, labels, smoothing) + alpha * temperature**2 * divergence


@targets
@smoothings
@pytest.mark.parametrize("alpha", (0.0, 0.3, 1.0))
def test_hard_distillation_is_its_definition(labels, smoothing, alpha):
    given = TeacherTargets(jnp.asarray(labels), jnp.asarray(TEACHER_LOGITS))
    loss = distillation_loss(HEADS, given, alpha=alpha, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected_hard(labels, alpha, smoothing), rtol=1e-6)


@targets
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.0), (0.3, 3.0), (1.0, 0.5)])
def test_soft_distillation_is_its_definition(labels, alpha, temperature):
    given = TeacherTargets(jnp.asarray(labels), jnp.asarray(TEACHER_LOGITS))
    loss = distillation_loss(HEADS, given, kind="soft", alpha=alpha, temperature=temperature, label_smoothing=0.1)
    np.testing.assert_allclose(loss, expected_soft(labels, alpha, temperature, 0.1), rtol=1e-5)


def test_by_default_half_of_the_loss_is_hard_distillation():
    loss = distillation_loss(HEADS, TeacherTargets(jnp.asarray(LABELS), jnp.asarray(TEACHER_LOGITS)))
    np.testing.assert_allclose(loss, expected_hard(LABELS, 0.5, 0.0), rtol=1e-6)


def test_a_student_with_the_logits_of_the_teacher_has_no_gradient():
    given = TeacherTargets(jnp.asarray(LABELS), HEADS.distillation)
    loss = distillation_loss(HEADS, given, kind="soft", alpha=1.0, temperature=2.0)
    np.testing.assert_allclose(loss, 0, atol=1e-7)


@pytest.mark.parametrize("kind", ("hard", "soft"))
def test_each_head_learns_from_its_own_target(kind):
    loss = partial(distillation_loss, kind=kind)
    of_labels = lambda alpha: jax.grad(loss)(
        HEADS, TeacherTargets(jnp.asarray(LABELS), jnp.asarray(TEACHER_LOGITS)), alpha=alpha
    )
    classification, distillation = of_labels(0.0)
    assert jnp.abs(classification).max() > 0.01 and (distillation == 0).all()
    classification, distillation = of_labels(1.0)
    assert (classification == 0).all() and jnp.abs(distillation).max() > 0.01


@pytest.mark.parametrize("kind", ("hard", "soft"))
def test_large_logits_do_not_overflow_in_distillation(kind):
    heads = DistilledLogits(jnp.array([[1000.0, 0.0, -1000.0]]), jnp.array([[0.0, 1000.0, -1000.0]]))
    given = TeacherTargets(jnp.array([1]), jnp.array([[1000.0, 0.0, -1000.0]]))
    loss = distillation_loss(heads, given, kind=kind)
    assert loss == (1000 if kind == "hard" else 500 + 500 / 3)


@pytest.mark.usefixtures("unchecked")
def test_one_head_cannot_be_distilled():
    given = TeacherTargets(jnp.asarray(LABELS), jnp.asarray(TEACHER_LOGITS))
    with pytest.raises(TypeError, match=r"`logits` is of type .*two heads.*distillation=True.*training mode"):
        distillation_loss(jnp.asarray(LOGITS), given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", ((6, 4), (5, 5)), ids=("classes", "images"))
def test_the_teacher_must_know_the_same_images_and_classes(shape):
    with pytest.raises(ValueError, match=rf"`targets\.teacher_logits` has shape \({shape[0]}, {shape[1]}\).*\(6, 5\)"):
        distillation_loss(HEADS, TeacherTargets(jnp.asarray(LABELS), jnp.zeros(shape)))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_of_distillation():
    given = TeacherTargets(jnp.asarray(LABELS), jnp.asarray(TEACHER_LOGITS))
    with pytest.raises(ValueError, match=r"`kind` is 'sofd'; expected one of 'hard', 'soft'\. Did you mean 'soft'"):
        distillation_loss(HEADS, given, kind="sofd")  # type: ignore[arg-type]


@pytest.mark.parametrize("convert", (np.asarray, jnp.asarray), ids=("numpy", "jax"))
def test_one_hot_has_a_one_in_the_column_of_each_label(convert):
    ours = one_hot(convert(LABELS), 7)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, np.eye(7)[LABELS])
