from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._fuse import Predictor
from ._loss import cross_entropy


class Evaluation(NamedTuple):
    """How well a model does: the mean cross-entropy, and the share of images whose class is the most likely one."""

    loss: float
    accuracy: float


def predict_logits(
    predict: Predictor, images: Float[Array | np.ndarray, "images height width channels"], *, batch_size: int = 256
) -> Float[np.ndarray, "images classes"]:
    """The logits of any number of images, computed in batches of one size so that there is one compilation.

    **Arguments:**

    - `predict`: from [`levitax.fuse`][], or a [`levitax.Predictor`][] around a model as it is.
    - `images`: floating point, channels last, as the model takes them.
    - `batch_size`: images at a time.

    **Raises:** `ValueError` without images.
    """
    if not len(images):
        raise ValueError("`images` is empty; expected at least one.")
    logits = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        missing = batch_size - len(batch)
        padded = np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
        logits.append(np.asarray(_batch_logits(predict, padded))[: len(batch)])
    return np.concatenate(logits)


def evaluate(
    predict: Predictor,
    images: Float[Array | np.ndarray, "images height width channels"],
    labels: Int[Array | np.ndarray, " images"],
    *,
    batch_size: int = 256,
) -> Evaluation:
    """Loss and top-1 accuracy over a data set that fits in memory. Arguments as in
    [`levitax.train.predict_logits`][], with a class number for each image."""
    logits = predict_logits(predict, images, batch_size=batch_size)
    return Evaluation(
        float(cross_entropy(jnp.asarray(logits), jnp.asarray(labels))), float((logits.argmax(-1) == labels).mean())
    )


@eqx.filter_jit
def _batch_logits(predict, images):
    return jax.vmap(predict)(images)
