import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import PyTree

from .._checks import as_flag, as_integer, as_number
from ..nn import AttentionBias, BatchNorm


Model = TypeVar("Model")
# Clipping to 0 would train nothing.
_SMALLEST_CLIPPING = 1e-6

Parameters: TypeAlias = Callable[[PyTree], PyTree]
"""Picks what is trained out of a model: the same tree, with `None` for all else."""


def decay_mask(params: PyTree) -> PyTree:
    """True for each array of `params` that weight decay applies to: the kernels of convolutions and linear maps.

    Vectors (biases, and the weights of batch normalisations) and the tables of attention biases are spared, as in the
    official training.
    """
    is_table = lambda node: isinstance(node, AttentionBias)
    decays = lambda node: jax.tree.map(lambda _: False, node) if is_table(node) else node.ndim > 1
    return jax.tree.map(decays, params, is_leaf=is_table)


def adaptive_grad_clip(clipping: float = 0.01, *, eps: float = 1e-3) -> optax.GradientTransformation:
    """Clips the gradient of each output unit to `clipping` times the norm of its weights (Brock et al. 2021, arXiv
    2102.06171, section 4).

    The first axis of a kernel, and of a table of attention biases, counts the units; a vector is one unit. (`optax.
    adaptive_grad_clip` alone takes the *last* axis to count them, as kernels are laid out in Flax.)

    **Arguments:**

    - `clipping`: largest norm of a unit's gradient over that of its weights; 0.01 in the paper's recipe.
    - `eps`: the norm that weights are taken to have at least, so that zeros can begin to move.

    **Returns:** an optax transformation, to stand before the optimiser; its update needs the parameters.

    **Raises:** `ValueError` unless `clipping` is above 0 and `eps` at least 0.
    """
    clipping, eps = as_number("clipping", clipping, _SMALLEST_CLIPPING, math.inf), as_number("eps", eps, 0, math.inf)
    # As columns, one a unit, which `axis=0` then takes the norms of.
    units = lambda leaf: leaf.reshape(leaf.shape[0] if leaf.ndim > 1 else 1, -1).T
    clip = optax.adaptive_grad_clip(clipping, eps, axis=0)

    def update(updates, state, params=None):
        clipped, state = clip.update(jax.tree.map(units, updates), state, jax.tree.map(units, params))
        return jax.tree.map(lambda new, old: new.T.reshape(old.shape), clipped, updates), state

    return optax.GradientTransformation(clip.init, update)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.025,
    eps: float = 1e-8,
    clipping: float | None = None,
) -> optax.GradientTransformation:
    """AdamW as the paper trains with it (section 5.1), sparing what [`levitax.train.decay_mask`][] spares.

    **Arguments:**

    - `learning_rate`: a number or an optax schedule; the paper's is 5e-4 for each 512 images of a batch.
    - `weight_decay`: decoupled, multiplied by the learning rate; 0.025 in the official training.
    - `eps`: added to the root of the second moment; 1e-8 in the official training.
    - `clipping`: of [`levitax.train.adaptive_grad_clip`][], 0.01 in the official training; `None` for none.

    **Returns:** an optax optimiser; its update needs the parameters.

    **Raises:** `ValueError` for a number that is negative or not finite, or a `clipping` of 0.
    """
    if not callable(learning_rate):
        learning_rate = as_number("learning_rate", learning_rate, 0, math.inf)
    weight_decay, eps = as_number("weight_decay", weight_decay, 0, math.inf), as_number("eps", eps, 0, math.inf)
    optimizer = promoting(optax.adamw(learning_rate, eps=eps, weight_decay=weight_decay, mask=decay_mask))
    return optimizer if clipping is None else optax.chain(adaptive_grad_clip(clipping), optimizer)


def check_optimizer(optimizer: Any) -> None:
    """Raises unless `optimizer` is one of optax, or like it."""
    if not callable(getattr(optimizer, "init", None)) or not callable(getattr(optimizer, "update", None)):
        raise TypeError(
            f"`optimizer` is of type `{type(optimizer).__name__}`; expected one of optax, such as "
            "`levitax.train.adamw(1e-3)`."
        )


def check_trained(params: PyTree) -> None:
    """Raises unless there is an array to train."""
    if not jax.tree.leaves(params):
        raise ValueError(
            "`parameters` picks no array of the model, so nothing would be trained. A model made with `num_classes=0` "
            "has no head for `head_only`."
        )


def promoting(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` with JAX's standard promotion of dtypes, on which optax relies: its AdamW raises floats to the power
    of an integer, an error with `jax_numpy_dtype_promotion="strict"`."""

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params, **extra)

    return optimizer._replace(update=update)


def warmup_cosine(
    learning_rate: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 5,
    warmup_learning_rate: float = 1e-6,
    min_learning_rate: float = 1e-5,
    by_epoch: bool = False,
    late: bool = False,
) -> optax.Schedule:
    """A straight line up and a cosine down, as in timm.

    The cosine starts with the training and not with the end of the warm-up, so that the largest value is a little below
    `learning_rate`.

    **Arguments:**

    - `learning_rate`: where the cosine starts.
    - `epochs`, `steps_per_epoch`: length of the training.
    - `warmup_epochs`: length of the straight line, below `epochs`.
    - `warmup_learning_rate`, `min_learning_rate`: where the line starts, and the cosine ends. Without a warm-up, the
        former has no effect.
    - `by_epoch`: the same value in all steps of an epoch, as in the official training.
    - `late`: every epoch has the value that belongs to the one before, and the first one its own: the official training
        starts with two epochs at `warmup_learning_rate`. Goes with `by_epoch`.

    **Returns:** an optax schedule, from the number of the step to the learning rate.

    **Raises:** `TypeError` or `ValueError` for lengths that are no positive integers (no warm-up is 0), learning rates
    that are negative or not finite, a `min_learning_rate` above `learning_rate`, flags that are no `bool`, a warm-up
    that leaves nothing to train, and `late` without `by_epoch`.
    """
    epochs, steps_per_epoch = as_integer("epochs", epochs), as_integer("steps_per_epoch", steps_per_epoch)
    warmup_epochs = as_integer("warmup_epochs", warmup_epochs, minimum=0)
    learning_rate = as_number("learning_rate", learning_rate, 0, math.inf)
    warmup_learning_rate = as_number("warmup_learning_rate", warmup_learning_rate, 0, math.inf)
    min_learning_rate = as_number("min_learning_rate", min_learning_rate, 0, math.inf)
    if not isinstance(learning_rate, Tracer) and min_learning_rate > learning_rate:
        raise ValueError(
            f"`min_learning_rate` is {min_learning_rate:g} and `learning_rate` {learning_rate:g}: the cosine would go "
            "up. A recipe's `learning_rate` is for 512 images, so that of a small batch is smaller: set "
            "`min_learning_rate` below it."
        )
    check_schedule(epochs, warmup_epochs, by_epoch=as_flag("by_epoch", by_epoch), late=as_flag("late", late))

    def schedule(count):
        count = jnp.asarray(count)
        epoch = (
            (count // steps_per_epoch).astype(jnp.float32) if by_epoch else count.astype(jnp.float32) / steps_per_epoch
        )
        if late:
            epoch = jnp.maximum(epoch - 1, 0)
        line = warmup_learning_rate + epoch * ((learning_rate - warmup_learning_rate) / max(warmup_epochs, 1))
        height = 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(epoch / epochs, 1)))
        cosine = min_learning_rate + (learning_rate - min_learning_rate) * height
        return jnp.where(epoch < warmup_epochs, line, cosine)

    return schedule


def check_schedule(epochs: int, warmup_epochs: int, *, by_epoch: bool, late: bool) -> None:
    """Raises for lengths and flags that contradict each other."""
    if warmup_epochs >= epochs:
        raise ValueError(
            f"`warmup_epochs` is {warmup_epochs} of {epochs} `epochs`: nothing would be left to train. Set a smaller "
            "`warmup_epochs`, or more `epochs`."
        )
    if late and not by_epoch:
        raise ValueError(
            "`late` is True and `by_epoch` False: only a learning rate that is set once an epoch is set late."
        )


def trainable(model: PyTree) -> PyTree:
    """The arrays of `model` that an optimiser updates: those of floating point. All else is `None`."""
    return eqx.filter(model, eqx.is_inexact_array)


def freeze_norms(model: Model) -> Model:
    """`model` with every [`levitax.nn.BatchNorm`][] in inference, for training on with the running statistics as they
    are. Their weights and biases still learn."""
    is_norm = lambda node: isinstance(node, BatchNorm)
    freeze = lambda node: eqx.tree_at(lambda norm: norm.inference, node, True) if is_norm(node) else node
    return jax.tree.map(freeze, model, is_leaf=is_norm)


def head_only(model: PyTree) -> PyTree:
    """As [`levitax.train.trainable`][], of the head of `model` alone, a [`levitax.LeViT`][]: for a linear probe."""
    none = eqx.filter(model, False)
    return eqx.tree_at(lambda model: model.head, none, trainable(model.head), is_leaf=lambda node: node is None)
