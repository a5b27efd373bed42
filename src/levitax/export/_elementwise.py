"""Operations element by element."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from ._graph import Constant, Graph, is_size, Operand, shape_of, Tensor


def elementwise(operation: str, graph: Graph, equation: JaxprEqn, *inputs: Operand, **attributes: Any) -> Operand:
    first = next(operand for operand in inputs if isinstance(operand, Tensor))
    aligned = [_beside(first, operand) for operand in inputs]
    order = first.order
    if None in aligned:
        order = Tensor.plain("", shape_of(equation.outvars[0])).order
        aligned = [
            operand if isinstance(operand, Constant) else Tensor.plain(graph.in_order(operand), operand.held)
            for operand in inputs
        ]
    names, shapes = [], []
    for operand in aligned:
        if isinstance(operand, Tensor):
            names.append(operand.name)
            shapes.append(operand.stored)
        elif operand is not None:
            names.append(graph.constant(_trimmed(operand.value), operand.hint))
            shapes.append(operand.value.shape)
    (name,) = graph.node(operation, names, **attributes)
    sizes = zip(*filter(None, shapes), strict=True)
    return Tensor(name, tuple(next((size for size in along if not is_size(size, 1)), 1) for along in sizes), order)


def _beside(first: Tensor, operand: Operand) -> Operand | None:
    """`operand` with its axes where `first` has them stored, if that takes no node."""
    if isinstance(operand, Tensor):
        return operand if _are_alike(first, operand) else None
    value = operand.value
    if not value.ndim:
        return operand
    sizes = []
    for size, held, axes in zip(value.shape, first.held, first.order, strict=True):
        if size != 1 and held != size:
            return None
        sizes += [1 if size == 1 else first.stored[axis] for axis in axes]
    value = value.reshape(sizes).transpose(np.argsort(first.flat))
    return Constant(np.expand_dims(value, first.spare), operand.hint)


def _are_alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are stored in the same way, but maybe repeat themselves along different axes."""
    return (first.order, len(first.stored)) == (second.order, len(second.stored)) and all(
        is_size(size, 1) or is_size(other, 1) or all(first.stored[axis] == second.stored[axis] for axis in axes)
        for size, other, axes in zip(first.held, second.held, first.order, strict=True)
    )


def _trimmed(value: np.ndarray) -> np.ndarray:
    """Without the axes in front that ONNX adds by itself."""
    first = next((axis for axis, size in enumerate(value.shape) if size != 1), value.ndim)
    return value.reshape(value.shape[first:])


def _logical(operation: str, graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    aval: Any = equation.invars[0].aval
    if aval.dtype != np.bool_:
        raise NotImplementedError(f"`{equation.primitive.name}` of the bits of {aval.dtype.name}")
    return elementwise(operation, graph, equation, *inputs)


def _neutral(operation: str, number: float, graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    """An operation of two operands, left out where one of them changes nothing."""
    for operand, other in (inputs, inputs[::-1]):
        if isinstance(other, Constant) and other.value.size == 1 and other.value.item() == number:
            return operand
    return elementwise(operation, graph, equation, *inputs)


def _maximum(graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    for operand, other in (inputs, inputs[::-1]):
        if isinstance(other, Constant) and other.value.size == 1 and isinstance(operand, Tensor):
            if other.value.item() == 0:
                return elementwise("Relu", graph, equation, operand)
            if other.value.item() == -np.inf:
                return operand
    return elementwise("Max", graph, equation, *inputs)


def _clamp(graph: Graph, equation: JaxprEqn, low: Operand, x: Operand, high: Operand) -> Operand:
    return elementwise("Clip", graph, equation, x, low, high)


def _cast(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    dtype = equation.params["new_dtype"]
    aval: Any = equation.invars[0].aval
    if aval.dtype == dtype:
        return x
    return elementwise("Cast", graph, equation, x, to=graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _power(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    exponent = equation.params.get("y", 2)
    if exponent == 2:
        return elementwise("Mul", graph, equation, x, x)
    return elementwise("Pow", graph, equation, x, Constant(np.asarray(exponent, np.float32)))


def _rsqrt(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return elementwise("Reciprocal", graph, equation, elementwise("Sqrt", graph, equation, x))


def _complement_of_erf(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    one = Constant(np.ones((), np.float32))
    return elementwise("Sub", graph, equation, one, elementwise("Erf", graph, equation, x))


def _select(graph: Graph, equation: JaxprEqn, which: Operand, *cases: Operand) -> Operand:
    if len(cases) != 2:
        raise NotImplementedError(f"`select_n` of {len(cases)} cases")
    return elementwise("Where", graph, equation, which, cases[1], cases[0])


ELEMENTWISE: dict[str, Callable[..., Operand]] = {
    **{
        name: partial(elementwise, operation)
        for name, operation in {
            "sub": "Sub", "min": "Min", "pow": "Pow", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid",
            "erf": "Erf", "sqrt": "Sqrt", "neg": "Neg", "abs": "Abs", "floor": "Floor", "ceil": "Ceil", "sign": "Sign",
            "sin": "Sin", "cos": "Cos", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater",
            "ge": "GreaterOrEqual",
        }.items()
    },
    **{name: partial(_logical, operation) for name, operation in {"and": "And", "or": "Or", "not": "Not"}.items()},
    "add": partial(_neutral, "Add", 0.0),
    "mul": partial(_neutral, "Mul", 1.0),
    "div": partial(elementwise, "Div"),
    "max": _maximum,
    "clamp": _clamp,
    "convert_element_type": _cast,
    "integer_pow": _power,
    "square": _power,
    "erfc": _complement_of_erf,
    "rsqrt": _rsqrt,
    "select_n": _select,
}  # fmt: skip
