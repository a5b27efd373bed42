"""The blocks of a LeViT by number or path."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from . import nn
from ._checks import as_choice


class BlockNumber(NamedTuple):
    """The number of a stage, and of a block in it."""

    stage: int
    block: int


def as_blocks(blocks: Any, depths: Sequence[int]) -> list[BlockNumber]:
    """Converts a sequence of numbers and paths of blocks to numbers by stage, for stages of these depths.

    **Raises:** `TypeError` if it is no such sequence, `ValueError` for a block that does not exist.
    """
    every = [BlockNumber(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    if blocks is None:
        return [BlockNumber(stage, depth - 1) for stage, depth in enumerate(depths)]
    if isinstance(blocks, str) or not isinstance(blocks, Iterable) or not (blocks := list(blocks)):
        raise TypeError(
            f"`blocks` is {blocks!r}; expected a list of numbers or paths, such as `[0, -1]` or "
            "`['stages.1.blocks.0']`."
        )
    paths = {f"stages.{number.stage}.blocks.{number.block}": number for number in every}
    return [
        paths[as_choice("blocks", block, paths)] if isinstance(block, str) else _by_number(block, every)
        for block in blocks
    ]


def depth(stage: Any) -> int:
    """The number of blocks in a stage. One without blocks counts as one block, and so does a stage of another class,
    which may run its blocks in its own way."""
    return len(stage.blocks) if _has_blocks(stage) else 1


def after_blocks(
    stage: Any, tokens: Float[Array, "tokens dim"], state: eqx.nn.State, key: PRNGKeyArray | None
) -> Iterator[tuple[Float[Array, "new_tokens out_dim"], eqx.nn.State]]:
    """Computes the tokens and the state after each block of a stage, when it is asked for."""
    if _has_blocks(stage):
        return stage.after_blocks(tokens, state, key=key)
    return map(lambda stage: stage(tokens, state, key=key), (stage,))


def blocks_of(stage: Any) -> tuple[Any, ...]:
    """The blocks of a stage in the order in which it runs them. A stage of another class counts as one block."""
    return stage.blocks if type(stage) is nn.Stage else (stage,)


def attention_weights(
    block: Any, tokens: Float[Array, "tokens dim"], state: eqx.nn.State
) -> Float[Array, "heads queries tokens"]:
    """Computes the attention weights of a block.

    **Raises:** `TypeError` for a block, or a stage in its place, that has none.
    """
    weights = getattr(getattr(block, "attention", None), "weights", None)
    if weights is None:
        raise TypeError(
            f"A `{type(block).__name__}` in the model has no attention weights; expected blocks like a "
            "`levitax.nn.Block`, in a `levitax.nn.Stage`. For a stage of your own, call the "
            "`attention.weights(tokens, state)` of each of its blocks."
        )
    return weights(tokens, state)


def _has_blocks(stage):
    return type(stage) is nn.Stage and len(stage.blocks) > 0


def _by_number(block, every):
    if isinstance(block, bool) or not hasattr(block, "__index__"):
        raise TypeError(f"`blocks` contains {block!r}; expected the number of a block, or its path.")
    if not -len(every) <= block < len(every):
        raise ValueError(
            f"`blocks` contains {block}; expected a number from 0 to {len(every) - 1}, or from {-len(every)} to -1 "
            "counted from the end."
        )
    return every[block]
