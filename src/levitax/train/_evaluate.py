from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from .._array_checks import as_array, check_form, check_not_empty, check_width
from .._checks import as_integer
from .._explicit import explicit_mesh, in_auto_mode
from .._fuse import Predictor
from .._model import LeViT
from ._targets import are_classes, check_class_numbers, in_float32


class Evaluation(NamedTuple):
    """The metrics of a model on a data set.

    **Attributes:**

    - `loss`: the mean cross-entropy, in nats.
    - `accuracy`: the share of images whose class is the most likely one, from 0 to 1.
    - `top5`: the share of images whose class is among the five most likely, from 0 to 1.
    - `confusion`: `(classes, classes)`; `confusion[i, j]` counts the images of class `i` that were classified as `j`.
    """

    loss: float
    accuracy: float
    top5: float
    confusion: Int[np.ndarray, "classes classes"]

    @property
    def per_class(self) -> Float[np.ndarray, " classes"]:
        """The accuracy of each class, `(classes,)`; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            return np.diag(self.confusion) / self.confusion.sum(1)


class EvalBatch(NamedTuple):
    """Images to evaluate a model on.

    **Arguments:**

    - `images`: `(batch, height, width, channels)`, floating point, preprocessed.
    - `labels`: `(batch,)`, the class of each, from 0.
    - `weights`: `(batch,)`, 1 for each image that counts, otherwise 0.
    """

    images: Float[Array | np.ndarray, "batch height width channels"]
    labels: Int[Array | np.ndarray, " batch"]
    weights: Float[Array | np.ndarray, " batch"]


def predict_logits(
    predict: Predictor, images: Float[Array | np.ndarray, "images height width channels"], *, batch_size: int = 256
) -> Float[np.ndarray, "images classes"]:
    """Computes the logits of any number of images, in batches of one size, to compile only once.

    **Arguments:**

    - `predict`: from [`levitax.fuse`][], or a [`levitax.Predictor`][] around an unfused model.
    - `images`: `(images, height, width, channels)`, floating point, preprocessed.
    - `batch_size`: images at a time.

    **Returns:** `(images, classes)`. NaN logits stay NaN.

    **Raises:** `ValueError` without images, `TypeError` or `ValueError` for images that are not floating-point numbers,
    a `batch_size` that is not a positive integer, and if `predict` returns anything but logits.
    """
    images = _as_images(images)
    logits = [
        np.asarray(_batch_logits(predict, _fill_up(images[rows], batch_size)))[: len(images[rows])]
        for rows in _slices(len(images), batch_size)
    ]
    return np.concatenate(logits)


def evaluate(
    predict: Predictor,
    images: Float[Array | np.ndarray, "images height width channels"],
    labels: Int[Array | np.ndarray, " images"],
    *,
    batch_size: int = 256,
) -> Evaluation:
    """Evaluates a data set that fits in memory.

    **Arguments:**

    - `predict`: as in [`levitax.train.predict_logits`][].
    - `images`: `(images, height, width, channels)`, floating point, preprocessed.
    - `labels`: `(images,)`, the class of each, from 0.
    - `batch_size`: images at a time.

    **Returns:** a [`levitax.train.Evaluation`][].

    **Raises:** the errors of [`levitax.train.evaluate_batches`][]; `TypeError` or `ValueError` for a `batch_size` that
    is not a positive integer.
    """
    images, labels = _as_images(images), as_array("labels", labels)
    check_class_numbers("labels", labels, len(images))

    def batch(rows):
        given = images[rows], labels[rows], np.ones(len(images[rows]), np.float32)
        return EvalBatch(*(_fill_up(array, batch_size) for array in given))

    return evaluate_batches(predict, map(batch, _slices(len(images), batch_size)))


def evaluate_batches(predict: Predictor, batches: Iterable[EvalBatch]) -> Evaluation:
    """Evaluates a data set in batches. Each new batch size costs a compilation.

    **Arguments:**

    - `predict`: as in [`levitax.train.predict_logits`][].
    - `batches`: each a [`levitax.train.EvalBatch`][], or a tuple of its three fields. The arrays may be spread over
        devices and processes: all processes get the same result, or the same error.

    **Returns:** a [`levitax.train.Evaluation`][].

    **Raises:** `ValueError` without images, for a label out of range, for a weight that is neither 0 nor 1, for an
    image whose largest logit is not finite, for batches with different numbers of classes, and for a model without
    classes. `TypeError` or `ValueError` for arrays of another shape or dtype and if `predict` returns anything but
    logits. Images with a weight of 0 may have any label and any logits.
    """
    _check_classifies(predict)
    rows, loss, top5, confusion = 0, 0.0, 0, None
    for batch in batches:
        batch = _as_batch(batch)
        sums, counts = _count(predict, batch)
        sums = jax.device_get(sums)
        _check_faults(sums.faults, rows, classes=len(counts))
        # On the host in float64: float32 was 1.7e-6 off after 5,000 batches of 256.
        loss, top5 = loss + float(sums.loss), top5 + int(sums.top5)
        if confusion is not None and confusion.shape != counts.shape:
            raise ValueError(
                f"`predict` returned {len(counts)} logits for a batch and {len(confusion)} for the one before; "
                "expected the same number for all images."
            )
        confusion = counts if confusion is None else _add(confusion, counts)
        rows += len(batch.images)
    confusion = np.zeros((0, 0), int) if confusion is None else jax.device_get(confusion)
    total = int(confusion.sum())
    if total == 0:
        raise ValueError("There are no images to evaluate; expected at least one with a weight of 1.")
    return Evaluation(loss / total, float(np.trace(confusion) / total), top5 / total, confusion)


class _Fault(NamedTuple):
    """The number of rows of a batch that break a rule, the first of them, and its value."""

    rows: Any
    first: Any
    value: Any


class _Sums(NamedTuple):
    """The sums of a batch, and the faults of its weights, labels and logits."""

    loss: Any
    top5: Any
    faults: tuple[_Fault, _Fault, _Fault]


@eqx.filter_jit
def _count(predict, batch):
    """The sums of a batch, and its confusion. Finds faults on the device, since all processes must raise for them."""
    arrays, rest = eqx.partition(predict, eqx.is_array)
    call = lambda arrays, *batch: _sums(eqx.combine(arrays, rest), *batch)
    return in_auto_mode(call, PartitionSpec(), arrays, *batch)


def _sums(predict, images, labels, weights):
    logits = _as_logits(jax.vmap(predict)(images))
    classes = logits.shape[-1]
    weights = weights.astype(jnp.float32)
    counts = weights != 0
    faults = (
        _fault(counts & (weights != 1), weights),
        _fault(counts & ~are_classes(labels, classes), labels),
        # -inf stands for a class that is ruled out.
        _fault(counts & ~jnp.isfinite(logits.max(-1)), logits.max(-1)),
    )
    labels = labels.astype(jnp.int32)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    _, likeliest = jax.lax.top_k(logits, min(5, classes))
    top5 = (likeliest == labels[:, None]).any(-1) & counts
    confusion = jnp.zeros((classes, classes), jnp.int32).at[labels, likeliest[:, 0]].add(counts.astype(jnp.int32))
    # Not a product with 0, which NaN would survive.
    return _Sums(jnp.where(counts, losses, 0).sum(), top5.sum(), faults), confusion


@jax.jit
def _add(confusion, counts):
    return confusion + counts


@eqx.filter_jit
def _batch_logits(predict, images):
    return _as_logits(jax.vmap(predict)(images))


def _fault(is_wrong, values):
    first = jnp.argmax(is_wrong)
    return _Fault(is_wrong.sum(), first, values[first])


def _check_faults(faults: tuple[_Fault, ...], start: int, classes: int) -> None:
    """Raises for the first fault of a batch, whose first image has the number `start`."""
    rules = (
        ("weight", "1 for an image that counts, else 0."),
        (
            "label",
            f"a class number from 0 to {classes - 1}, since `predict` returns {classes} logits. Count the classes from "
            "0, and give images of other classes a weight of 0.",
        ),
        ("largest logit", "a finite number. Check the model's weights and this image, and its dtype for overflow."),
    )
    for (rows, first, value), (what, expected) in zip(faults, rules, strict=True):
        if rows:
            more = f", and {rows - 1} more of its batch are wrong" if rows > 1 else ""
            raise ValueError(f"Image {start + first} has {what} {value}{more}; expected {expected}")


def _check_classifies(predict):
    if isinstance(predict, Predictor) and isinstance(predict.model, LeViT) and predict.model.head is None:
        raise ValueError(
            "`predict` is a backbone: its `num_classes` is 0, so it returns features; expected a model with a head. "
            "Make it with `num_classes`, or train a head on its features."
        )


def _as_logits(outputs: Any) -> Array:
    """The outputs of a batch in float32 or more. Raises unless they are logits."""
    if not isinstance(outputs, jax.Array):
        raise TypeError(
            f"`predict` returned a `{type(outputs).__name__}`; expected the logits of one image, without the state and "
            "in inference. Pass `levitax.fuse(model, state)` or `levitax.Predictor(model, state)`."
        )
    way_out = "`predict` must return floating-point logits, a vector for each image."
    check_form("logits", outputs, {jnp.floating: ("batch", "classes")}, way_out=way_out)
    return in_float32(outputs)


def _as_images(images: Any) -> Any:
    images = as_array("images", images)
    way_out = "`levitax.data.Preprocessing.normalise` converts pixels from 0 to 255."
    check_form("images", images, {jnp.floating: ("batch", ...)}, way_out=way_out)
    check_not_empty("images", images)
    # Indexing rows of an array on an Explicit mesh requires an output sharding.
    return np.asarray(images) if explicit_mesh(images) and not isinstance(images, Tracer) else images


def _as_batch(batch: Any) -> EvalBatch:
    """A batch for `_count`. Raises for arrays of another form."""
    if isinstance(batch, jax.Array | np.ndarray) or not isinstance(batch, tuple | list) or len(batch) != 3:
        raise TypeError(
            f"A batch is of type `{type(batch).__name__}`; expected a `levitax.train.EvalBatch(images, labels, "
            "weights)`, and `batches` to be an iterable of them."
        )
    images, labels, weights = batch
    images, labels, weights = _as_images(images), as_array("labels", labels), as_array("weights", weights)
    check_class_numbers("labels", labels, len(images))
    of_images = (len(images),)
    check_form("weights", weights, {jnp.floating: of_images, jnp.integer: of_images, jnp.bool_: of_images})
    check_width("labels", labels)
    return EvalBatch(images, labels, weights)


def _slices(rows, size):
    return [slice(start, start + size) for start in range(0, rows, as_integer("batch_size", size))]


def _fill_up(array, rows):
    return np.pad(array, ((0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)))
