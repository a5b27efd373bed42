from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


# Of what is trained, the rest of the model, the state, and a batch: ((loss, new state), gradient).
ValueAndGrad: TypeAlias = Callable[..., tuple[tuple[Any, Any], PyTree]]


def in_parts(value_and_grad: ValueAndGrad, accumulate: int, group_size: int | None) -> ValueAndGrad:
    """Computes the same from parts of the batch, one after the other: the mean of their losses and gradients, and the
    state that the last one leaves.

    **Arguments:**

    - `value_and_grad`: of a loss that is a mean over the batch.
    - `accumulate`: how many parts. Part `i` has the images, or groups of images, `i`, `i + accumulate`, and so on.
    - `group_size`: consecutive images that stay together.
    """

    def call(trained, model, state, *batch):
        size, together = jax.tree.leaves(batch)[0].shape[0], group_size or 1
        if size % (accumulate * together):
            of = "images" if group_size is None else f"images in groups of {group_size}"
            raise ValueError(f"`accumulate` is {accumulate}, which does not divide a batch of {size} {of}.")

        def parts(array):
            if array.shape[:1] != (size,):
                raise ValueError(
                    "With `accumulate`, all that `loss` takes has a row an image; one of the targets has shape "
                    f"{array.shape}, and there are {size} images."
                )
            rows = array.reshape(-1, accumulate, together, *array.shape[1:]).swapaxes(0, 1)
            return rows.reshape(accumulate, size // accumulate, *array.shape[1:])

        def add(carry, part):
            total, state = carry
            (value, state), gradient = value_and_grad(trained, model, state, *part)
            return (jax.tree.map(jnp.add, total, (value, gradient)), state), None

        nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained)
        (total, state), _ = jax.lax.scan(add, (nothing, state), jax.tree.map(parts, batch))
        value, gradient = jax.tree.map(lambda array: array / accumulate, total)
        return (value, state), gradient

    return call
