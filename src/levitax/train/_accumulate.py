from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from .._batched import batch_size
from .._explicit import in_auto_mode


# From trained parameters, model, state and a batch to ((loss, new state), gradient).
ValueAndGrad = Callable[..., tuple[tuple[Any, eqx.nn.State], PyTree]]


def in_parts(value_and_grad: ValueAndGrad, accumulate: int, *, group_size: int | None) -> ValueAndGrad:
    """Computes the same from parts of the batch in sequence: the mean of their losses and gradients, and the state
    after the last one.

    Each part is a call of one compiled function. In a single program with a loop, XLA would use one core of the CPU
    (LeViT-256, batch 16 in two parts, two cores: 6.5 s a step instead of 1.1 s). Without a loop, it would hold the
    activations of several parts at once.

    **Arguments:**

    - `value_and_grad`: of a loss that is a mean over the batch. The state passed in is donated.
    - `accumulate`: number of parts. Part `i` has the images, or groups of images, `i`, `i + accumulate`, and so on.
    - `group_size`: consecutive images that stay together.
    """
    together = group_size or 1

    @eqx.filter_jit(donate="all-except-first")
    def add(given, total, state):
        trained, model, batch, index = given
        arrays, rest = eqx.partition(model, eqx.is_array)

        def call(trained, arrays, batch, index, total, state):
            part = jax.tree.map(lambda array: _part(array, index, accumulate, together), batch)
            (value, state), gradient = value_and_grad(trained, eqx.combine(arrays, rest), state, *part)
            plus = lambda total, new: total + (new / accumulate).astype(total.dtype)
            return jax.tree.map(plus, total, (value, gradient)), state

        return in_auto_mode(call, PartitionSpec(), trained, arrays, batch, index, total, state)

    # Compiled, so that the zeros lie on the devices of the parameters. JAX 0.10 finds the devices of an Explicit mesh
    # by the parameters, so it must not drop them although only their shapes are used.
    zeros = jax.jit(
        lambda trained: (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trained)), keep_unused=True
    )

    def call(trained, model, state, *batch):
        _check(batch, accumulate, group_size)
        total = zeros(trained)
        for index in range(accumulate):
            total, state = add((trained, model, batch, jnp.int32(index)), total, state)
        value, gradient = total
        return (value, state), gradient

    return call


def _part(array, index, accumulate, together):
    parts = array.reshape(-1, accumulate, together, *array.shape[1:])
    return jax.lax.dynamic_index_in_dim(parts, index, axis=1, keepdims=False).reshape(-1, *array.shape[1:])


def _check(batch, accumulate, group_size):
    size = batch_size("images", batch[0])
    if size % (accumulate * (group_size or 1)):
        of = "images" if group_size is None else f"images in groups of {group_size}"
        raise ValueError(f"`accumulate` is {accumulate}, which does not divide a batch of {size} {of}.")
    for array in jax.tree.leaves(batch):
        if array.shape[:1] != (size,):
            raise ValueError(
                f"One of the targets has shape {array.shape}, and there are {size} images; expected a row for each "
                "image, which `accumulate` splits."
            )
