from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_rate
from .._keys import check_key, split_key
from ._attention import Attention
from ._mlp import MLP
from ._xla import checkpointed


class DropPath(eqx.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): drops the residual branch of an image with probability
    `rate`. Scales the other branches by `1 / (1 - rate)`, which preserves the expectation."""

    rate: float = eqx.field(static=True)
    inference: bool

    def __init__(self, rate: float = 0.0, *, inference: bool = False):
        """**Arguments:**

        - `rate`: probability of dropping, in [0, 1).
        - `inference`: return the branch unchanged.

        **Raises:** `TypeError` or `ValueError` for a rate outside [0, 1).
        """
        self.rate = as_rate("rate", rate)
        self.inference = inference

    def __call__(self, x: Float[Array, "..."], *, key: PRNGKeyArray | None = None) -> Float[Array, "..."]:
        """**Arguments:**

        - `x`: the branch of one image, of any shape.
        - `key`: needed in training if `rate` is above 0.

        **Returns:** scaled `x`, or zeros; in inference mode, `x`.

        **Raises:** `ValueError` if a key is missing.
        """
        check_key("Drop path", self.rate, self.inference, key)
        if self.inference or self.rate == 0 or key is None:
            return x
        survives = jax.random.bernoulli(key, jnp.float32(1 - self.rate))
        return jnp.where(survives, x / (1 - self.rate), jnp.zeros_like(x))


class Block(eqx.Module):
    """An attention and an MLP, each with a residual connection around it.

    An attention that downsamples has no residual connection, because its input and output differ in shape.

    **Arguments:**

    - `attention`: a [`levitax.nn.Attention`][].
    - `mlp`: a [`levitax.nn.MLP`][] with as many channels as the attention returns.
    - `drop_path`: a [`levitax.nn.DropPath`][], applied to each residual branch independently.
    """

    attention: Attention
    mlp: MLP
    drop_path: DropPath

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens out_dim"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`, all tokens of the grid in row-major order.
        - `key`: needed in training if dropout or drop path is active.

        **Returns:** `(new_tokens, out_dim)`, as many tokens and channels as the attention returns; and the new state.

        **Raises:** `ValueError` for another number of tokens or channels, or if a key is missing; and the errors of the
        normalisations.
        """
        attention_key, attention_drop_key, mlp_key, mlp_drop_key = split_key(key, 4)
        y, state = self.attention(x, state, key=attention_key)
        x = x + self.drop_path(y, key=attention_drop_key) if self.attention.stride == 1 else y
        y, state = self.mlp(x, state, key=mlp_key)
        return x + self.drop_path(y, key=mlp_drop_key), state


class Stage(eqx.Module):
    """Blocks at one resolution, in sequence. Every stage but the first begins with a block that downsamples (section
    4.2 of the paper, "Multi-resolution pyramid")."""

    blocks: tuple[Block, ...]
    remat: bool = eqx.field(static=True)

    def __init__(self, blocks: Sequence[Block], *, remat: bool = False):
        """**Arguments:**

        - `blocks`: in order.
        - `remat`: store only the inputs of the blocks, and recompute the rest in the backward pass.
        """
        self.blocks = tuple(blocks)
        self.remat = remat

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens out_dim"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`, all tokens of the grid in row-major order.
        - `key`: needed in training if dropout or drop path is active.

        **Returns:** `(new_tokens, out_dim)`, as many tokens and channels as the blocks return; and the new state.

        **Raises:** `ValueError` for another number of tokens or channels, or if a key is missing; and the errors of the
        normalisations.
        """
        *_, last = ((x, state), *self.after_blocks(x, state, key=key))
        return last

    def after_blocks(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> Iterator[tuple[Float[Array, "new_tokens out_dim"], eqx.nn.State]]:
        """Computes one block after the other, each when the iterator is asked for it.

        **Arguments:**

        - `x`: `(tokens, dim)`, as in a call.
        - `state`, `key`: as in a call.

        **Returns:** an iterator over the tokens after each block, `(new_tokens, out_dim)`, with the new state.
        """
        for block, block_key in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
            x, state = checkpointed(block, stores=not self.remat)(x, state, key=block_key)
            yield x, state
