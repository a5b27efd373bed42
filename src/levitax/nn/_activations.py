from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import jax
from jaxtyping import Array, Float

from ._xla import in_float32


Activation: TypeAlias = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A function of each element of an array of any shape, in the dtype of the array."""


# Plain functions around JAX's compiled ones. Those cannot be pickled, and copies of them do not compare equal: with one
# in a static field, a pickled or copied model would be another PyTree.


def hard_swish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * min(max(x + 3, 0), 6) / 6` of each element of `x`: the paper's activation (section 4.2, "Normalization
    layers and activations")."""
    return in_float32(jax.nn.hard_swish, x)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x * sigmoid(x)` of each element of `x`: the activation of timm's larger variants."""
    return in_float32(jax.nn.silu, x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU of each element of `x`, as in `torch.nn.GELU()`; JAX's default is an approximation."""
    return in_float32(partial(jax.nn.gelu, approximate=False), x)


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`max(x, 0)` of each element of `x`."""
    return jax.nn.relu(x)


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """No activation: `x` itself."""
    return x


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"hard_swish": hard_swish, "silu": silu, "gelu": gelu, "relu": relu}
)
"""The activations of a [`levitax.LeViT`][], by name."""
