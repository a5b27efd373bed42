from collections.abc import Iterator

import equinox as eqx
import jax
import numpy as np

from .._fuse import Predictor
from ..data import Batch, eval_batches, Preprocessing, Shard, Split
from ._evaluate import EvalBatch, evaluate_batches, Evaluation
from ._mesh import make_mesh, shard_batch


def evaluate_split(
    predict: Predictor, split: Split, preprocessing: Preprocessing, *, workers: int = 0, batch_size: int = 128
) -> Evaluation:
    """Evaluates a model on all images of a split, over all devices of all processes.

    **Arguments:**

    - `predict`: as in [`levitax.train.predict_logits`][].
    - `split`: such as `data.validation`, from [`levitax.data.open_data`][]. Corrupt images are left out, with a
        warning.
    - `preprocessing`: prepares the images.
    - `workers`: as in [`levitax.data.eval_batches`][].
    - `batch_size`: images per device at a time.

    **Returns:** a [`levitax.train.Evaluation`][], the same in every process.

    **Raises:** the errors of [`levitax.train.evaluate_batches`][] and [`levitax.data.eval_batches`][].
    """
    mesh, shard = make_mesh(), Shard(jax.process_index(), jax.process_count())
    batch_size = mesh.size * min(batch_size, -(-len(split.labels) // mesh.size))
    reading = eval_batches(split, preprocessing.resize, batch_size=batch_size, shard=shard, workers=workers)
    with reading as batches:
        spread = (shard_batch((batch.images, batch.labels, batch.weights), mesh) for batch in batches)
        ready = (EvalBatch(preprocessing.normalise(images), *rest) for images, *rest in spread)
        return evaluate_batches(predict, ready)


def predict_split(
    predict: Predictor, split: Split, preprocessing: Preprocessing, *, workers: int = 0, batch_size: int = 128
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Computes the logits of a split, batch by batch, on one device.

    **Arguments:**

    - `predict`, `split`, `preprocessing`, `workers`, `batch_size`: as in [`levitax.train.evaluate_split`][].

    **Returns:** an iterator over pairs: a [`levitax.data.Batch`][] with the resized images, and the logits
    `(batch, classes)` of its images. Ignore rows with a weight of 0.

    **Raises:** the errors of [`levitax.data.eval_batches`][].
    """
    run = eqx.filter_jit(lambda predict, images: jax.vmap(predict)(preprocessing.normalise(images)))
    with eval_batches(split, preprocessing.resize, batch_size=batch_size, workers=workers) as batches:
        for batch in batches:
            yield batch, np.asarray(run(predict, batch.images))
