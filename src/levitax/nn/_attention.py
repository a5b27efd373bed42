import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._array_checks import check_axis
from .._checks import as_integers, as_rate, check_positive
from .._keys import as_key, call_factory, check_key, split_key
from .._model_checks import check_activation, check_made, check_shape
from ._activations import Activation, hard_swish
from ._attention_bias import AttentionBias
from ._batch_norm import BatchNorm
from ._linear import LinearNorm
from ._norm import NormFactory
from ._xla import every_nth, softmax, stored


# For each head: scaled queries, keys and values.
Projections: TypeAlias = tuple[
    Float[Array, "heads queries key_dim"],
    Float[Array, "heads tokens key_dim"],
    Float[Array, "heads tokens value_dim"],
]


BiasFactory: TypeAlias = Callable[..., Any]
"""A function, or a class, that makes an attention bias: `bias = attention_bias(heads, grid, stride=stride, key=key)`.

`heads`, `grid` and `stride` are those of a [`levitax.nn.Attention`][]. A factory may leave out `key`. The result is
called as `bias()` and returns an array `(heads, queries, tokens)`.
"""


class QueryKeyValue(eqx.Module):
    """Queries, keys and values of every token, from one linear layer.

    The output of `linear` has one group of channels for each head, with query, key and value in each group, as in the
    published weights.

    **Arguments:**

    - `linear`: from the channels of a token to `heads * (2 * key_dim + value_dim)`.
    - `heads`: number of heads.
    - `key_dim`: channels of a query and of a key, in each head.
    - `scale`: a factor on the queries: `1 / sqrt(key_dim)`, or 1 if `linear` includes it.
    """

    linear: LinearNorm
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Projections, eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`.
        - `key`: for the linear layer.

        **Returns:** queries `(heads, queries, key_dim)`, one for each token, already multiplied by `scale`; keys
        `(heads, tokens, key_dim)`; values `(heads, tokens, value_dim)`; and the new state.
        """
        x, state = self.linear(x, state, key=key)
        queries, keys, values = jnp.split(_split_heads(x, self.heads), (self.key_dim, 2 * self.key_dim), axis=-1)
        return (queries * self.scale, keys, values), state


class SubsampledQueryKeyValue(eqx.Module):
    """Queries from every `stride`-th row and column of the grid, keys and values from all tokens.

    **Arguments:**

    - `query`: from the channels of a token to `heads * key_dim`.
    - `key_value`: from the channels of a token to `heads * (key_dim + value_dim)`, with the key first in each head.
    - `grid`: rows and columns of the tokens.
    - `stride`: of the queries in the grid.
    - `heads`, `key_dim`: as in [`levitax.nn.QueryKeyValue`][].
    - `scale`: a factor on the queries: `1 / sqrt(key_dim)`, or 1 if `query` includes it.
    """

    query: LinearNorm
    key_value: LinearNorm
    grid: tuple[int, int] = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Projections, eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`, all tokens of the grid in row-major order.
        - `key`: for the linear layers.

        **Returns:** queries `(heads, queries, key_dim)`, already multiplied by `scale`; keys
        `(heads, tokens, key_dim)`; values `(heads, tokens, value_dim)`; and the new state.
        """
        key_value_key, query_key = split_key(key, 2)
        key_value, state = self.key_value(x, state, key=key_value_key)
        keys, values = jnp.split(_split_heads(key_value, self.heads), (self.key_dim,), axis=-1)
        subsampled = every_nth(x.reshape(*self.grid, -1), self.stride).reshape(-1, x.shape[-1])
        queries, state = self.query(subsampled, state, key=query_key)
        return (_split_heads(queries, self.heads) * self.scale, keys, values), state


class Attention(eqx.Module):
    """Multi-head attention over a grid of tokens, with a bias for each offset instead of a positional embedding.

    Computes `softmax(queries keysᵀ / sqrt(key_dim) + bias) values`. The bias of two tokens depends on the head and on
    their distance in rows and columns.

    With `stride=1` the layer keeps the grid. With `stride=2` it downsamples: queries, and so the tokens of the result,
    come from every second row and column. The activation precedes the output projection. (Section 4.2 of the paper:
    "Attention bias instead of a positional embedding", "Smaller keys", "Attention activation", "Downsampling".)
    """

    project_in: QueryKeyValue | SubsampledQueryKeyValue
    bias: Callable[[], Float[Array, "heads queries tokens"]]
    project_out: LinearNorm
    dropout: eqx.nn.Dropout
    activation: Activation
    stride: int = eqx.field(static=True)
    tokens: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        *,
        heads: int,
        key_dim: int,
        value_dim: int,
        out_dim: int | None = None,
        stride: int = 1,
        activation: Activation = hard_swish,
        dropout: float = 0.0,
        zero_init: bool | None = None,
        output_bias: bool = False,
        norm: NormFactory = BatchNorm,
        attention_bias: BiasFactory = AttentionBias,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: channels of the input.
        - `grid`: rows and columns of the input's tokens.
        - `heads`: number of heads.
        - `key_dim`: channels of a query and of a key, in each head.
        - `value_dim`: channels of a value, in each head. In the paper `2 * key_dim`, and `4 * key_dim` to downsample.
        - `out_dim`: channels of the output; by default `dim`.
        - `stride`: of the queries in the grid.
        - `activation`: between the attended values and the output projection.
        - `dropout`: rate on the attention weights, and after the output projection. The paper has none.
        - `zero_init`: start the last normalisation with a weight of 0. By default only with a stride of 1, which has a
            residual connection around the layer.
        - `output_bias`: add a bias in the output projection. The paper has none; the vit-pytorch network has one.
        - `norm`: makes the normalisations, see [`levitax.nn.NormFactory`][].
        - `attention_bias`: makes the bias of the scores, see [`levitax.nn.BiasFactory`][].
        - `key`: draws the initial weights.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, rates outside [0, 1), an
        activation that is not a function, an invalid key, and if `norm` returns no layer or `attention_bias` nothing
        that can be called.
        """
        check_positive(heads=heads, key_dim=key_dim, value_dim=value_dim, stride=stride)
        rows, columns = as_integers("grid", grid, 2, "rows and columns")
        check_activation(activation)
        in_key, bias_key, out_key = split_key(as_key(key), 3)
        # The queries are 6 to 12 times smaller than the scores at 14x14 tokens, so the scale is applied to them.
        shared = {"heads": heads, "key_dim": key_dim, "scale": 1 / math.sqrt(key_dim)}
        make = partial(LinearNorm, norm=norm)
        if stride == 1:
            linear = make(dim, heads * (2 * key_dim + value_dim), key=in_key)
            self.project_in = QueryKeyValue(linear, **shared)
        else:
            query_key, key_value_key = split_key(in_key, 2)
            query = make(dim, heads * key_dim, key=query_key)
            key_value = make(dim, heads * (key_dim + value_dim), key=key_value_key)
            self.project_in = SubsampledQueryKeyValue(query, key_value, (rows, columns), stride, **shared)
        call = "attention_bias(heads, grid, stride=stride, key=key)"
        self.bias = call_factory(call, attention_bias, heads, (rows, columns), stride=stride, key=bias_key)
        check_made("attention_bias", self.bias, "a bias that is called as `bias()`")
        self.project_out = make(
            heads * value_dim,
            dim if out_dim is None else out_dim,
            use_bias=output_bias,
            zero_init=stride == 1 if zero_init is None else zero_init,
            key=out_key,
        )
        self.dropout = eqx.nn.Dropout(as_rate("dropout", dropout))
        self.activation = activation
        self.stride = stride
        self.tokens = rows * columns

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "queries out_dim"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`, all tokens of the grid in row-major order.
        - `key`: needed in training if dropout is active.

        **Returns:** `(queries, out_dim)`, of `ceil(rows / stride) * ceil(columns / stride)` queries in row-major order,
        in the dtype of `x`; and the new state.

        **Raises:** `ValueError` for another number of tokens or channels, or if a key is missing; and the errors of the
        normalisations.
        """
        check_axis("x", x, 0, self.tokens, "tokens of the grid")
        check_key("Dropout", self.dropout.p, self.dropout.inference, key)
        weights_key, out_key, in_key, project_key = split_key(key, 4)
        (queries, keys, values), state = self.project_in(x, state, key=in_key)
        weights = softmax(self._scores(queries, keys)).astype(values.dtype)
        weights = self.dropout(weights, key=weights_key)
        mixed = stored(jnp.matmul(weights, values))
        x, state = self.project_out(self.activation(_join_heads(mixed)), state, key=project_key)
        return self.dropout(x, key=out_key), state

    def weights(self, x: Float[Array, "tokens dim"], state: eqx.nn.State) -> Float[Array, "heads queries tokens"]:
        """Computes the attention weights, without dropout.

        **Arguments:**

        - `x`, `state`: as in a call; `x` is `(tokens, dim)`.

        **Returns:** `(heads, queries, tokens)` in float32, which sum to 1 over the tokens.

        **Raises:** `ValueError` for another number of tokens or channels.
        """
        check_axis("x", x, 0, self.tokens, "tokens of the grid")
        (queries, keys, _), _ = self.project_in(x, state)
        return softmax(self._scores(queries, keys))

    def _scores(self, queries, keys):
        products = jnp.matmul(queries, jnp.swapaxes(keys, 1, 2), preferred_element_type=jnp.float32)
        bias = self.bias()
        check_shape("The attention bias", bias, products.shape)
        return products + bias


def _split_heads(x, heads):
    """`(tokens, heads * channels)` to `(heads, tokens, channels)`."""
    return x.reshape(x.shape[0], heads, -1).transpose(1, 0, 2)


def _join_heads(x):
    """`(heads, tokens, channels)` to `(tokens, heads * channels)`."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)
