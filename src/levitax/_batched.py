from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree


StatefulCallable: TypeAlias = Callable[..., tuple[Any, eqx.nn.State]]


def batched(model: StatefulCallable) -> StatefulCallable:
    """`jax.vmap` of a model over a batch: `logits, state = batched(model)(images, state, key=key)`.

    The axis is named "batch", as every [`levitax.nn.BatchNorm`][] of the model expects. In training, its statistics are
    taken over all of the batch; under `jax.jit` also where the batch is spread over several devices.

    **Arguments:**

    - `model`: anything called as `model(image, state, key=key) -> (output, state)`: a [`levitax.LeViT`][], its
        `features`, a module of your own that contains one.

    **Returns:** a function of a batch (a leading axis on every array of its first argument), the state and optionally a
    key, which is split over the batch. It returns the outputs with a leading axis, and one new state.
    """

    def call(images: PyTree, state: eqx.nn.State, *, key: PRNGKeyArray | None = None):
        size = jax.tree.leaves(images)[0].shape[0]
        keys = None if key is None else jax.random.split(key, size)
        one = lambda image, state, key: model(image, state, key=key)
        return jax.vmap(one, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")(images, state, keys)

    return call
