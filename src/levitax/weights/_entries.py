import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from .._config import LeViTConfig
from ._layouts import Layer, Layout, LEVITAX, Place


Shape: TypeAlias = tuple[int, ...]


class Entry(NamedTuple):
    """How a file stores one of our arrays: under one name, or in pieces under several."""

    shape: Shape
    names: tuple[str, ...]
    # The shapes in the file, without the last two axes of a 1x1 convolution.
    shapes: tuple[Shape, ...]
    # Our array has the channels of all pieces together, grouped by head.
    heads: int = 1
    is_transposed: bool = False
    is_pointwise: bool = False

    def read(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Converts the arrays of the file to ours."""
        if len(pieces) == 1:
            return (pieces[0].T if self.is_transposed else pieces[0]).reshape(self.shape)
        groups = [piece.reshape(self.heads, -1, *self.shape[1:]) for piece in pieces]
        return np.concatenate(groups, axis=1).reshape(self.shape)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Inverts `read`: converts our array to those of the file, by name."""
        if self.is_transposed:
            pieces = [array.reshape(self.shapes[0][::-1]).T]
        else:
            ends = np.cumsum([shape[0] // self.heads for shape in self.shapes])[:-1]
            pieces = np.split(array.reshape(self.heads, -1, *self.shape[1:]), ends, axis=1)
        ones = (1, 1) if self.is_pointwise else ()
        return {
            name: np.ascontiguousarray(piece).reshape(*shape, *ones)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }


def entries(layout: Layout, config: LeViTConfig, shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """How the layout stores each of our arrays, by path. `shapes` are the shapes of our arrays."""
    found = {}
    for slot in _slots(layout, config):
        for path, names in slot.names(layout).items():
            if path in shapes:
                pieces = [(slot.heads * number, *shapes[path][1:]) for number in slot.channels]
                pointwise = slot.on_tokens and layout.pointwise and len(shapes[path]) == 2
                found[path] = Entry(
                    shapes[path], names, tuple(pieces or [shapes[path]]), slot.heads, is_pointwise=pointwise
                )
    for place in places(config.depth):
        path, name = bias_name(LEVITAX, place), bias_name(layout, place)
        heads, rows, columns = shapes[path]
        table = {"map": (heads, rows, columns), "flat": (heads, rows * columns), "embedding": (rows * columns, heads)}
        transposed = layout.bias_table == "embedding"
        found[path] = Entry(shapes[path], (name,), (table[layout.bias_table],), is_transposed=transposed)
    assert found.keys() == shapes.keys(), found.keys() ^ shapes.keys()
    return found


def places(depths: Sequence[int]) -> Iterator[Place]:
    """Yields the place of every block, in order."""
    for stage, depth in enumerate(depths):
        for block in range(depth + (stage > 0)):
            yield Place(block, tuple(depths[:stage]))


def bias_name(layout: Layout, place: Place) -> str:
    """The layout's name for a block's table of attention biases."""
    return f"{layout.attention(place)}.{layout.bias}"


def inside(owner: str, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of an attention or MLP, with full names."""
    return tuple(Layer(*(f"{owner}.{name}" for name in layer)) for layer in layers)


class _Slot(NamedTuple):
    """A linear layer or convolution of ours with its normalisation, and the layout's names for both.

    If the layout stores it in pieces, `channels` has the number of channels of each piece in each head.
    """

    ours: Layer
    theirs: tuple[Layer, ...]
    channels: tuple[int, ...] = ()
    heads: int = 1
    on_tokens: bool = False

    def names(self, layout: Layout) -> dict[str, tuple[str, ...]]:
        """The layout's names of each array that may exist, by our path."""
        names = {}
        for leaf in ("weight", "bias"):
            names[f"{self.ours.linear}.{leaf}"] = tuple(f"{layer.linear}.{leaf}" for layer in self.theirs)
            names[f"{self.ours.norm}.{leaf}"] = tuple(f"{layer.norm}.{leaf}" for layer in self.theirs)
        for ours, theirs in ((LEVITAX.mean, layout.mean), (LEVITAX.var, layout.var)):
            names[f"{self.ours.norm}.{ours}"] = tuple(f"{layer.norm}.{theirs}" for layer in self.theirs)
        return names


def _slots(layout: Layout, config: LeViTConfig) -> Iterator[_Slot]:
    for number in range(int(math.log2(config.patch_size))):
        yield _Slot(LEVITAX.convolution(number), (layout.convolution(number),))
    for place in places(config.depth):
        sizes = config.block_sizes(place.stage)[place.block]
        attention = partial(_slot, LEVITAX.attention(place), layout.attention(place), heads=sizes.heads)
        key, value = sizes.key_dim, sizes.value_dim
        if place.downsamples:
            yield attention(LEVITAX.query[0], layout.query, (key,))
            yield attention(LEVITAX.key_value[0], layout.key_value, (key, value))
        else:
            yield attention(LEVITAX.query_key_value[0], layout.query_key_value, (key, key, value))
        yield attention(LEVITAX.project_out, (layout.project_out,))
        mlp = partial(_slot, LEVITAX.mlp(place), layout.mlp(place))
        yield mlp(LEVITAX.expand, (layout.expand,))
        yield mlp(LEVITAX.contract, (layout.contract,))
    if config.distillation:
        yield _Slot(LEVITAX.classification, (layout.classification,))
        yield _Slot(LEVITAX.distillation, (layout.distillation,))
    else:
        yield _Slot(LEVITAX.head, (layout.head,))


def _slot(our_owner, owner, ours, theirs, channels=(), *, heads=1):
    (ours,) = inside(our_owner, [ours])
    pieces = {"channels": channels, "heads": heads} if len(theirs) > 1 else {}
    return _Slot(ours, inside(owner, theirs), on_tokens=True, **pieces)
