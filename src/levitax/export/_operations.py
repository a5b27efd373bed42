"""Translation of the operations of JAX to those of ONNX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from ..nn import hard_swish
from ..nn._xla import softmax
from ._elementwise import ELEMENTWISE, elementwise
from ._graph import Constant, dtype_of, Graph, integers, is_size, Operand, Shape, shape_of, Tensor
from ._products import PRODUCTS
from ._views import VIEWS


def emit(graph: Graph, jaxpr: Jaxpr, constants: Sequence[Any], operands: Sequence[Operand]) -> Sequence[Operand]:
    """Adds the operations of `jaxpr` on `operands` to `graph`. Returns the operands that represent its results.

    **Raises:** `NotImplementedError` that names the first unsupported operation.
    """
    known: dict[Any, Operand] = {}

    def read(var) -> Operand:
        return Constant(np.asarray(var.val, dtype_of(var))) if isinstance(var, Literal) else known[var]

    known.update(zip(jaxpr.constvars, (Constant(np.asarray(value)) for value in constants), strict=True))
    known.update(zip(jaxpr.invars, operands, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(var) for var in equation.invars]
        known.update(zip(equation.outvars, _emit_one(graph, equation, inputs), strict=True))
    return [read(var) for var in jaxpr.outvars]


def _emit_one(graph: Graph, equation: JaxprEqn, inputs: Sequence[Operand]) -> Sequence[Operand]:
    name = equation.primitive.name
    if name in _NOTHING:
        return inputs
    if name in VIEWS:
        return [VIEWS[name](graph, equation, *inputs)]
    if name in _CALLS:
        inner = equation.params[_CALLS[name]]
        if (operation := _single_operation(equation, inner)) is not None:
            return [operation(graph, equation, *inputs)]
        # Some operations hold a closed jaxpr with constants, others a plain one without.
        return emit(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if all(isinstance(operand, Constant) for operand in inputs):
        return _computed(equation, inputs)
    if name in _COMPUTATIONS:
        return [_COMPUTATIONS[name](graph, equation, *inputs)]
    if name in _SPLITS:
        return _SPLITS[name](graph, equation, *inputs)
    raise NotImplementedError(f"`{name}`")


def _computed(equation: JaxprEqn, inputs: Sequence[Operand]) -> list[Operand]:
    """Computes the results of an operation on constants."""
    values, hint = [], "constant"
    for operand, var in zip(inputs, equation.invars, strict=True):
        assert isinstance(operand, Constant)
        values.append(jnp.asarray(np.broadcast_to(operand.value, shape_of(var))))
        hint = operand.hint if hint == "constant" else hint
    results = equation.primitive.bind(*values, **equation.params)
    return [
        Constant(np.asarray(result), hint) for result in (results if equation.primitive.multiple_results else [results])
    ]


def _single_operation(equation: JaxprEqn, inner: Any) -> Callable[..., Operand] | None:
    """The ONNX operation that replaces a called function, if there is a single one."""
    reference, operation = _NAMED.get(equation.params.get("name", ""), (None, None))
    if reference is None:
        return None
    # Other functions may share the name. The jaxpr must equal the one of our function, batched once as in `Endpoint`.
    aval: Any = equation.invars[0].aval
    traced = jax.make_jaxpr(jax.vmap(reference))(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
    return operation if str(traced.eqns[0].params["jaxpr"]) == str(inner) else None


def _softmax(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    shape = shape_of(equation.invars[0])
    name = graph.whole(x, shape)
    return Tensor.plain(graph.node("Softmax", [name], axis=len(shape) - 1)[0], shape)


def _slice(graph: Graph, equation: JaxprEqn, x: Tensor) -> Operand:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    shape, cut_shape = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    moved = [axis for axis in range(len(shape)) if not is_size(starts[axis], 0) or limits[axis] != shape[axis]]
    cut = [axis for axis in range(len(shape)) if axis in moved or strides[axis] != 1]
    if not cut:
        return x
    x = _stored_along(graph, x, cut, shape)
    stored = [x.order[axis][0] for axis in cut]
    numbers = [[sizes[axis] for axis in cut] for sizes in (starts, limits)]
    numbers += [stored, [strides[axis] for axis in cut]]
    (name,) = graph.node("Slice", [x.name, *(graph.constant(np.array(row, np.int64)) for row in numbers)])
    if not moved and len(x.stored) == 4 and min(stored) >= 2:
        every = dict(zip(stored, numbers[-1], strict=True))
        graph.strided[name] = x.name, [every.get(2, 1), every.get(3, 1)]
    return _resized(x, name, {axis: cut_shape[axis] for axis in cut})


def _split(graph: Graph, equation: JaxprEqn, x: Tensor) -> list[Operand]:
    axis, sizes = int(equation.params["axis"]), integers(equation.params["sizes"])
    x = _stored_along(graph, x, [axis], shape_of(equation.invars[0]))
    lengths = graph.constant(np.array(sizes, np.int64))
    names = graph.node("Split", [x.name, lengths], len(sizes), axis=x.order[axis][0])
    return [_resized(x, name, {axis: size}) for name, size in zip(names, sizes, strict=True)]


def _concatenate(graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    shapes = [shape_of(var) for var in equation.invars]
    names = [graph.whole(operand, shape) for operand, shape in zip(inputs, shapes, strict=True)]
    (name,) = graph.node("Concat", names, axis=equation.params["dimension"])
    return Tensor.plain(name, shape_of(equation.outvars[0]))


def _pad(graph: Graph, equation: JaxprEqn, x: Tensor, filling: Operand) -> Operand:
    widths = equation.params["padding_config"]
    shape, padded_shape = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    if any(inner for _, _, inner in widths) or not isinstance(filling, Constant):
        raise NotImplementedError("`pad` between elements, or with a computed value")
    padded = [axis for axis, (before, after, _) in enumerate(widths) if before or after]
    x = _stored_along(graph, x, padded, shape)
    # Amounts for all axes. If the `axes` input names only some, ONNX Runtime 1.32 gives wrong results when it moves a
    # transposition past the node.
    amounts = np.zeros((2, len(x.stored)), np.int64)
    for axis in padded:
        amounts[:, x.order[axis][0]] = widths[axis][:2]
    (name,) = graph.node("Pad", [x.name, graph.constant(amounts.reshape(-1)), graph.constant(filling.value)])
    return _resized(x, name, {axis: padded_shape[axis] for axis in padded})


def _reduce(operation: str, graph: Graph, equation: JaxprEqn, x: Tensor) -> Operand:
    axes = integers(equation.params["axes"])
    shape = shape_of(equation.invars[0])
    if any(x.held[axis] != shape[axis] for axis in axes):
        x = Tensor.plain(graph.whole(x, shape), shape)
    kept = replace(x, order=tuple(stored for axis, stored in enumerate(x.order) if axis not in axes))
    if not any(x.order[axis] for axis in axes):
        return kept
    (name,) = graph.node(operation, [x.name, graph.constant(np.array(kept.spare, np.int64))], keepdims=0)
    if operation == "ReduceSum" and all(isinstance(shape[axis], int | np.integer) for axis in axes):
        graph.summed[name] = int(np.prod([shape[axis] for axis in axes]))
    left = sorted(kept.flat)
    order = tuple(tuple(left.index(stored) for stored in axes) for axes in kept.order)
    return Tensor(name, tuple(x.stored[axis] for axis in left), order)


def _stored_along(graph: Graph, x: Tensor, axes: Sequence[int], shape: Shape) -> Tensor:
    """`x` with each of these axes stored as a single axis of full length."""
    if all(len(x.order[axis]) == 1 and x.held[axis] == shape[axis] for axis in axes):
        return x
    return Tensor.plain(graph.whole(x, shape), shape)


def _resized(x: Tensor, name: str, sizes: Mapping[int, Any]) -> Tensor:
    new = {x.order[axis][0]: size for axis, size in sizes.items()}
    return Tensor(name, tuple(new.get(axis, size) for axis, size in enumerate(x.stored)), x.order)


# Operations that change no value.
_NOTHING = ("name", "optimization_barrier", "stop_gradient", "copy")

# Operations that call a function, which is inlined, and the parameter that holds it.
_CALLS = {
    **dict.fromkeys(("jit", "pjit", "remat2"), "jaxpr"),
    **dict.fromkeys(("eval_jaxpr", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}

# Functions that a single ONNX operation replaces, by their name in a jaxpr.
_NAMED: dict[str, tuple[Callable[..., Any], Callable[..., Operand]]] = {
    "softmax": (softmax, _softmax),
    "hard_silu": (hard_swish, partial(elementwise, "HardSwish")),
}

_SPLITS: dict[str, Callable[..., Sequence[Operand]]] = {"split": _split}

# Operations with one result.
_COMPUTATIONS: dict[str, Callable[..., Operand]] = {
    **ELEMENTWISE,
    **PRODUCTS,
    "slice": _slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "reduce_sum": partial(_reduce, "ReduceSum"),
    "reduce_max": partial(_reduce, "ReduceMax"),
    "reduce_min": partial(_reduce, "ReduceMin"),
}
