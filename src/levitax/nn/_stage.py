from collections.abc import Sequence

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .._keys import split_key
from ._attention import Attention
from ._drop_path import DropPath
from ._mlp import MLP
from ._remat import keep_marked


class Block(eqx.Module):
    """An attention and an MLP, each inside a residual connection.

    Around a shrinking attention, one with a stride, there is no residual: its input and output differ in shape.

    **Arguments:**

    - `attention`: a [`levitax.nn.Attention`][].
    - `mlp`: a [`levitax.nn.MLP`][] of the channels that the attention gives.
    - `drop_path`: a [`levitax.nn.DropPath`][], applied to each residual branch on its own.
    """

    attention: Attention
    mlp: MLP
    drop_path: DropPath

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens out_dim"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`, all of the grid in row-major order.
        - `state`: holds the running statistics.
        - `key`: needed in training where dropout or drop path is active.

        **Returns:** `(new_tokens, out_dim)`, as the attention gives it, and the new state.

        **Raises:** `ValueError` for another number of tokens or channels, or if a key is missing; and what
        its normalisations raise.
        """
        attention_key, attention_drop_key, mlp_key, mlp_drop_key = split_key(key, 4)
        y, state = self.attention(x, state, key=attention_key)
        x = x + self.drop_path(y, key=attention_drop_key) if self.attention.stride == 1 else y
        y, state = self.mlp(x, state, key=mlp_key)
        return x + self.drop_path(y, key=mlp_drop_key), state


class Stage(eqx.Module):
    """Blocks at one resolution, one after the other. Every stage but the first opens with a block that shrinks the map
    (section 4.2 of the paper, "Multi-resolution pyramid")."""

    blocks: tuple[Block, ...]
    remat: bool = eqx.field(static=True)

    def __init__(self, blocks: Sequence[Block], *, remat: bool = False):
        """**Arguments:**

        - `blocks`: in order.
        - `remat`: keep only the blocks' inputs for the backward pass, and compute the rest again there.
        """
        self.blocks = tuple(blocks)
        self.remat = remat

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_tokens out_dim"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`, all of the grid in row-major order.
        - `state`: holds the running statistics.
        - `key`: needed in training where dropout or drop path is active.

        **Returns:** `(new_tokens, out_dim)`, as the last block gives it, and the new state.

        **Raises:** `ValueError` for another number of tokens or channels, or if a key is missing; and what
        its normalisations raise.
        """
        policy = None if self.remat else keep_marked
        for block, block_key in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
            x, state = eqx.filter_checkpoint(block, policy=policy)(x, state, key=block_key)
        return x, state
