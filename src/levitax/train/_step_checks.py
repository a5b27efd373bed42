from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .._array_checks import check_width
from .._batched import batch_size
from ._layer_groups import find_levits
from ._state import TrainState


def check_train_state(train_state: Any) -> None:
    """Raises unless `train_state` is a `TrainState`."""
    if not isinstance(train_state, TrainState):
        raise TypeError(
            f"`train_state` is of type `{type(train_state).__name__}`; expected a `levitax.train.TrainState`, made of "
            "model, state and optimiser."
        )


def check_dtype(model: PyTree) -> None:
    """Raises if `model` is or contains a LeViT that computes in float16."""
    if any(levit.config.dtype == "float16" for _, levit in find_levits(model)):
        raise ValueError(
            "The model has `dtype` 'float16', which a step does not train: gradients below 6e-8 would become 0 and "
            'those above 65,504 infinite, because a step does not scale the loss. Train with `dtype="bfloat16"`. For '
            'inference in float16, use `levitax.weights.adapt(model, state, dtype="float16")` after the training.'
        )


def check_memory(leaves: Iterable[Any]) -> None:
    """Raises if a step has freed one of the arrays among the leaves of a train state."""
    arrays = (leaf for leaf in leaves if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer))
    if any(array.is_deleted() for array in arrays):
        raise ValueError(
            "A step has used up this train state: its memory belongs to the one that the step returned. Continue with "
            "that one: `train_state, metrics = step(train_state, images, targets)`."
        )


def as_batch(name: str, given: PyTree) -> PyTree:
    """`given` as arrays of JAX. A list of numbers is one array, not a tree of scalars.

    **Raises:** `ValueError` for integers that JAX would cut to 32 bits.
    """
    given = np.asarray(given) if isinstance(given, list) else given
    for path, array in jax.tree_util.tree_leaves_with_path(given):
        check_width(f"{name}{jax.tree_util.keystr(path)}", array)
    return jax.tree.map(jnp.asarray, given)


def check_images(images: PyTree) -> None:
    """Raises for an empty batch, and where each device would step on its own."""
    if batch_size("images", images) == 0:
        raise ValueError("`images` is an empty batch; expected at least one image. Leave empty batches out.")
    if jax.sharding.get_abstract_mesh().manual_axes:
        raise ValueError(
            "A step was called inside `jax.pmap` or `jax.shard_map`, where every device would train a model of its "
            "own on its part of the batch. Call it outside, with the batch spread by `levitax.train.make_mesh` and "
            "`levitax.train.shard_batch`."
        )
