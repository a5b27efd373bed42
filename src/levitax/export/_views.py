"""Transposes, broadcasts and reshapes, mostly without nodes."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from operator import mul

import numpy as np
from jax.extend.core import JaxprEqn

from ._graph import Constant, Graph, integers, is_size, Operand, Shape, shape_of, Tensor


def _transpose(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return x.permuted(integers(equation.params["permutation"]))


def _broadcast(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    source = integers(equation.params["broadcast_dimensions"])
    rank = len(equation.params["shape"])
    if isinstance(x, Constant):
        sizes = dict(zip(source, x.value.shape, strict=True))
        return Constant(x.value.reshape([sizes.get(axis, 1) for axis in range(rank)]), x.hint)
    stored = dict(zip(source, x.order, strict=True))
    return replace(x, order=tuple(stored.get(axis, ()) for axis in range(rank)))


def _squeeze(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    axes = integers(equation.params["dimensions"])
    if isinstance(x, Constant):
        return Constant(x.value.squeeze(axes), x.hint)
    return x.permuted(axis for axis in range(len(x.order)) if axis not in axes)


def _reshape(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    if isinstance(x, Constant):
        return Constant(np.broadcast_to(x.value, before).reshape(after), x.hint)
    groups = _regrouped(before, after)
    if groups is None:
        return Tensor.plain(graph.reshaped(graph.whole(x, before), before, after), after)
    order: list[tuple[int, ...]] = [()] * len(after)
    parts = [_parts(x, before, after, *group) for group in groups]
    if None not in parts:
        for (_, new), part in zip(groups, parts, strict=True):
            for axis, stored in zip(new, part or (), strict=True):
                order[axis] = stored
        return replace(x, order=tuple(order))
    if not all(_are_adjacent(x, before, *group) for group in groups):
        x = Tensor.plain(graph.whole(x, before), before)
    # Axes are split in their stored order, so that channels stay first.
    sizes = []
    for _, old, new in sorted((x.order[old[0]], old, new) for old, new in groups if x.order[old[0]]):
        for axis in new:
            order[axis] = (len(sizes),)
            sizes.append(x.held[old[0]] if len(old) == len(new) == 1 else after[axis])
    return Tensor(graph.reshaped(x.name, x.stored, tuple(sizes)), tuple(sizes), tuple(order))


def _regrouped(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Groups the axes before and after a reshape, in the smallest groups with equally many elements.

    Gives `None` if the sizes do not determine the groups. Axes of length 1 that are added or removed are in no group.
    """
    groups = []
    old = new = 0
    while old < len(before) and new < len(after):
        if before[old] == after[new]:
            groups.append(([old], [new]))
            old, new = old + 1, new + 1
        elif is_size(after[new], 1):
            new += 1
        elif is_size(before[old], 1):
            old += 1
        else:
            elements = [list(accumulate(shape, mul)) for shape in (before[old:], after[new:])]
            common = next((count for count in elements[0] if count in elements[1]), None)
            if common is None:
                return None
            ends = old + elements[0].index(common) + 1, new + elements[1].index(common) + 1
            groups.append((_wide(before, old, ends[0]), _wide(after, new, ends[1])))
            old, new = ends
    return groups if all(is_size(size, 1) for size in (*before[old:], *after[new:])) else None


def _wide(shape: Shape, start: int, end: int) -> list[int]:
    return [axis for axis in range(start, end) if not is_size(shape[axis], 1)]


def _parts(x: Tensor, before: Shape, after: Shape, old: list[int], new: list[int]) -> list[tuple[int, ...]] | None:
    """The stored axes that each new axis consists of; `None` if a stored axis would have to be split."""
    if len(old) == len(new) == 1:
        return [x.order[old[0]]]
    if any(x.held[axis] != before[axis] for axis in old):
        return None
    left = [stored for axis in old for stored in x.order[axis]]
    parts = []
    for axis in new:
        part = []
        while left and math.prod(x.stored[stored] for stored in part) != after[axis]:
            part.append(left.pop(0))
        if math.prod(x.stored[stored] for stored in part) != after[axis]:
            return None
        parts.append(tuple(part))
    return parts


def _are_adjacent(x: Tensor, before: Shape, old: list[int], new: list[int]) -> bool:
    """Whether these axes are stored next to each other, at full length."""
    stored = [stored for axis in old for stored in x.order[axis]]
    return all(right - left == 1 for left, right in pairwise(stored)) and (
        len(old) == len(new) == 1 or all(x.held[axis] == before[axis] for axis in old)
    )


VIEWS: dict[str, Callable[..., Operand]] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
}
