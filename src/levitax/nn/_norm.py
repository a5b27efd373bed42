from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._keys import call_factory
from .._model_checks import check_made, check_result, check_shape
from ._initial import full


Layer: TypeAlias = Callable[..., tuple[Any, eqx.nn.State]]
"""A layer, called as `x, state = layer(x, state, key=key)`."""

NormFactory: TypeAlias = Callable[..., Any]
"""A function, or a class, that makes a normalisation of some channels: `layer = norm(channels, key=key)`.

A factory may leave out `key`: `norm=eqx.nn.LayerNorm` works. The layer is called as
`x, state = layer(x, state, key=key)`, with channels last, on an array of any rank. The
normalisations of `equinox.nn` may be returned as they are: `GroupNorm` and `BatchNorm` are put into a
[`levitax.nn.ChannelsFirst`][], `LayerNorm` and `RMSNorm` into a [`levitax.nn.PerToken`][].
"""


class ChannelsFirst(eqx.Module):
    """Calls a layer that takes channels first, such as `equinox.nn.GroupNorm`, on an array with channels last.

    **Arguments:**

    - `layer`: called as `x, state = layer(x, state, key=key)`, with `x` of shape `(channels, ...)`.
    """

    layer: Layer

    def __call__(
        self, x: Float[Array, "*tokens channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens channels"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(..., channels)`.
        - `key`: for the layer.

        **Returns:** the result of the layer, `(..., channels)` in the dtype of `x`, and the new state.

        **Raises:** `TypeError` if the layer returns no tuple of an array and a state, `ValueError` if the array has
        another shape.
        """
        channels_first = jnp.moveaxis(x, -1, 0)
        result = self.layer(channels_first, state, key=key)
        y, state = check_result("ChannelsFirst", self.layer, result, channels_first.shape)
        return jnp.moveaxis(y, 0, -1).astype(x.dtype), state


class PerToken(eqx.Module):
    """Calls a layer that takes one vector, such as `equinox.nn.LayerNorm`, on the channels of each token.

    **Arguments:**

    - `layer`: called as `y = layer(x)`, with `x` of shape `(channels,)`. It has no state.
    """

    layer: Callable[..., Any]

    def __call__(
        self, x: Float[Array, "*tokens channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens channels"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(..., channels)`.

        **Returns:** the results of the layer, `(..., channels)` in the dtype of `x`, and `state`, unchanged.

        **Raises:** `TypeError` if the layer returns no array, `ValueError` if its shape is not that of the input.
        """
        del key
        tokens = x.reshape(-1, x.shape[-1])
        y = jax.vmap(self.layer)(tokens)
        check_shape("The result of the layer of `PerToken`", y, tokens.shape)
        return y.reshape(x.shape).astype(x.dtype), state


def make_norm(norm: NormFactory, channels: int, *, zero_init: bool = False, key: PRNGKeyArray) -> Layer:
    """Makes a normalisation. With `zero_init`, its `weight`, if it has one, starts at 0.

    **Raises:** `TypeError` if the factory takes other arguments, or returns something that is not called like a layer.
    """
    layer = call_factory("norm(channels, key=key)", norm, channels, key=key)
    if zero_init and eqx.is_array(getattr(layer, "weight", None)):
        layer = eqx.tree_at(lambda layer: layer.weight, layer, full(layer.weight.shape, 0))
    if isinstance(layer, eqx.nn.GroupNorm | eqx.nn.BatchNorm):
        return ChannelsFirst(layer)
    if isinstance(layer, eqx.nn.LayerNorm | eqx.nn.RMSNorm):
        return PerToken(layer)
    expected = (
        "a layer that is called as `x, state = layer(x, state, key=key)`, like a `levitax.nn.BatchNorm`. For a "
        "function of an array alone, return `lambda x, state, *, key=None: (function(x), state)`"
    )
    check_made("norm", layer, expected, "x", "state", key=None)
    return layer


def normalise(
    norm: Layer | None, x: Float[Array, "..."], state: eqx.nn.State, key: PRNGKeyArray | None
) -> tuple[Float[Array, "..."], eqx.nn.State]:
    """Applies a normalisation, if there is one."""
    if norm is None:
        return x, state
    return check_result("norm", norm, norm(x, state, key=key), x.shape)
