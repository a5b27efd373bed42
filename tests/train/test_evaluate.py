import os
import socket
import subprocess
import sys
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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
    # The labels of the first four images match the predictions.
    labels = (logits.argmax(-1) + (np.arange(IMAGES) >= 4)) % 5
    evaluation = evaluate(predict, x, labels, batch_size=batch_size)
    assert evaluation.loss == pytest.approx(cross_entropies(logits, labels).mean(), rel=1e-5)
    assert evaluation.accuracy == 4 / IMAGES


class Pixels(eqx.Module):
    """A model whose logits are the pixels of the image, or NaN if all pixels are 0."""

    def __call__(self, image, state, *, key=None):
        del key
        return image.ravel() * (image.max() / image.max()), state


PIXELS: Any = levitax.Predictor(Pixels(), eqx.nn.State(Pixels()))


def draw(images, classes):
    rng = np.random.default_rng(0)
    return rng.normal(size=(images, 1, classes, 1)).astype(np.float32), rng.integers(0, classes, images)


# With fewer than five classes, every class is in the top 5.
@pytest.mark.parametrize("classes", (2, 4, 5, 6, 10))
def test_every_metric_matches_its_definition(classes):
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


def test_images_of_weight_zero_do_not_count():
    x, labels = draw(12, 6)
    # Images of weight 0: black ones, whose logits are NaN, and others that would change the metrics.
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


# Weights of the first six images, and labels of them.
FAULTS: dict[str, tuple[dict[int, float], dict[int, int], str]] = {
    "negative label": ({}, {3: -1, 5: -100}, "Image 3 has label -1, and 1 more .* expected .* from 0 to 5"),
    "label too large": ({}, {3: 6}, "Image 3 has label 6; expected .* from 0 to 5, since `predict` returns 6 logits"),
    "half weight": ({4: 0.5}, {}, r"Image 4 has weight 0\.5; expected 1 .* else 0"),
    "double weight": ({4: 2.0}, {}, r"Image 4 has weight 2\.0"),
    "negative weight": ({4: -1.0, 5: -1.0}, {}, r"Image 4 has weight -1\.0, and 1 more"),
    "NaN weight": ({4: np.nan}, {}, "Image 4 has weight nan"),
}


@pytest.mark.parametrize(("weights", "labels", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("convert", (np.asarray, jnp.asarray), ids=("numpy", "jax"))
def test_labels_and_weights_are_checked(weights, labels, message, convert):
    x, right = draw(12, 6)
    all_weights, all_labels = np.ones(12, np.float32), right.copy()
    for table, array in ((weights, all_weights), (labels, all_labels)):
        for row, value in table.items():
            array[row] = value
    # The number of an image in the second batch includes the images of the first.
    for size in (12, 3):
        batches = [
            EvalBatch(*map(convert, (x[i : i + size], all_labels[i : i + size], all_weights[i : i + size])))
            for i in range(0, 12, size)
        ]
        with pytest.raises(ValueError, match=message if size == 12 else message.partition(",")[0].partition(";")[0]):
            evaluate_batches(PIXELS, batches)
    if not weights:
        with pytest.raises(ValueError, match=message):
            evaluate(PIXELS, x, convert(all_labels), batch_size=12)


def test_a_label_that_needs_more_bits_is_not_cut_to_a_right_one():
    x, labels = draw(12, 6)
    labels[3] += 2**32
    with pytest.raises(ValueError, match=rf"(`labels\[3\]` is|Image 3 has label) {labels[3]}; expected"):
        evaluate(PIXELS, x, labels)


@pytest.mark.usefixtures("unchecked")
def test_as_many_labels_as_images():
    x, labels = draw(8, 6)
    for images, numbers in ((x, labels[:5]), (x[:5], labels), (x, labels[:1]), (x, labels[:, None])):
        for call in (
            lambda images=images, numbers=numbers: evaluate(PIXELS, images, numbers),
            lambda images=images, numbers=numbers: evaluate_batches(
                PIXELS, [EvalBatch(images, numbers, np.ones(len(images), np.float32))]
            ),
        ):
            with pytest.raises(
                ValueError, match=rf"`labels` has shape .* expected integers of shape \({len(images)},\)"
            ):
                call()
    for weights in (np.ones(5, np.float32), np.ones(1, np.float32), np.ones((8, 1), np.float32), np.array(1.0)):
        with pytest.raises(ValueError, match=r"`weights` has shape .* \(8,\)"):
            evaluate_batches(PIXELS, [EvalBatch(x, labels, weights)])


def test_images_of_weight_zero_may_have_any_label_and_weights_any_dtype():
    x, labels = draw(6, 6)
    expected = evaluate(PIXELS, x[:4], labels[:4])
    labels[4:] = -100, 6
    for dtype in (np.float32, np.float16, np.int64, np.uint8, bool):
        weights = np.array([1, 1, 1, 1, 0, 0], dtype)
        ours = evaluate_batches(PIXELS, [EvalBatch(x, labels, weights)])
        assert ours[:3] == expected[:3]
        np.testing.assert_array_equal(ours.confusion, expected.confusion)


def test_nan_logits_have_no_likeliest_class():
    x, labels = draw(12, 6)
    x[[7, 9]] = 0
    for numbers in (labels, np.zeros(12, int)):
        with pytest.raises(ValueError, match=r"Image 7 has largest logit nan, and 1 more .*weights and this image"):
            evaluate(PIXELS, x, numbers, batch_size=6)
    assert np.isnan(predict_logits(PIXELS, x)).all(1).tolist() == [row in (7, 9) for row in range(12)]
    # A logit of -inf rules a class out. An infinite largest logit is an overflow.
    flat = levitax.Predictor(Flat(), eqx.nn.State(Flat()))
    x, labels = draw(6, 6)
    x[2, 0, 3], labels[2] = -np.inf, 1
    assert np.isfinite(evaluate(flat, x, labels).loss)
    for row in (np.inf, -np.inf):
        x[2, 0, :] = row
        with pytest.raises(ValueError, match=f"Image 2 has largest logit {row}; expected a finite number"):
            evaluate(flat, x, labels)


def test_arrays_on_an_explicit_mesh_are_evaluated():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    x, labels = draw(12, 6)
    expected = evaluate(PIXELS, x, labels)
    there = [jax.device_put(array, NamedSharding(mesh, PartitionSpec("data"))) for array in (x, labels)]
    ours = evaluate(PIXELS, there[0], there[1], batch_size=5)
    assert ours.loss == pytest.approx(expected.loss) and np.array_equal(ours.confusion, expected.confusion)
    weights = jax.device_put(np.ones(12, np.float32), there[1].sharding)
    ours = evaluate_batches(PIXELS, [EvalBatch(there[0], there[1], weights)])
    assert ours.loss == pytest.approx(expected.loss) and np.array_equal(ours.confusion, expected.confusion)


def test_values_that_are_not_a_batch(unchecked):
    x, labels = draw(6, 6)
    for batches in (EvalBatch(x, labels, np.ones(6, np.float32)), [x], [(x, labels)], [{"images": x}]):
        with pytest.raises(TypeError, match=r"A batch is of type `\w+`; expected a `levitax.train.EvalBatch"):
            evaluate_batches(PIXELS, cast(Any, batches))
    with pytest.raises(ValueError, match="returned 5 logits for a batch and 6 for the one before"):
        other = draw(6, 5)
        evaluate_batches(PIXELS, [EvalBatch(*pair, np.ones(6, np.float32)) for pair in ((x, labels), other)])


class Flat(eqx.Module):
    """A model whose logits are the pixels of the image."""

    def __call__(self, image, state, *, key=None):
        del key
        return image.ravel(), state


def test_batches_may_differ_in_size_and_have_no_weight():
    x, labels = draw(12, 6)
    batches = [EvalBatch(x[rows], labels[rows], np.ones(len(x[rows]))) for rows in (slice(5), slice(5, 12))]
    nothing = EvalBatch(x[:5], labels[:5], np.zeros(5))
    ours, expected = evaluate_batches(PIXELS, [nothing, *batches, nothing]), evaluate(PIXELS, x, labels, batch_size=12)
    assert ours.loss == pytest.approx(expected.loss, rel=1e-6)
    assert ours[1:3] == expected[1:3]
    np.testing.assert_array_equal(ours.confusion, expected.confusion)


def test_the_sum_over_many_batches_keeps_its_digits():
    # Added to a loss of 1e8 in float32, other losses would be lost.
    x = np.zeros((33, 1, 2, 1), np.float32)
    x[0, 0, 0] = 1e8
    labels = np.ones(33, int)
    predict: Any = levitax.Predictor(Flat(), eqx.nn.State(Flat()))
    loss = evaluate(predict, x, labels, batch_size=1).loss
    assert loss == pytest.approx((1e8 + 32 * np.log(2)) / 33, rel=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_outputs_that_are_not_a_vector_of_logits_are_refused(make):
    x, labels = draw(2, 6)
    both = lambda image: levitax.nn.DistilledLogits(image.ravel(), image.ravel())
    outputs: dict[str, tuple[Any, type[Exception], str]] = {
        "two heads": (both, TypeError, "returned a `DistilledLogits`; expected .* in inference.*`levitax.fuse"),
        "with the state": (lambda image: (image.ravel(), 0), TypeError, "returned a `tuple`; .* without the state"),
        "a map": (lambda image: image, ValueError, r"shape \(2, 1, 6, 1\) .* expected .* \(batch, classes\)"),
        "a class": (lambda image: image.argmax(), TypeError, r"dtype int\d+; expected floating-point"),
    }
    for predict, kind, message in outputs.values():
        with pytest.raises(kind, match=message):
            evaluate(predict, x, labels, batch_size=2)
        with pytest.raises(kind, match=message):
            predict_logits(predict, x, batch_size=2)
    backbone = levitax.Predictor(*make(image_size=8, stages=1, dim=16, heads=1, num_classes=0))
    x = np.ones((2, 8, 8, 3), np.float32)
    for call in (
        lambda: evaluate(backbone, x, labels),
        lambda: evaluate_batches(backbone, [EvalBatch(x, labels, np.ones(2))]),
    ):
        with pytest.raises(ValueError, match=r"`predict` is a backbone.*`num_classes` is 0.*with a head"):
            call()


@pytest.mark.usefixtures("unchecked")
def test_images_are_those_that_a_model_takes():
    x, labels = draw(4, 6)
    pixels: Any = x.astype(np.uint8)
    for call in (
        lambda: evaluate(PIXELS, pixels, labels),
        lambda: predict_logits(PIXELS, pixels),
        lambda: evaluate_batches(PIXELS, [EvalBatch(pixels, labels, np.ones(4))]),
    ):
        with pytest.raises(TypeError, match=r"`images` has .* uint8; expected floating-point .*normalise"):
            call()
    for size, kind in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        for call in (
            lambda size: evaluate(PIXELS, x, labels, batch_size=size),
            lambda size: predict_logits(PIXELS, x, batch_size=size),
        ):
            with pytest.raises(kind, match=f"`batch_size` is {size}; expected an integer of at least 1"):
                call(size)


# JAX sets the number of devices when it starts, so this runs in a new process.
TOGETHER = """
import sys
import equinox as eqx, jax, levitax, numpy as np
from levitax.train import cross_entropy, EvalBatch, evaluate_batches, make_mesh, shard_batch, start_distributed

port, index = sys.argv[1], int(sys.argv[2])
start_distributed(f"localhost:{port}", 2, index)


class Flat(eqx.Module):
    def __call__(self, image, state, *, key=None):
        return image.ravel(), state


mesh, predict = make_mesh(), levitax.Predictor(Flat(), eqx.nn.State(Flat()))
images = np.random.default_rng(0).normal(size=(4, 1, 5, 1)).astype(np.float32)
# The second process has a wrong label.
labels = np.array([0, 1, 2, 3 + 6 * index], np.int32)
batch = shard_batch((images, labels, np.ones(4, np.float32)), mesh)
try:
    evaluate_batches(predict, [batch])
except ValueError as error:
    print("evaluation:", error)
# A loss checks the rows of its own process only, so the other process would wait for this one.
if index == 1:
    try:
        cross_entropy(batch[0][:, 0, :, 0], batch[1])
    except ValueError as error:
        print("loss:", error)
"""


@pytest.mark.slow
def test_all_processes_refuse_a_wrong_label_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", TOGETHER, str(port)]
    processes = [
        subprocess.Popen(
            [*command, str(index)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        for index in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    for output, _ in outputs:
        assert "evaluation: Image 7 has label 9; expected a class number from 0 to 4" in output, outputs
    assert "loss: `labels[7]` is 9; expected a class number from 0 to 4" in outputs[1][0], outputs


def test_evaluating_no_images_is_refused():
    x, labels = draw(4, 6)
    for function in (lambda: evaluate(PIXELS, x[:0], labels[:0]), lambda: predict_logits(PIXELS, x[:0])):
        with pytest.raises(ValueError, match="`images` is empty"):
            function()
    nothing = EvalBatch(x, labels, np.zeros(4, np.float32))
    for batches in ([], [nothing]):
        with pytest.raises(ValueError, match="no images to evaluate"):
            evaluate_batches(PIXELS, batches)
