from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._checks import as_flag
from .._keys import as_key
from ._optimizer import check_optimizer, Parameters, trainable


class TrainState(eqx.Module):
    """All that training carries from step to step, as one PyTree: what a checkpoint has to hold.

    [`levitax.train.Checkpoints`][] saves and restores one. `equinox.tree_serialise_leaves` does not write keys: replace
    `key` by `jax.random.key_data(key)` before and by `jax.random.wrap_key_data` of that after.

    **Attributes:**

    - `model`, `state`: as they are now.
    - `opt_state`: the optimiser's.
    - `ema`: the exponential moving average of the floating-point arrays of model and state, or `None`.
    - `key`: the one given.
    - `step`: `()`, how many steps have been done.
    - `trained`: the names of the arrays of the model that are trained.
    """

    model: PyTree
    state: eqx.nn.State
    opt_state: optax.OptState
    ema: PyTree
    key: PRNGKeyArray
    step: Int[Array, ""]
    trained: tuple[str, ...] = eqx.field(static=True, repr=False)

    def __init__(
        self,
        model: PyTree,
        state: eqx.nn.State,
        optimizer: optax.GradientTransformation,
        *,
        parameters: Parameters = trainable,
        ema: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `model`, `state`: as `eqx.nn.make_with_state` gives them. They and `key` are copied, since a training step
            uses up the memory of the train state it is given.
        - `optimizer`: whose state is started here.
        - `parameters`: what is trained, as in [`levitax.train.make_step`][].
        - `ema`: keep a moving average as well, which a step made with `ema_decay` moves.
        - `key`: the source of dropout and drop path. Step `n` uses `jax.random.fold_in(key, n)`, so a run that is taken
            up again at step `n` goes on as it would have.

        **Raises:** `ValueError` if `parameters` picks nothing, `TypeError` if `ema` is no `bool`, or `optimizer` no
        optimiser.
        """
        as_flag("ema", ema)
        check_optimizer(optimizer)
        self.model, self.state, self.key = _copy((model, state, as_key(key)))
        # Some optimisers keep the parameters they start from, and a buffer can be given up once only.
        params = parameters(self.model)
        self.trained = names_of(params)
        if not self.trained:
            raise ValueError(
                "`parameters` picks no array of the model, so nothing would be trained. A model made with "
                "`num_classes=0` has no head for `head_only`."
            )
        self.opt_state = _copy(optimizer.init(params))
        self.ema = _copy(ema_part(model, state)) if ema else None
        self.step = jnp.zeros((), jnp.int32)

    def averaged(self) -> tuple[Any, eqx.nn.State]:
        """Model and state with the moving averages in place of what they are averages of. They share memory with this
        train state, so the next step uses them up.

        **Raises:** `ValueError` where no average is kept.
        """
        if self.ema is None:
            raise ValueError("There is no average: make the train state with `ema=True`.")
        return eqx.combine(self.ema, (self.model, self.state))


def ema_part(model: PyTree, state: eqx.nn.State) -> PyTree:
    """What has an average: floating-point arrays, and never an integer, which an average would turn into another."""
    return eqx.filter((model, state), eqx.is_inexact_array)


def names_of(params: PyTree) -> tuple[str, ...]:
    """The name of each array of what is trained."""
    return tuple(jax.tree_util.keystr(path).lstrip(".") for path, _ in jax.tree_util.tree_leaves_with_path(params))


def _copy(tree):
    return jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, tree)
