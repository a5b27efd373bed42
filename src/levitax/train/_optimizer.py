import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import PyTree

from .._array_checks import as_number
from .._checks import as_flag, as_integer, check_schedule
from ..nn import Attention, AttentionBias, BatchNorm


Model = TypeVar("Model")
# Clipping to 0 would train nothing.
_SMALLEST_CLIPPING = 1e-6

Parameters: TypeAlias = Callable[[PyTree], PyTree]
"""A function that picks the trained parameters of a model: the same tree, with `None` for everything else."""


def decay_mask(params: PyTree) -> PyTree:
    """Marks with `True` each array of `params` that weight decay applies to: the kernels of convolutions and linear
    layers.

    Vectors (biases, and the weights of batch normalisations) and the tables of attention biases do not decay, like in
    the official training.
    """
    is_leaf = lambda node: isinstance(node, Attention | AttentionBias)
    none = lambda node: jax.tree.map(lambda _: False, node)

    def decays(node):
        if isinstance(node, AttentionBias):
            return none(node)
        if isinstance(node, Attention):
            # Whatever its class, as `attention_bias=` may have made it.
            layers = jax.tree.map(lambda leaf: leaf.ndim > 1, node)
            return eqx.tree_at(lambda layer: layer.bias, layers, none(node.bias), is_leaf=lambda part: part is None)
        return node.ndim > 1

    return jax.tree.map(decays, params, is_leaf=is_leaf)


def adaptive_grad_clip(clipping: float = 0.01, *, eps: float = 1e-3) -> optax.GradientTransformation:
    """Clips the gradient of each output unit to `clipping` times the norm of its weights (Brock et al. 2021, arXiv
    2102.06171, section 4).

    The first axis of a kernel, and of a table of attention biases, counts the units; a vector is one unit. (In
    `optax.adaptive_grad_clip` alone, the *last* axis counts them, as in Flax's kernels.)

    **Arguments:**

    - `clipping`: largest norm of a unit's gradient over the norm of its weights; 0.01 in the paper's recipe.
    - `eps`: a lower bound for the norm of the weights, so that zeros can start to change.

    **Returns:** an optax transformation, to be chained before the optimiser; its update needs the parameters.

    **Raises:** `ValueError` unless `clipping` is above 0 and `eps` at least 0.
    """
    clipping, eps = as_number("clipping", clipping, _SMALLEST_CLIPPING, math.inf), as_number("eps", eps, 0, math.inf)
    # As columns, one for each unit, whose norms `axis=0` then computes.
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
    """Makes the paper's AdamW (section 5.1), with weight decay by [`levitax.train.decay_mask`][].

    **Arguments:**

    - `learning_rate`: a number or an optax schedule; the paper's is 5e-4 per 512 images of a batch.
    - `weight_decay`: decoupled, multiplied by the learning rate; 0.025 in the official training.
    - `eps`: added to the root of the second moment; 1e-8 in the official training.
    - `clipping`: as in [`levitax.train.adaptive_grad_clip`][], 0.01 in the official training; `None` turns it off.

    **Returns:** an optax optimiser; its update needs the parameters.

    **Raises:** `ValueError` for a number that is negative or not finite, or a `clipping` of 0.
    """
    if not callable(learning_rate):
        learning_rate = as_number("learning_rate", learning_rate, 0, math.inf)
    weight_decay, eps = as_number("weight_decay", weight_decay, 0, math.inf), as_number("eps", eps, 0, math.inf)
    optimizer = promoting(optax.adamw(learning_rate, eps=eps, weight_decay=weight_decay, mask=decay_mask))
    return optimizer if clipping is None else optax.chain(adaptive_grad_clip(clipping), optimizer)


def check_optimizer(optimizer: Any) -> None:
    """Raises unless `optimizer` has the methods of optax's."""
    if not callable(getattr(optimizer, "init", None)) or not callable(getattr(optimizer, "update", None)):
        raise TypeError(
            f"`optimizer` is of type `{type(optimizer).__name__}`; expected one of optax's, such as "
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
    """`optimizer` with JAX's standard promotion of dtypes. Optax relies on it: its AdamW raises floats to the power of
    an integer, an error with `jax_numpy_dtype_promotion="strict"`."""

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
    """Makes timm's schedule: a linear warm-up, then a cosine.

    The cosine starts with the training, not after the warm-up, so the largest value is a little below `learning_rate`.

    **Arguments:**

    - `learning_rate`: the start of the cosine.
    - `epochs`, `steps_per_epoch`: length of the training.
    - `warmup_epochs`: length of the warm-up, below `epochs`.
    - `warmup_learning_rate`, `min_learning_rate`: the start of the warm-up, and the end of the cosine. Without a
        warm-up, the former has no effect.
    - `by_epoch`: the same value in all steps of an epoch, like the official training.
    - `late`: each epoch but the first has the value of the epoch before: the official training starts with two epochs
        at `warmup_learning_rate`. Requires `by_epoch`.

    **Returns:** an optax schedule, from the number of the step to the learning rate.

    **Raises:** `TypeError` or `ValueError` for lengths that are not positive integers (`warmup_epochs` may be 0),
    learning rates that are negative or not finite, and flags that are not `bool`; also for a `min_learning_rate` above
    `learning_rate`, a warm-up as long as the training, and `late` without `by_epoch`.
    """
    epochs, steps_per_epoch = as_integer("epochs", epochs), as_integer("steps_per_epoch", steps_per_epoch)
    warmup_epochs = as_integer("warmup_epochs", warmup_epochs, minimum=0)
    learning_rate = as_number("learning_rate", learning_rate, 0, math.inf)
    warmup_learning_rate = as_number("warmup_learning_rate", warmup_learning_rate, 0, math.inf)
    min_learning_rate = as_number("min_learning_rate", min_learning_rate, 0, math.inf)
    if not isinstance(learning_rate, Tracer) and min_learning_rate > learning_rate:
        raise ValueError(
            f"`min_learning_rate` is {min_learning_rate:g} and `learning_rate` {learning_rate:g}: the cosine would "
            "rise. A recipe's `learning_rate` is for 512 images, so a small batch has a smaller one: set "
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


def trainable(model: PyTree) -> PyTree:
    """Picks all floating-point arrays of `model`. Everything else is `None`."""
    return eqx.filter(model, eqx.is_inexact_array)


def freeze_norms(model: Model) -> Model:
    """Puts every [`levitax.nn.BatchNorm`][] and `eqx.nn.BatchNorm` of `model` into inference mode, to train with fixed
    running statistics. The weights and biases of these layers still learn."""
    is_norm = lambda node: isinstance(node, BatchNorm | eqx.nn.BatchNorm)
    freeze = lambda node: eqx.tree_at(lambda norm: norm.inference, node, True) if is_norm(node) else node
    return jax.tree.map(freeze, model, is_leaf=is_norm)


def head_only(model: PyTree) -> PyTree:
    """Picks the floating-point arrays of the head of `model`, a [`levitax.LeViT`][], for a linear probe."""
    none = eqx.filter(model, False)
    return eqx.tree_at(lambda model: model.head, none, trainable(model.head), is_leaf=lambda node: node is None)
