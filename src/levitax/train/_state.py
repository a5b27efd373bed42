import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ._optimizer import trainable


class TrainState(eqx.Module):
    """All that training carries from step to step, as one PyTree: what a checkpoint has to hold.

    `equinox.tree_serialise_leaves` does not write keys: replace `key` by `jax.random.key_data(key)` before and by
    `jax.random.wrap_key_data` of that after.
    """

    model: PyTree
    state: eqx.nn.State
    opt_state: optax.OptState
    key: PRNGKeyArray
    step: Int[Array, ""]

    def __init__(
        self,
        model: PyTree,
        state: eqx.nn.State,
        optimizer: optax.GradientTransformation,
        *,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `model`, `state`: as `eqx.nn.make_with_state` gives them. They and `key` are copied, since a training step
            uses up the memory of the train state it is given.
        - `optimizer`: whose state is started here.
        - `key`: the source of dropout and drop path. Step `n` uses `jax.random.fold_in(key, n)`, so a run that is taken
            up again at step `n` goes on as it would have.
        """
        copies = jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, (model, state, key))
        self.model, self.state, self.key = copies
        self.opt_state = optimizer.init(trainable(model))
        self.step = jnp.zeros((), jnp.int32)
