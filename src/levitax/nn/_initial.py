"""Initial values of weights: the same from a key of numbers, under `jax.jit`, and under `jax.vmap` over keys."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from .._host import placed_like


# XLA compiles for each shape, for up to 0.2 s. Weights of all shapes are therefore cut from blocks of one size.
_BLOCK = 2**14


def fan_in_uniform(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), like PyTorch's `kaiming_uniform_(a=sqrt(5))`."""
    return _draw(_uniform, key, shape, 1 / math.sqrt(fan_in))


def normal(key: PRNGKeyArray, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
    """Draws from N(0, std²)."""
    return _draw(jax.random.normal, key, shape, std)


def full(shape: int | tuple[int, ...], value: int) -> Float[Array, "..."]:
    """`jnp.full` in float32."""
    return jax.device_put(np.full(shape, value, np.float32))


def _draw(distribution, key, shape, scale):
    size = math.prod(shape)
    blocks = math.ceil(size / _BLOCK)
    block = partial(_block, key, distribution=distribution)
    first = block(0)
    if isinstance(first, Tracer):
        drawn = lax.map(block, jnp.arange(blocks, dtype=jnp.uint32)).reshape(-1)
        return drawn[:size].reshape(shape) * jnp.float32(scale)
    drawn = np.concatenate([first, *map(block, range(1, blocks))])
    return placed_like(first, drawn[:size].reshape(shape) * np.float32(scale))


@partial(jax.jit, static_argnames="distribution")
def _block(key: PRNGKeyArray, index: Any, *, distribution: Callable[..., Array]) -> Float[Array, " block"]:
    return distribution(jax.random.fold_in(key, index), (_BLOCK,), jnp.float32)


def _uniform(key, shape, dtype):
    # Neither this nor the factor rounds differently where XLA contracts a product and a sum.
    return jax.random.uniform(key, shape, dtype, -1, 1)
