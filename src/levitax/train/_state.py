from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._array_checks import as_number
from .._keys import as_key
from ._optimizer import check_optimizer, check_trained, Model, Parameters, promoting, trainable


class TrainState(eqx.Module, Generic[Model]):
    """Everything that training carries from step to step, as one PyTree, with the settings of a step.

    [`levitax.train.Checkpoints`][] saves and restores one. `equinox.tree_serialise_leaves` does not write keys: convert
    `key` with `jax.random.key_data` before writing, and with `jax.random.wrap_key_data` after reading.

    **Attributes:**

    - `model`, `state`: the current model and its state.
    - `opt_state`: the state of the optimiser.
    - `ema`: the exponential moving average of the floating-point arrays of model and state, or `None`.
    - `key`: as given.
    - `step`: `()`, the number of steps done.
    - `optimizer`, `parameters`, `ema_decay`: as given.
    """

    model: Model
    state: eqx.nn.State
    opt_state: optax.OptState
    ema: PyTree
    key: PRNGKeyArray
    step: Int[Array, ""]
    optimizer: optax.GradientTransformation = eqx.field(static=True, repr=False)
    parameters: Parameters = eqx.field(static=True, repr=False)
    ema_decay: float | None = eqx.field(static=True)

    def __init__(
        self,
        model: Model,
        state: eqx.nn.State,
        optimizer: optax.GradientTransformation,
        *,
        parameters: Parameters = trainable,
        ema_decay: float | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `model`, `state`: from `eqx.nn.make_with_state`. The train state copies them and `key`, because a step frees
            the memory of its train state.
        - `optimizer`: from optax, or [`levitax.train.adamw`][].
        - `parameters`: a function that picks the trained arrays of the model, such as [`levitax.train.trainable`][],
            the default, or [`levitax.train.head_only`][]. No gradient is computed for the rest.
        - `ema_decay`: keep a moving average with this decay, the share of the old average that remains after a step.
            From 0 to 1; 0.99996 in the official training. By default there is no average.
        - `key`: the source of dropout and drop path. Step `n` uses `jax.random.fold_in(key, n)`, so a resumed run draws
            the same numbers.

        **Raises:** `TypeError` if `optimizer` is not an optimiser or `key` is not a key; `ValueError` if `parameters`
        picks nothing, or `ema_decay` is not a number from 0 to 1.
        """
        check_optimizer(optimizer)
        self.optimizer, self.parameters = optimizer, parameters
        self.ema_decay = as_number("ema_decay", ema_decay, 0, 1, optional=True)
        self.model, self.state, self.key = _copy((model, state, as_key(key)))
        # Some optimisers keep the parameters they start from, and a buffer can be freed once only.
        params = parameters(self.model)
        check_trained(params)
        self.opt_state = _copy(optimizer.init(params))
        self.ema = None if ema_decay is None else _copy(_averaged_part(model, state))
        self.step = jnp.zeros((), jnp.int32)

    def averaged(self) -> tuple[Model, eqx.nn.State]:
        """Returns model and state with the moving averages in place of the arrays they average. The results share
        memory with this train state, so the next step frees them.

        **Raises:** `ValueError` if there is no average.
        """
        if self.ema is None:
            raise ValueError("There is no average: make the train state with `ema_decay=`, such as 0.99996.")
        return eqx.combine(self.ema, (self.model, self.state))

    def updated(self, gradient: PyTree) -> "TrainState[Model]":
        """Returns the train state after a step of the optimiser. `gradient` is the gradient of the arrays that
        `parameters` picks."""
        updates, opt_state = promoting(self.optimizer).update(gradient, self.opt_state, self.parameters(self.model))
        model, ema = eqx.apply_updates(self.model, updates), self.ema
        if self.ema_decay is not None:
            # Not `optax.incremental_update`, whose two weights do not sum to exactly 1 in float32: at 0.99996, what
            # never changes was 1.3e-4 off after 3,000 steps.
            rate = 1 - self.ema_decay
            move = lambda old, new: old + rate * (new - old)
            ema = jax.tree.map(move, ema, _averaged_part(model, self.state))
        where = lambda old: (old.model, old.opt_state, old.ema, old.step)
        new = (model, opt_state, ema, self.step + 1)
        return eqx.tree_at(where, self, new, is_leaf=lambda node: node is None)


def _averaged_part(model: PyTree, state: eqx.nn.State) -> PyTree:
    """Floating-point arrays, and never an integer, which an average would turn into another."""
    return eqx.filter((model, state), eqx.is_inexact_array)


def _copy(tree):
    # Not `leaf.copy()`, which compiles for each shape.
    return jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=False) if eqx.is_array(leaf) else leaf, tree)
