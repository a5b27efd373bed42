from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from .._array_checks import check_width
from .._batched import batch_size, batched
from .._checks import as_integer, as_number
from ._accumulate import in_parts
from ._compile import compile_update
from ._loss import cross_entropy, Loss
from ._mesh import in_auto, replicated
from ._optimizer import check_optimizer, Parameters, promoting, trainable
from ._state import ema_part, TrainState
from ._step_checks import check_batch, step_check


class Metrics(NamedTuple):
    """What a training step reports.

    **Attributes:**

    - `loss`: `()`, of the batch.
    - `grad_norm`: `()`, the Euclidean norm of the loss's gradient.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


def make_step(
    optimizer: optax.GradientTransformation,
    loss: Loss = cross_entropy,
    *,
    parameters: Parameters = trainable,
    accumulate: int = 1,
    group_size: int | None = None,
    ema_decay: float | None = None,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]:
    """Makes a compiled training step.

    **Arguments:**

    - `optimizer`: the one that the [`levitax.train.TrainState`][] was made with.
    - `loss`: the mean over a batch, from the model's outputs and the targets.
    - `parameters`: picks what is trained out of the model, as [`levitax.train.trainable`][], the default, and
        [`levitax.train.head_only`][] do. No gradient is computed for the rest. The train state must be made with the
        same.
    - `accumulate`: take the batch in this many parts, one after the other, and step with the mean of their gradients:
        those of the whole batch in the memory of a part, but for batch normalisation, whose statistics are then those
        of each part. Part `i` has the images, or with `group_size` the groups of images, `i`, `i + accumulate`, and so
        on, so that each device keeps its own.
    - `group_size`: of [`levitax.batched`][].
    - `ema_decay`: what the moving average keeps of itself in a step, from 0 to 1; 0.99996 in the official training.
        Goes with a train state made with `ema=True`, and with no other.
    - `mesh`: over whose devices the batch is spread, as by [`levitax.train.shard_batch`][]. The train state stays whole
        on each of them.

    **Returns:** `step(train_state, images, targets) -> (train_state, metrics)`, for a batch of `images` (a leading axis
    on every array) and whatever `loss` takes as targets. The train state that goes in is used up: its memory becomes
    that of the one that comes out. Without `accumulate`, a call returns while the device still computes; looking at a
    metric waits.

    **Raises:** `TypeError` if `optimizer` is none of optax's kind; `TypeError` or `ValueError` if `accumulate` or
    `group_size` is no positive integer, `ema_decay` no number from 0 to 1, or `mesh` no mesh. The step raises
    `TypeError` for what is no train state; `ValueError` for one that a step has used up, for a batch that is empty or
    cannot be split as asked; for a train state made with another optimiser or other `parameters`, or with an average
    and without `ema_decay`, or the other way round; and inside `jax.pmap` and `jax.shard_map`.
    """
    check_optimizer(optimizer)
    as_integer("accumulate", accumulate)
    if group_size is not None:
        as_integer("group_size", group_size)
    ema_decay = as_number("ema_decay", ema_decay, 0, 1, optional=True)
    whole = None if mesh is None else replicated(in_auto(mesh))
    check_train_state = step_check(optimizer, parameters, ema_decay)

    def compute_loss(trained, model, state, images, targets, keys):
        model = eqx.combine(trained, model)
        outputs, state = batched(model, group_size=group_size)(images, state, key=keys)
        return loss(outputs, targets), state

    value_and_grad = eqx.filter_value_and_grad(compute_loss, has_aux=True)
    if accumulate > 1:
        value_and_grad = in_parts(value_and_grad, accumulate, group_size=group_size)

    def forward_and_backward(train_state, images, targets):
        """The train state with the new batch statistics, loss, gradient."""
        check_batch(images)
        check_train_state(train_state)
        key = jax.random.fold_in(train_state.key, train_state.step)
        keys = jax.random.split(key, batch_size("images", images))
        model = train_state.model
        (value, state), gradient = value_and_grad(parameters(model), model, train_state.state, images, targets, keys)
        return eqx.tree_at(lambda old: old.state, train_state, state), value, gradient

    def update(train_state, value, gradient):
        trained = parameters(train_state.model)
        updates, opt_state = promoting(optimizer).update(gradient, train_state.opt_state, trained)
        model = eqx.apply_updates(train_state.model, updates)
        ema = train_state.ema
        if ema_decay is not None:
            # Not `optax.incremental_update`, whose two weights do not quite add up to 1 in float32: at 0.99996 what
            # never changes was 1.3e-4 off after 3,000 steps.
            rate = 1 - ema_decay
            move = lambda old, new: old + rate * (new - old)
            ema = jax.tree.map(move, ema, ema_part(model, train_state.state))
        train_state = eqx.tree_at(
            lambda old: (old.model, old.opt_state, old.ema, old.step),
            train_state,
            (model, opt_state, ema, train_state.step + 1),
            is_leaf=lambda node: node is None,
        )
        metrics = Metrics(value, optax.tree.norm(gradient))
        return (train_state, metrics) if whole is None else eqx.filter_shard((train_state, metrics), whole)

    if accumulate == 1:
        compiled = compile_update(lambda *given: update(*forward_and_backward(*given)))
    else:
        finish = compile_update(update)
        compiled = lambda *given: finish(*forward_and_backward(*given))

    def step(train_state: TrainState, images: PyTree, targets: PyTree) -> tuple[TrainState, Metrics]:
        if not isinstance(train_state, TrainState):
            raise TypeError(
                f"`train_state` is of type `{type(train_state).__name__}`; expected a `levitax.train.TrainState`, made "
                "of model, state and optimiser."
            )
        # Lists of numbers are one array, not a tree of scalars.
        images, targets = (np.asarray(given) if isinstance(given, list) else given for given in (images, targets))
        for name, given in (("images", images), ("targets", targets)):
            for path, array in jax.tree_util.tree_leaves_with_path(given):
                check_width(f"{name}{jax.tree_util.keystr(path)}", array)
        return compiled(train_state, *jax.tree.map(jnp.asarray, (images, targets)))

    return step
