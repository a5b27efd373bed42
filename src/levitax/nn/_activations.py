from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


Activation: TypeAlias = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A function of each element of an array of any shape, in the dtype of the array."""


# Plain functions around JAX's compiled ones, which cannot be pickled, and of which copies do not compare equal: a
# static field that holds one would make a pickled or copied model another PyTree.


def hard_swish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * min(max(x + 3, 0), 6) / 6` of `x`, element by element: the paper's activation throughout (section 4.2,
    "Normalization layers and activations")."""
    return _in_float32(jax.nn.hard_swish, x)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * sigmoid(x)` of `x`, element by element: timm's larger variants have it."""
    return _in_float32(jax.nn.silu, x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU of `x`, element by element, as `torch.nn.GELU()`; JAX's default is an approximation."""
    return _in_float32(partial(jax.nn.gelu, approximate=False), x)


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`max(x, 0)` of `x`, element by element."""
    return jax.nn.relu(x)


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` itself: no activation."""
    return x


def _in_float32(activation, x):
    # Rounded once, at the end. XLA on CPU also fuses it into what stands before, which it does not do with operations
    # on bfloat16: LeViT-256 in bfloat16, fused, batch 16, two cores: 141 ms instead of 154.
    return activation(x.astype(jnp.float32)).astype(x.dtype)


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"hard_swish": hard_swish, "silu": silu, "gelu": gelu, "relu": relu}
)
"""The activations that a [`levitax.LeViT`][] can have, by the name that it takes."""
