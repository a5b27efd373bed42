from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._batched import batched
from ._loss import cross_entropy
from ._optimizer import trainable
from ._state import TrainState


Loss: TypeAlias = Callable[[Any, PyTree], Float[Array, ""]]


class Metrics(NamedTuple):
    """What a training step reports: the loss, and the Euclidean norm of its gradient."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


def make_step(
    optimizer: optax.GradientTransformation, loss: Loss = cross_entropy
) -> Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]:
    """Makes a compiled training step.

    **Arguments:**

    - `optimizer`: the one that the [`levitax.train.TrainState`][] was made with.
    - `loss`: of a batch, from the model's outputs and the targets.

    **Returns:** `step(train_state, images, targets) -> (train_state, metrics)`, for a batch of `images` (a leading axis
    on every array) and whatever `loss` takes as targets. The train state that goes in is used up: its memory becomes
    that of the one that comes out.
    """

    def compute_loss(model, state, images, targets, key):
        outputs, state = batched(model)(images, state, key=key)
        return loss(outputs, targets), state

    # `donate` knows only "all" and "all but the first argument": the batch, which stays the caller's, goes first.
    @eqx.filter_jit(donate="all-except-first")
    def update(batch, train_state):
        images, targets = batch
        key = jax.random.fold_in(train_state.key, train_state.step)
        value_and_grad = eqx.filter_value_and_grad(compute_loss, has_aux=True)
        (value, state), gradient = value_and_grad(train_state.model, train_state.state, images, targets, key)
        updates, opt_state = optimizer.update(gradient, train_state.opt_state, trainable(train_state.model))
        model = eqx.apply_updates(train_state.model, updates)
        train_state = eqx.tree_at(
            lambda old: (old.model, old.state, old.opt_state, old.step),
            train_state,
            (model, state, opt_state, train_state.step + 1),
        )
        return train_state, Metrics(value, optax.tree.norm(gradient))

    def step(train_state: TrainState, images: PyTree, targets: PyTree) -> tuple[TrainState, Metrics]:
        return update((jax.tree.map(jnp.asarray, images), jax.tree.map(jnp.asarray, targets)), train_state)

    return step
