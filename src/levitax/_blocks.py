"""Finds the blocks of a LeViT by number or path, and runs them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from . import nn
from ._checks import as_choice


Blocks: TypeAlias = Sequence[int | str]
"""Numbers of blocks, from 0 in the first stage or from the end if negative, or paths such as "stages.1.blocks.0"."""


class BlockNumber(NamedTuple):
    """The number of a stage, and of a block in it."""

    stage: int
    block: int


class AfterBlock(NamedTuple):
    """The tokens and the state after a block."""

    block: BlockNumber
    tokens: Float[Array, "tokens dim"]
    state: eqx.nn.State


def as_blocks(blocks: Any, stages: Sequence[Any]) -> list[BlockNumber]:
    """Converts numbers and paths of blocks to numbers by stage. `None` stands for the last block of each stage.

    **Raises:** `TypeError` if `blocks` is not a sequence of numbers and paths, or is empty; `ValueError` for a block
    that does not exist.
    """
    if blocks is None:
        return [BlockNumber(index, _depth(stage) - 1) for index, stage in enumerate(stages)]
    every = [BlockNumber(index, block) for index, stage in enumerate(stages) for block in range(_depth(stage))]
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


def run_blocks(
    stages: Sequence[Any],
    tokens: Float[Array, "tokens dim"],
    state: eqx.nn.State,
    keys: Sequence[PRNGKeyArray | None],
    *,
    last: BlockNumber,
) -> Iterator[AfterBlock]:
    """Runs the blocks of all stages in order, up to `last`, and yields the result of each. `keys` has a key for each
    stage."""
    for index, (stage, key) in enumerate(zip(stages, keys, strict=True)):
        results = stage.after_blocks(tokens, state, key=key) if _has_blocks(stage) else [stage(tokens, state, key=key)]
        for number, result in enumerate(results):
            tokens, state = result
            yield AfterBlock(BlockNumber(index, number), tokens, state)
            if (index, number) == last:
                return


def attention_weights(
    stages: Sequence[Any], tokens: Float[Array, "first_tokens dim"], state: eqx.nn.State
) -> tuple[tuple[Float[Array, "heads queries tokens"], ...], ...]:
    """Computes the attention weights of each block of each stage, in inference mode.

    **Raises:** `TypeError` for a block, or a stage of another class, that has none.
    """
    weights = []
    for stage in stages:
        weights.append([])
        for block in stage.blocks if type(stage) is nn.Stage else (stage,):
            weights[-1].append(_attention_of(block).weights(tokens, state))
            tokens, state = block(tokens, state)
    return tuple(map(tuple, weights))


def _attention_of(block):
    attention = getattr(block, "attention", None)
    if attention is None or not hasattr(attention, "weights"):
        raise TypeError(
            f"A `{type(block).__name__}` in the model has no attention weights; expected blocks like a "
            "`levitax.nn.Block`, in a `levitax.nn.Stage`. For a stage of your own, call the "
            "`attention.weights(tokens, state)` of each of its blocks."
        )
    return attention


def _depth(stage):
    """The number of blocks in a stage. One without blocks counts as one block, and so does a stage of another class,
    which may run its blocks in its own way."""
    return len(stage.blocks) if _has_blocks(stage) else 1


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
