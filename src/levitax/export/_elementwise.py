"""Elementwise operations."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from ._graph import Constant, dtype_of, Graph, is_size, Operand, shape_of, Tensor


def elementwise(operation: str, graph: Graph, equation: JaxprEqn, *inputs: Operand, **attributes: Any) -> Operand:
    """Adds an elementwise node. Reads only the shape of the result from the equation."""
    first = next(operand for operand in inputs if isinstance(operand, Tensor))
    order = first.order
    aligned = [match for operand in inputs if (match := _aligned(first, operand)) is not None]
    if len(aligned) < len(inputs):
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
        else:
            names.append(graph.constant(_trimmed(operand.value), operand.hint))
            shapes.append(operand.value.shape)
    (name,) = graph.node(operation, names, **attributes)
    sizes = zip(*filter(None, shapes), strict=True)
    return Tensor(name, tuple(next((size for size in along if not is_size(size, 1)), 1) for along in sizes), order)


def _aligned(first: Tensor, operand: Operand) -> Operand | None:
    """`operand` with its axes stored in the order of `first`; `None` if that takes a node."""
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
    """Whether two tensors are stored in the same way, apart from broadcast axes."""
    return (first.order, len(first.stored)) == (second.order, len(second.stored)) and all(
        is_size(size, 1) or is_size(other, 1) or all(first.stored[axis] == second.stored[axis] for axis in axes)
        for size, other, axes in zip(first.held, second.held, first.order, strict=True)
    )


def _trimmed(value: np.ndarray) -> np.ndarray:
    """`value` without leading axes of length 1, which ONNX adds automatically."""
    first = next((axis for axis, size in enumerate(value.shape) if size != 1), value.ndim)
    return value.reshape(value.shape[first:])


def _logical(operation: str, graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    dtype = dtype_of(equation.invars[0])
    if dtype != np.bool_:
        raise NotImplementedError(f"bitwise `{equation.primitive.name}` of {dtype.name}")
    return elementwise(operation, graph, equation, *inputs)


def _neutral(operation: str, number: float, graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    """An operation of two operands, which needs no node if one of them changes nothing."""
    for operand, other in (inputs, inputs[::-1]):
        if isinstance(other, Constant) and other.value.size == 1 and other.value.item() == number:
            return operand
    return elementwise(operation, graph, equation, *inputs)


def _maximum(graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    if not jnp.issubdtype(dtype_of(equation.outvars[0]), jnp.floating):
        return elementwise("Max", graph, equation, *inputs)
    for operand, other in (inputs, inputs[::-1]):
        if isinstance(other, Constant) and other.value.size == 1 and isinstance(operand, Tensor):
            if other.value.item() == 0:
                return elementwise("Relu", graph, equation, operand)
            if other.value.item() == -np.inf:
                return operand
    return elementwise("Max", graph, equation, *inputs)


def _clamp(graph: Graph, equation: JaxprEqn, low: Operand, x: Operand, high: Operand) -> Operand:
    if all(isinstance(bound, Constant) and not bound.value.ndim for bound in (low, high)):
        return elementwise("Clip", graph, equation, x, low, high)
    # `Clip` takes scalars. A bound here has the shape of `x`, or is computed.
    above = _bound("Max", graph, equation, x, low)
    return _bound("Min", graph, equation, above, high)


def _bound(operation: str, graph: Graph, equation: JaxprEqn, x: Operand, bound: Operand) -> Operand:
    rank = len(shape_of(equation.outvars[0]))
    if isinstance(bound, Tensor) and not bound.order:
        bound = replace(bound, order=((),) * rank)
    return elementwise(operation, graph, equation, x, bound)


def _cast(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype_of(equation.invars[0]) == dtype:
        return x
    return elementwise("Cast", graph, equation, x, to=graph.onnx.helper.np_dtype_to_tensor_dtype(dtype))


def _power(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    # `square` has no `y`.
    exponent = equation.params.get("y", 2)
    if exponent == 2:
        return elementwise("Mul", graph, equation, x, x)
    return elementwise("Pow", graph, equation, x, _number(equation, exponent))


def _rsqrt(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return elementwise("Reciprocal", graph, equation, elementwise("Sqrt", graph, equation, x))


# ONNX has no operators for these three. The replacements lose relative accuracy for results close to 0.


def _complement_of_erf(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return elementwise("Sub", graph, equation, _number(equation, 1), elementwise("Erf", graph, equation, x))


def _exp_minus_1(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return elementwise("Sub", graph, equation, elementwise("Exp", graph, equation, x), _number(equation, 1))


def _log_plus_1(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return elementwise("Log", graph, equation, elementwise("Add", graph, equation, x, _number(equation, 1)))


def _number(equation: JaxprEqn, value: int | float) -> Constant:
    return Constant(np.asarray(value, dtype_of(equation.invars[0])))


def _round(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    if equation.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise NotImplementedError("`round` with halves away from zero")
    return elementwise("Round", graph, equation, x)


def _not_equal(graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    return elementwise("Not", graph, equation, elementwise("Equal", graph, equation, *inputs))


def _is_finite(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    either = [elementwise(operation, graph, equation, x) for operation in ("IsNaN", "IsInf")]
    return elementwise("Not", graph, equation, elementwise("Or", graph, equation, *either))


def _select(graph: Graph, equation: JaxprEqn, which: Operand, *cases: Operand) -> Operand:
    if len(cases) != 2:
        raise NotImplementedError(f"`select_n` with {len(cases)} cases")
    if dtype_of(equation.invars[0]) != np.bool_:
        # From `jax.lax.cond` under `jax.vmap`.
        which = elementwise("Cast", graph, equation, which, to=graph.onnx.TensorProto.BOOL)
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
    "ne": _not_equal,
    "expm1": _exp_minus_1,
    "log1p": _log_plus_1,
    "rem": partial(elementwise, "Mod", fmod=1),
    "round": _round,
    "is_finite": _is_finite,
}  # fmt: skip
