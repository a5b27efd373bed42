"""Matrix products and convolutions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ._graph import Constant, dtype_of, Graph, Operand, Shape, shape_of, Tensor


@dataclass(frozen=True)
class _Factor:
    operand: Operand
    shape: Shape
    # The axes that both factors share, those of this factor only, and those that the product sums over.
    batch: tuple[int, ...]
    own: tuple[int, ...]
    sums: tuple[int, ...]

    @staticmethod
    def of(operand: Operand, shape: Shape, batch: tuple[int, ...], sums: tuple[int, ...]) -> "_Factor":
        own = tuple(axis for axis in range(len(shape)) if axis not in (*batch, *sums))
        return _Factor(operand, shape, batch, own, sums)

    def with_axis(self, kind: str) -> "_Factor":
        """Adds an axis of length 1 of this kind."""
        if isinstance(self.operand, Constant):
            operand = replace(self.operand, value=self.operand.value[..., None])
        else:
            operand = replace(self.operand, order=(*self.operand.order, ()))
        return replace(self, operand=operand, shape=(*self.shape, 1), **{kind: (*getattr(self, kind), len(self.shape))})

    def arranged(self, *axes: int) -> tuple[Operand, Shape]:
        return self.operand.permuted(axes), tuple(self.shape[axis] for axis in axes)


def _product(graph: Graph, equation: JaxprEqn, *operands: Operand) -> Operand:
    sums, batch = equation.params["dimension_numbers"]
    shapes = [shape_of(var) for var in equation.invars]
    left, right = map(_Factor.of, operands, shapes, batch, sums)
    described = f"`dot_general` of {shapes[0]} and {shapes[1]}"
    if len(left.sums) > 1:
        raise NotImplementedError(f"{described} that sums over {len(left.sums)} axes")
    if not left.sums:
        left, right = left.with_axis("sums"), right.with_axis("sums")
    is_vector = not left.own, not right.own
    left, right = (factor if factor.own else factor.with_axis("own") for factor in (left, right))
    count = len(left.batch)
    # In `MatMul`, the right factor has a single axis of its own.
    swapped = len(right.own) != 1
    if graph.pointwise and count and len(left.own) == len(right.own) == 1 and isinstance(right.operand, Tensor):
        # A factor with channels first becomes the left one, so that the product has channels first again.
        swapped = right.operand.permuted((*right.batch, *right.own, *right.sums)).is_in_order
    if swapped:
        left, right = right, left
    if len(right.own) != 1:
        raise NotImplementedError(f"{described} with several own axes in both factors")
    x, x_shape = left.arranged(*left.batch, *left.own, *left.sums)
    for _ in left.own[1:] if count else ():
        # The factors need equally many leading axes.
        right = right.with_axis("batch")
    y, y_shape = right.arranged(*right.batch, *right.sums, *right.own)
    is_float = jnp.issubdtype(dtype_of(equation.outvars[0]), jnp.floating)
    product = None
    if graph.pointwise and is_float and not count and isinstance(x, Tensor) and isinstance(y, Constant):
        product = _linear(graph, x, np.broadcast_to(y.value, y_shape), y.hint)
    if product is None:
        is_flat = is_float and not count and len(left.own) == 1
        (name,) = graph.node("Gemm" if is_flat else "MatMul", [graph.whole(x, x_shape), graph.whole(y, y_shape)])
        product = Tensor.plain(name, (*x_shape[:-1], y_shape[-1]))
        if is_flat:
            graph.takes_bias[name] = y_shape[1:]
    if swapped:
        last = len(product.order) - 1
        product = product.permuted([*range(count), last, *range(count, last)])
    added = [axis for axis, is_added in zip((count, len(product.order) - 1), is_vector, strict=True) if is_added]
    return product.permuted(axis for axis in range(len(product.order)) if axis not in added)


def _linear(graph: Graph, x: Tensor, weight: np.ndarray, hint: str) -> Tensor | None:
    """A linear layer on the last axis as a 1x1 convolution; `None` if `x` is not stored with channels first."""
    pixels = _as_map(graph, x, len(weight))
    if pixels is None:
        return None
    # A strided convolution reads the pixels of a strided slice itself, so the slice needs no node.
    source, strides = graph.strided.get(pixels.name, (pixels.name, [1, 1]))
    (name,) = graph.node("Conv", [source, graph.constant(weight.T[:, :, None, None], hint)], strides=strides)
    first, _, rows, columns = pixels.stored
    graph.grids[rows * columns] = (rows, columns)
    graph.takes_bias[name] = (weight.shape[1], 1, 1)
    return Tensor(name, (first, weight.shape[1], rows, columns), pixels.order)


def _as_map(graph: Graph, x: Tensor, channels: int) -> Tensor | None:
    """`x`, whose last axis is channels, stored as `(batch or another axis, channels, rows, columns)`; `None` if it is
    stored in another order."""
    places = {axis: place for place, axis in enumerate(sorted(x.flat))}
    sizes = [x.stored[axis] for axis in places]
    *others, last = (tuple(places[axis] for axis in axes) for axes in x.order)
    grid = sizes[1 + len(last) :]
    if not last or last != tuple(range(1, 1 + len(last))) or x.held[-1] != channels or len(grid) not in (1, 2):
        return None
    if len(grid) == 2:
        moved = {0: (0,), len(last) + 1: (2,), len(last) + 2: (3,)}
    else:
        # The choice of rows and columns does not change the result, only what it can be added to without a node.
        grid = graph.grids.get(grid[0], (*grid, 1))
        moved = {0: (0,), len(last) + 1: (2, 3)}
    stored = (sizes[0], channels, *grid)
    order = (*(sum((moved[axis] for axis in axes), ()) for axes in others), (1,))
    return Tensor(graph.reshaped(x.name, x.stored, stored), stored, order)


def _convolution(graph: Graph, equation: JaxprEqn, x: Operand, weight: Operand) -> Operand:
    numbers, padding = equation.params["dimension_numbers"], equation.params["padding"]
    if set(equation.params["lhs_dilation"]) != {1} or equation.params["batch_group_count"] != 1:
        raise NotImplementedError("a transposed `conv_general_dilated`")
    if min((amount for pair in padding for amount in pair), default=0) < 0:
        raise NotImplementedError(f"`conv_general_dilated` with a padding of {padding}")
    names = [
        graph.whole(operand.permuted(spec), tuple(shape_of(var)[axis] for axis in spec))
        for operand, spec, var in zip((x, weight), (numbers.lhs_spec, numbers.rhs_spec), equation.invars, strict=True)
    ]
    (name,) = graph.node(
        "Conv",
        names,
        strides=list(equation.params["window_strides"]),
        pads=[before for before, _ in padding] + [after for _, after in padding],
        dilations=list(equation.params["rhs_dilation"]),
        group=equation.params["feature_group_count"],
    )
    shape = shape_of(equation.outvars[0])
    stored = tuple(shape[axis] for axis in numbers.out_spec)
    graph.takes_bias[name] = (stored[1], *(1 for _ in stored[2:]))
    return Tensor.plain(name, stored).permuted(np.argsort(numbers.out_spec).tolist())


PRODUCTS: dict[str, Callable[..., Operand]] = {"dot_general": _product, "conv_general_dilated": _convolution}
