from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import jax
from jaxtyping import Array


Activation: TypeAlias = Callable[[Array], Array]


# Plain functions around JAX's compiled ones, which cannot be pickled, and of which copies do not compare equal: a
# static field that holds one would make a pickled or copied model another PyTree.


def hard_swish(x: Array) -> Array:
    """`x * min(max(x + 3, 0), 6) / 6`, element by element: LeViT's activation throughout."""
    return jax.nn.hard_swish(x)


def silu(x: Array) -> Array:
    """`x * sigmoid(x)`, element by element: timm's larger variants have it."""
    return jax.nn.silu(x)


def gelu(x: Array) -> Array:
    """The exact GELU, element by element, as `torch.nn.GELU()`; JAX's default is an approximation."""
    return jax.nn.gelu(x, approximate=False)


def relu(x: Array) -> Array:
    """`max(x, 0)`, element by element."""
    return jax.nn.relu(x)


def identity(x: Array) -> Array:
    """`x`: no activation."""
    return x


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"hard_swish": hard_swish, "silu": silu, "gelu": gelu, "relu": relu}
)
