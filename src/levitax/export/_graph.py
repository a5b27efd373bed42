"""An ONNX graph in the making, and what stands in it for the arrays of a traced function."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np


# Sizes; that of a free batch is symbolic.
Shape: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Constant:
    """Numbers known when the graph is made. Axes along which they repeat may have length 1."""

    value: np.ndarray
    hint: str = "constant"

    def permuted(self, permutation: Iterable[int]) -> "Constant":
        return replace(self, value=self.value.transpose(tuple(permutation)))


@dataclass(frozen=True)
class Tensor:
    """An array of the traced function, as the graph has it: transposed, and maybe without its axes of length 1.

    Transposing, adding an axis and repeating along one make no nodes; what needs the array as it is asks for that
    (`Graph.whole`). So between convolutions, which in ONNX have channels first, nothing is transposed back and forth,
    and what ONNX repeats by itself is not repeated by a node.
    """

    name: str
    # Sizes of what is stored. Where the array repeats itself along an axis, 1.
    stored: Shape
    # For each axis of the array the stored one; None for an axis that is not stored.
    order: tuple[int | None, ...]

    @staticmethod
    def plain(name: str, shape: Shape) -> "Tensor":
        return Tensor(name, shape, tuple(range(len(shape))))

    def permuted(self, permutation: Iterable[int]) -> "Tensor":
        return replace(self, order=tuple(self.order[axis] for axis in permutation))

    @property
    def held(self) -> Shape:
        """The sizes of the array's axes, 1 for those that are not stored or along which it repeats itself."""
        return tuple(1 if axis is None else self.stored[axis] for axis in self.order)


Operand: TypeAlias = Constant | Tensor


def is_size(size: Any, number: int) -> bool:
    """Whether a size is that number. (Symbolic ones do not like to be asked.)"""
    return isinstance(size, int | np.integer) and int(size) == number


class Graph:
    """Nodes and constants so far, and functions that add to them and return names of values."""

    def __init__(self, onnx: ModuleType, opset: int):
        self.onnx = onnx
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        # The images, whose first axis is the batch.
        self.images = "images"
        # How many numbers each value of a sum adds up.
        self.summed: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._known: dict[tuple[str, tuple[int, ...], bytes] | None, str] = {}

    def node(self, operation: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node; returns the names of its outputs."""
        names = [self._name(operation.lower()) for _ in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(operation, list(inputs), names, names[0], **attributes))
        return names

    def constant(self, value: Any, hint: str = "constant") -> str:
        """Small ones, shapes and axes mostly, are kept once."""
        value = np.asarray(value, order="C")
        key = (value.dtype.str, value.shape, value.tobytes()) if value.size < 64 else None
        if key not in self._known:
            name = self._name(hint)
            self.constants[name] = value
            if key is None:
                return name
            self._known[key] = name
        return self._known[key]

    def in_order(self, operand: Operand) -> str:
        """The array with its axes in order, but of length 1 where it repeats itself."""
        if isinstance(operand, Constant):
            return self.constant(operand.value, operand.hint)
        name = operand.name
        present = [axis for axis in operand.order if axis is not None]
        if present != sorted(present):
            (name,) = self.node("Transpose", [name], perm=present)
        if absent := [axis for axis, stored in enumerate(operand.order) if stored is None]:
            (name,) = self.node("Unsqueeze", [name, self.constant(np.array(absent))])
        return name

    def whole(self, operand: Operand, shape: Shape) -> str:
        """The array as it is."""
        if isinstance(operand, Constant):
            if all(isinstance(size, int | np.integer) for size in shape):
                return self.constant(np.broadcast_to(operand.value, shape), operand.hint)
            held = operand.value.shape
        else:
            held = operand.held
        name = self.in_order(operand)
        if all(not is_size(have, 1) or is_size(size, 1) for have, size in zip(held, shape, strict=True)):
            return name
        return self.node("Expand", [name, self._sizes(shape)])[0]

    def _sizes(self, shape: Shape) -> str:
        parts = [
            self.constant(np.array([size], np.int64))
            if isinstance(size, int | np.integer)
            else self.node("Shape", [self.images], start=0, end=1)[0]
            for size in shape
        ]
        return self.node("Concat", parts, axis=0)[0]

    def _name(self, hint: str) -> str:
        self._taken[hint] = count = self._taken.get(hint, -1) + 1
        return f"{hint}_{count}" if count else hint
