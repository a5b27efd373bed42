"""An ONNX graph in the making, and what stands in it for the arrays of a traced function."""

import hashlib
import itertools
import math
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
    """An array of the traced function, as the graph has it: maybe with its axes in another order, or taken apart.

    Transposing, putting axes together, adding or removing one of length 1 and repeating along one make no nodes; what
    needs the array as it is asks for that (`Graph.whole`). So between convolutions, which in ONNX have channels first,
    nothing is transposed back and forth, and what ONNX repeats by itself is not repeated by a node.

    E.g. images `(batch, rows, columns, 3)` with channels first: `stored` is `(batch, 3, rows, columns)` and `order`
    `((0,), (2,), (3,), (1,))`. The same as tokens `(batch, rows * columns, 3)`: `((0,), (2, 3), (1,))`.
    """

    name: str
    # Sizes of what is stored. Where the array repeats itself along an axis, and of axes that it does not have, 1.
    stored: Shape
    # For each axis of the array the stored ones of which it is made; none for one of length 1, or along which the array
    # repeats itself.
    order: tuple[tuple[int, ...], ...]

    @staticmethod
    def plain(name: str, shape: Shape) -> "Tensor":
        return Tensor(name, shape, tuple((axis,) for axis in range(len(shape))))

    def permuted(self, permutation: Iterable[int]) -> "Tensor":
        return replace(self, order=tuple(self.order[axis] for axis in permutation))

    @property
    def held(self) -> Shape:
        """The sizes of the array's axes, but 1 where it repeats itself."""
        return tuple(math.prod(self.stored[axis] for axis in axes) for axes in self.order)

    @property
    def flat(self) -> list[int]:
        """The stored axes in the order of the array's."""
        return [axis for axes in self.order for axis in axes]

    @property
    def is_in_order(self) -> bool:
        """Whether no axes have changed places."""
        return self.flat == sorted(self.flat)

    @property
    def spare(self) -> list[int]:
        """The stored axes, of length 1, that the array does not have."""
        return [axis for axis in range(len(self.stored)) if axis not in self.flat]


Operand: TypeAlias = Constant | Tensor


def shape_of(var: Any) -> Shape:
    return var.aval.shape


def dtype_of(var: Any) -> np.dtype[Any]:
    return var.aval.dtype


def integers(values: Iterable[Any]) -> tuple[int, ...]:
    """Plain ones: batching leaves NumPy's."""
    return tuple(map(int, values))


def is_size(size: Any, number: int) -> bool:
    """Whether a size is that number. (Symbolic ones do not like to be asked.)"""
    return isinstance(size, int | np.integer) and int(size) == number


class Graph:
    """Nodes and constants so far, and functions that add to them and return names of values.

    If `pointwise`, linear maps of tokens are 1x1 convolutions with channels first, and nothing is transposed from stem
    to head but factors of products; otherwise they are products, with channels last.
    """

    def __init__(self, onnx: ModuleType, opset: int, pointwise: bool, batch: Any, outputs: Iterable[str]):
        self.onnx = onnx
        self.opset = opset
        self.pointwise = pointwise
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.images = "images"
        # How many images, a number or a symbol.
        self.batch = batch
        # For values that are every so many-th row and column of a map, of all of it, that map and how many.
        self.strided: dict[str, tuple[str, list[int]]] = {}
        # For a number of tokens the rows and columns that they come from.
        self.grids: dict[int, tuple[int, int]] = {}
        # For values with other sizes than what they are made of, those before.
        self.sizes_before: dict[str, Shape] = {}
        # For products and convolutions the sizes of what is a bias of theirs.
        self.takes_bias: dict[str, Shape] = {}
        # How many numbers each value of a sum adds up.
        self.summed: dict[str, int] = {}
        self._taken: set[str] = {self.images, *outputs}
        self._known: dict[Any, str] = {}
        self._made: dict[Any, list[str]] = {}

    def node(self, operation: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node, if there is none like it; returns the names of its outputs."""
        key = (operation, *inputs, repr(sorted(attributes.items())))
        if key not in self._made:
            names = self._made[key] = [self.name(operation.lower()) for _ in range(outputs)]
            self.nodes.append(self.onnx.helper.make_node(operation, list(inputs), names, names[0], **attributes))
        return self._made[key]

    def constant(self, value: Any, hint: str = "constant") -> str:
        """The name of these numbers: the hint, or one like it. The same numbers with the same hint are kept once."""
        value = np.asarray(value, order="C")
        key = (hint, value.dtype.str, value.shape, hashlib.sha1(value).digest())
        if key not in self._known:
            name = self._known[key] = self.name(hint)
            self.constants[name] = value
        return self._known[key]

    def in_order(self, operand: Operand) -> str:
        """The array with its axes in order, but of length 1 where it repeats itself."""
        if isinstance(operand, Constant):
            return self.constant(operand.value, operand.hint)
        name, sizes = operand.name, operand.stored
        permutation = operand.flat + operand.spare
        wide = [axis for axis in permutation if not is_size(sizes[axis], 1)]
        if wide != sorted(wide):
            (name,) = self.node("Transpose", [name], perm=permutation)
            sizes = tuple(sizes[axis] for axis in permutation)
        return self.reshaped(name, sizes, operand.held)

    def reshaped(self, name: str, before: Shape, after: Shape) -> str:
        """The value with other sizes."""
        if before == after:
            return name
        # 0 stands for the size that is there now, -1 for what remains.
        numbers = [
            size if isinstance(size, int | np.integer) else 0 if before[axis : axis + 1] == (size,) else -1
            for axis, size in enumerate(after)
        ]
        if numbers.count(-1) > 1:
            raise NotImplementedError(f"`reshape` from {before} to {after}")
        (name,) = self.node("Reshape", [name, self.constant(np.array(numbers, np.int64))])
        self.sizes_before[name] = before
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
        """Sizes as a value."""
        parts = []
        for size in shape:
            if isinstance(size, int | np.integer):
                parts.append(self.constant(np.array([size], np.int64)))
            elif size == self.batch:
                parts += self.node("Shape", [self.images], start=0, end=1)
            else:
                raise NotImplementedError(f"`broadcast_in_dim` to {shape}")
        return self.node("Concat", parts, axis=0)[0]

    def name(self, hint: str) -> str:
        """A name that nothing has yet."""
        numbered = (f"{hint}_{number}" if number else hint for number in itertools.count())
        name = next(name for name in numbered if name not in self._taken)
        self._taken.add(name)
        return name
