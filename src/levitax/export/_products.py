"""Products of matrices, and convolutions."""

from collections.abc import Callable

import numpy as np
from jax.extend.core import JaxprEqn

from ._graph import Constant, Graph, Operand, Shape, shape_of, Tensor


def _product(graph: Graph, equation: JaxprEqn, left: Operand, right: Operand) -> Operand:
    (left_sums, right_sums), (left_batch, right_batch) = equation.params["dimension_numbers"]
    shapes = [shape_of(var) for var in equation.invars]
    left_free, right_free = (
        [axis for axis in range(len(shape)) if axis not in (*sums, *batch)]
        for shape, sums, batch in zip(shapes, (left_sums, right_sums), (left_batch, right_batch), strict=True)
    )
    count = len(left_batch)
    if len(left_sums) != 1 or (count and (len(left_free), len(right_free)) != (1, 1)):
        raise NotImplementedError(f"`dot_general` of {shapes[0]} and {shapes[1]} over several axes")
    if graph.pointwise and count and isinstance(right, Tensor):
        # What has its channels first is the left factor, and has them first again.
        turned = right.permuted((*right_batch, *right_free, *right_sums)).is_plain
    else:
        # As in `weight @ x`.
        turned = len(right_free) != 1
    if turned:
        left, right, shapes = right, left, shapes[::-1]
        left_free, right_free, left_sums, right_sums = right_free, left_free, right_sums, left_sums
        left_batch, right_batch = right_batch, left_batch
    if len(right_free) != 1:
        raise NotImplementedError(f"`dot_general` of {shapes[0]} and {shapes[1]}")
    orders = (*left_batch, *left_free, *left_sums), (*right_batch, *right_sums, *right_free)
    left, right = (operand.permuted(order) for operand, order in zip((left, right), orders, strict=True))
    shapes = [tuple(shape[axis] for axis in order) for shape, order in zip(shapes, orders, strict=True)]
    product = _linear(graph, left, right, shapes) if graph.pointwise else None
    if product is None:
        names = [graph.whole(operand, shape) for operand, shape in zip((left, right), shapes, strict=True)]
        (name,) = graph.node("MatMul" if count or len(left_free) != 1 else "Gemm", names)
        product = Tensor.plain(name, (*shapes[0][:-1], shapes[1][-1]))
    if not turned:
        return product
    last = len(product.order) - 1
    return product.permuted([*range(count), last, *range(count, last)])


def _linear(graph: Graph, x: Operand, weight: Operand, shapes: list[Shape]) -> Tensor | None:
    """A linear map of the last axis of a map with channels first, as a convolution; None where it is none of such."""
    if isinstance(x, Constant) or isinstance(weight, Tensor) or (pixels := _as_map(graph, x, shapes[0][-1])) is None:
        return None
    source, strides = graph.strided.get(pixels.name, (pixels.name, [1, 1]))
    kernel = np.broadcast_to(weight.value, shapes[1]).T[:, :, None, None]
    (name,) = graph.node("Conv", [source, graph.constant(kernel, weight.hint)], strides=strides)
    batch, _, rows, columns = pixels.stored
    graph.grids[rows * columns] = (rows, columns)
    return Tensor(name, (batch, len(kernel), rows, columns), pixels.order)


def _as_map(graph: Graph, x: Tensor, channels: int) -> Tensor | None:
    """`x`, whose last axis are channels, stored as `(batch, channels, rows, columns)`; None where another order is."""
    *others, last = x.order
    grid = x.stored[1 + len(last) :]
    if not last or last != tuple(range(1, 1 + len(last))) or x.held[-1] != channels or len(grid) not in (1, 2):
        return None
    if len(grid) == 2:
        if len(last) == 1:
            return x
        moved = {0: (0,), len(last) + 1: (2,), len(last) + 2: (3,)}
    else:
        # Which rows and columns does not matter for the result, only for what it can be added to without a node.
        grid = graph.grids.get(grid[0], (*grid, 1))
        moved = {0: (0,), len(last) + 1: (2, 3)}
    stored = (x.stored[0], channels, *grid)
    order = (*(sum((moved[axis] for axis in axes), ()) for axes in others), (1,))
    return Tensor(graph.reshaped(x.name, x.stored, stored), stored, order)


def _convolution(graph: Graph, equation: JaxprEqn, x: Operand, weight: Operand) -> Operand:
    numbers = equation.params["dimension_numbers"]
    if set(equation.params["lhs_dilation"]) != {1} or equation.params["batch_group_count"] != 1:
        raise NotImplementedError("a transposed `conv_general_dilated`")
    names = [
        graph.whole(operand.permuted(spec), tuple(shape_of(var)[axis] for axis in spec))
        for operand, spec, var in zip((x, weight), (numbers.lhs_spec, numbers.rhs_spec), equation.invars, strict=True)
    ]
    (name,) = graph.node(
        "Conv",
        names,
        strides=list(equation.params["window_strides"]),
        pads=[before for before, _ in equation.params["padding"]] + [after for _, after in equation.params["padding"]],
        dilations=list(equation.params["rhs_dilation"]),
        group=equation.params["feature_group_count"],
    )
    shape = shape_of(equation.outvars[0])
    stored = tuple(shape[axis] for axis in numbers.out_spec)
    return Tensor.plain(name, stored).permuted(np.argsort(numbers.out_spec).tolist())


PRODUCTS: dict[str, Callable[..., Operand]] = {"dot_general": _product, "conv_general_dilated": _convolution}
