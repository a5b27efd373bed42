from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from .._batched import batch_size, batched
from .._checks import as_integer
from .._model_checks import check_callable
from ._accumulate import in_parts
from ._compile import compile_update
from ._loss import cross_entropy, Loss
from ._mesh import in_auto, replicated
from ._optimizer import Model
from ._state import TrainState
from ._step_checks import as_batch, check_dtype, check_images, check_memory, check_train_state


class Metrics(NamedTuple):
    """The metrics of a training step.

    **Attributes:**

    - `loss`: `()`, of the batch.
    - `grad_norm`: `()`, the Euclidean norm of the loss's gradient.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


@runtime_checkable
class Step(Protocol):
    """A training step, made by [`levitax.train.make_step`][]."""

    def __call__(
        self, train_state: TrainState[Model], images: PyTree, targets: PyTree
    ) -> tuple[TrainState[Model], Metrics]:
        """**Arguments:**

        - `train_state`: a [`levitax.train.TrainState`][], whose memory the step frees.
        - `images`: a batch, with a leading axis on every array.
        - `targets`: of the loss.

        **Returns:** the train state after the step, and the metrics.
        """
        ...


def make_step(
    loss: Loss = cross_entropy,
    *,
    accumulate: int = 1,
    group_size: int | None = None,
    mesh: Mesh | None = None,
) -> Step:
    """Makes a compiled training step.

    **Arguments:**

    - `loss`: a function of the model's outputs and the targets. Its result is the mean loss of the batch.
    - `accumulate`: process the batch in this many parts, one after the other, which needs the memory of one part. The
        step uses the mean of the parts' gradients. This is the gradient of the whole batch, except that batch
        normalisation takes its statistics over each part. Part `i` has the images `i`, `i + accumulate`, and so on, so
        that each device keeps its own images. With `group_size`, these are the numbers of groups.
    - `group_size`: as in [`levitax.batched`][].
    - `mesh`: the devices that the batch is spread over, as by [`levitax.train.shard_batch`][]. Each device holds the
        whole train state.

    **Returns:** a [`levitax.train.Step`][], called as `train_state, metrics = step(train_state, images, targets)`. A
    step frees the memory of its train state: continue with the new one. Without `accumulate`, a call returns while the
    device still computes; reading a metric waits.

    **Raises:** `TypeError` if `loss` is not a function or `mesh` not a mesh; `TypeError` or `ValueError` if
    `accumulate` or `group_size` is not a positive integer. The step raises `TypeError` without a train state;
    `ValueError` for a train state that a step has used up, for a LeViT whose `dtype` is "float16" (its gradients would
    underflow and overflow; use "bfloat16"), for a batch that is empty or cannot be split as requested, and inside
    `jax.pmap` and `jax.shard_map`.
    """
    check_callable("loss", loss, "a function of outputs and targets; a train state holds the optimiser")
    as_integer("accumulate", accumulate)
    if group_size is not None:
        as_integer("group_size", group_size)
    whole = None if mesh is None else replicated(in_auto(mesh))

    def compute_loss(trained, model, state, images, targets, keys):
        model = eqx.combine(trained, model)
        outputs, state = batched(model, group_size=group_size)(images, state, key=keys)
        return loss(outputs, targets), state

    value_and_grad = eqx.filter_value_and_grad(compute_loss, has_aux=True)
    if accumulate > 1:
        value_and_grad = in_parts(value_and_grad, accumulate, group_size=group_size)

    def forward_and_backward(train_state, images, targets):
        """The train state with the model's new state, the loss, and the gradient."""
        key = jax.random.fold_in(train_state.key, train_state.step)
        keys = jax.random.split(key, batch_size("images", images))
        model, state = train_state.model, train_state.state
        trained = train_state.parameters(model)
        (value, state), gradient = value_and_grad(trained, model, state, images, targets, keys)
        return eqx.tree_at(lambda old: old.state, train_state, state), value, gradient

    def update(train_state, value, gradient):
        result = train_state.updated(gradient), Metrics(value, optax.tree.norm(gradient))
        return result if whole is None else eqx.filter_shard(result, whole)

    if accumulate == 1:
        compiled = compile_update(lambda *given: update(*forward_and_backward(*given)))
    else:
        finish = compile_update(update)

        def compiled(train_state, *batch):
            # The parts free the model's state before `finish` could see that the train state was used up.
            check_memory(jax.tree.leaves(train_state))
            return finish(*forward_and_backward(train_state, *batch))

    def step(train_state: TrainState[Model], images: PyTree, targets: PyTree) -> tuple[TrainState[Model], Metrics]:
        check_train_state(train_state)
        check_dtype(train_state.model)
        images, targets = as_batch("images", images), as_batch("targets", targets)
        check_images(images)
        return compiled(train_state, images, targets)

    return step
