from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..data import Batch, DataSet
from ._loss import TeacherTargets
from ._mesh import shard_batch
from ._prepare import prepare
from ._recipe import Recipe
from ._targets import one_hot
from ._teacher import Teacher
from ._teacher_logits import TeacherLogits


def make_inputs(
    data: DataSet, recipe: Recipe, teacher: Teacher | TeacherLogits | None, mesh: Mesh, *, key: PRNGKeyArray
) -> Callable[[Batch, int], tuple[Array, PyTree]]:
    """Makes `inputs(batch, number) -> (images, targets)`, which converts a batch of the loader to the inputs of step
    `number`.

    Stored logits belong to the images before augmentation, and are mixed like the labels. A live teacher sees the
    images that the student sees.
    """

    @jax.jit
    def on_device(images, labels, stored, key):
        targets: Any = one_hot(labels, len(data.classes))
        if stored is not None:
            targets = TeacherTargets(targets, stored)
        return prepare(images, targets, recipe, preprocessing=data.preprocessing, key=key)

    def inputs(batch: Batch, number: int) -> tuple[Array, PyTree]:
        stored = teacher.rows(batch.indices) if isinstance(teacher, TeacherLogits) else None
        rows = shard_batch((batch.images, batch.labels, stored), mesh)
        images, targets = on_device(*rows, jax.random.fold_in(key, number))
        if teacher is None or isinstance(teacher, TeacherLogits):
            return images, targets
        return images, TeacherTargets(targets, teacher(images))

    return inputs
