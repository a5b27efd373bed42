from collections.abc import Iterable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._fuse import Predictor


class Evaluation(NamedTuple):
    """How well a model does.

    **Attributes:**

    - `loss`: the mean cross-entropy, in nats.
    - `accuracy`: the share of images whose class is the likeliest one, from 0 to 1.
    - `top5`: the share of images whose class is among the five likeliest, from 0 to 1.
    - `confusion`: `(classes, classes)`; `confusion[i, j]` counts the images of class `i` that were taken for `j`.
    """

    loss: float
    accuracy: float
    top5: float
    confusion: Int[np.ndarray, "classes classes"]

    @property
    def per_class(self) -> Float[np.ndarray, " classes"]:
        """The accuracy of each class, `(classes,)`; NaN for one without images."""
        with np.errstate(invalid="ignore"):
            return np.diag(self.confusion) / self.confusion.sum(1)


class EvalBatch(NamedTuple):
    """Images to evaluate a model on.

    **Arguments:**

    - `images`: `(batch, height, width, channels)`, floating point, as the model takes them.
    - `labels`: `(batch,)`, the class of each, from 0.
    - `weights`: `(batch,)`, 1 for each that counts, else 0.
    """

    images: Float[Array | np.ndarray, "batch height width channels"]
    labels: Int[Array | np.ndarray, " batch"]
    weights: Float[Array | np.ndarray, " batch"]


def predict_logits(
    predict: Predictor, images: Float[Array | np.ndarray, "images height width channels"], *, batch_size: int = 256
) -> Float[np.ndarray, "images classes"]:
    """The logits of any number of images, computed in batches of one size so that there is one compilation.

    **Arguments:**

    - `predict`: from [`levitax.fuse`][], or a [`levitax.Predictor`][] around a model as it is.
    - `images`: `(images, height, width, channels)`, floating point, as the model takes them.
    - `batch_size`: images at a time.

    **Returns:** `(images, classes)`.

    **Raises:** `ValueError` without images.
    """
    labels = np.zeros(len(images), np.int32)
    logits = [
        np.asarray(_batch_logits(predict, batch.images))[batch.weights > 0]
        for batch in _in_batches(images, labels, batch_size)
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
    - `images`: `(images, height, width, channels)`, floating point, as the model takes them.
    - `labels`: `(images,)`, the class of each, from 0.
    - `batch_size`: images at a time.

    **Returns:** a [`levitax.train.Evaluation`][].

    **Raises:** `ValueError` without images.
    """
    return evaluate_batches(predict, _in_batches(images, labels, batch_size))


def evaluate_batches(predict: Predictor, batches: Iterable[EvalBatch]) -> Evaluation:
    """Evaluates a data set that comes in batches, all of one size.

    **Arguments:**

    - `predict`: as in [`levitax.train.predict_logits`][].
    - `batches`: each a [`levitax.train.EvalBatch`][] or such a triple, which may be spread over devices and processes:
        the result is the same in all of them.

    **Returns:** a [`levitax.train.Evaluation`][].

    **Raises:** `ValueError` without images.
    """
    sums = None
    for batch in batches:
        counts = _count(predict, EvalBatch(*batch))
        sums = counts if sums is None else _add(sums, counts)
    loss, top5, confusion = jax.device_get(sums) if sums is not None else (0.0, 0, np.zeros((0, 0), int))
    total = int(confusion.sum())
    if total == 0:
        raise ValueError("There are no images to evaluate; expected at least one.")
    return Evaluation(float(loss) / total, float(np.trace(confusion) / total), int(top5) / total, confusion)


@eqx.filter_jit
def _count(predict, batch):
    images, labels, weights = batch
    logits = jax.vmap(predict)(images)
    classes = logits.shape[-1]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    _, likeliest = jax.lax.top_k(logits, min(5, classes))
    counts = weights.astype(jnp.int32)
    top5 = (likeliest == labels[:, None]).any(-1) * counts
    confusion = jnp.zeros((classes, classes), jnp.int32).at[labels, likeliest[:, 0]].add(counts)
    # Not a product with 0, which NaN would survive.
    return jnp.where(weights > 0, losses, 0).sum(), top5.sum(), confusion


@jax.jit
def _add(sums, counts):
    return jax.tree.map(jnp.add, sums, counts)


@eqx.filter_jit
def _batch_logits(predict, images):
    return jax.vmap(predict)(images)


def _in_batches(images, labels, batch_size) -> Iterator[EvalBatch]:
    if not len(images):
        raise ValueError("`images` is empty; expected at least one.")
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        batch = EvalBatch(images[rows], labels[rows], np.ones(len(labels[rows]), np.float32))
        yield EvalBatch(*(_fill_up(array, batch_size) for array in batch))


def _fill_up(array, rows):
    return np.pad(array, ((0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)))
