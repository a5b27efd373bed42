"""An ONNX graph under construction, and its representation of the arrays of a traced function."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np


# The size of a free batch is symbolic.
Shape: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Constant:
    """An array known when the graph is made. Broadcast axes may have length 1."""

    value: np.ndarray
    hint: str = "constant"

    def permuted(self, permutation: Iterable[int]) -> "Constant":
        return replace(self, value=self.value.transpose(tuple(permutation)))


@dataclass(frozen=True)
class Tensor:
    """An array of the traced function, as the graph stores it: its axes may be in another order, or split.

    Transposing, merging axes, adding or removing an axis of length 1 and broadcasting make no nodes. An operation that
    needs the plain array asks for it (`Graph.whole`). So nothing is transposed back and forth between convolutions,
    which have channels first in ONNX. Nor does a node broadcast what ONNX broadcasts automatically.

    For example, with channels first, images `(batch, rows, columns, 3)` have `stored` `(batch, 3, rows, columns)` and
    `order` `((0,), (2,), (3,), (1,))`. The same images as tokens `(batch, rows * columns, 3)` have `order`
    `((0,), (2, 3), (1,))`.
    """

    name: str
    # Stored size of each axis; 1 for broadcast or missing axes.
    stored: Shape
    # For each axis of the array, the stored axes that it consists of; none for a broadcast axis or one of length 1.
    order: tuple[tuple[int, ...], ...]

    @staticmethod
    def plain(name: str, shape: Shape) -> "Tensor":
        return Tensor(name, shape, tuple((axis,) for axis in range(len(shape))))

    def permuted(self, permutation: Iterable[int]) -> "Tensor":
        return replace(self, order=tuple(self.order[axis] for axis in permutation))

    @property
    def held(self) -> Shape:
        """The sizes of the array's axes; 1 for broadcast ones."""
        return tuple(math.prod(self.stored[axis] for axis in axes) for axes in self.order)

    @property
    def flat(self) -> list[int]:
        """The stored axes, in the order of the array's axes."""
        return [axis for axes in self.order for axis in axes]

    @property
    def is_in_order(self) -> bool:
        """Whether the axes are stored in their order."""
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
    """Converts to Python integers, since batching leaves NumPy integers."""
    return tuple(map(int, values))


def is_size(size: Any, number: int) -> bool:
    """Whether a size equals `number`. Comparing a symbolic size could raise an error."""
    return isinstance(size, int | np.integer) and int(size) == number


class Graph:
    """The nodes and constants so far. The methods add to them and return names of values.

    If `pointwise`, linear layers are 1x1 convolutions with channels first, and between stem and head only factors of
    products are transposed. Otherwise they are products, with channels last.
    """

    def __init__(self, onnx: ModuleType, opset: int, pointwise: bool, batch: Any, outputs: Iterable[str]):
        self.onnx = onnx
        self.opset = opset
        self.pointwise = pointwise
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.images = "images"
        # The number of images, or a symbol for it.
        self.batch = batch
        # For each value that is a strided slice of a whole map: the map, and the strides of rows and columns.
        self.strided: dict[str, tuple[str, list[int]]] = {}
        # The rows and columns of a grid, by its number of tokens.
        self.grids: dict[int, tuple[int, int]] = {}
        # The sizes of each reshaped value before the reshape.
        self.sizes_before: dict[str, Shape] = {}
        # The shape of the bias that can be added to each product or convolution.
        self.takes_bias: dict[str, Shape] = {}
        # The number of terms in each sum.
        self.summed: dict[str, int] = {}
        self._taken: set[str] = {self.images, *outputs}
        self._known: dict[Any, str] = {}
        self._made: dict[Any, list[str]] = {}

    def node(self, operation: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node, unless the same one exists. Returns the names of its outputs."""
        key = (operation, *inputs, repr(sorted(attributes.items())))
        if key not in self._made:
            names = self._made[key] = [self.name(operation.lower()) for _ in range(outputs)]
            self.nodes.append(self.onnx.helper.make_node(operation, list(inputs), names, names[0], **attributes))
        return self._made[key]

    def constant(self, value: Any, hint: str = "constant") -> str:
        """The name of a constant: the hint, or the hint with a number. Stores equal values with the same hint once."""
        value = np.asarray(value, order="C")
        key = (hint, value.dtype.str, value.shape, hashlib.sha1(value).digest())
        if key not in self._known:
            name = self._known[key] = self.name(hint)
            self.constants[name] = value
        return self._known[key]

    def in_order(self, operand: Operand) -> str:
        """The array with its axes in order; broadcast axes have length 1."""
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
        """The value, reshaped."""
        if before == after:
            return name
        # ONNX keeps a size that is 0, and infers the one that is -1.
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
        """The plain array: axes in order, and at full length."""
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
        """A shape as a value of the graph."""
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
        """A name that is not in use."""
        numbered = (f"{hint}_{number}" if number else hint for number in itertools.count())
        name = next(name for name in numbered if name not in self._taken)
        self._taken.add(name)
        return name
