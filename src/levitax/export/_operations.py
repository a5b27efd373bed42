"""The operations of JAX, said in those of ONNX."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from ..nn import hard_swish
from ._graph import Constant, Graph, is_size, Operand, Shape, Tensor


def emit(graph: Graph, jaxpr: Jaxpr, constants: Sequence[Any], operands: Sequence[Operand]) -> list[Operand]:
    """Adds to `graph` what `jaxpr` computes of `operands`, and returns what stands for its results.

    **Raises:** `NotImplementedError`, naming it, at an operation that is not among those below.
    """
    known: dict[Any, Operand] = {}

    def read(var) -> Operand:
        return Constant(np.asarray(var.val)) if isinstance(var, Literal) else known[var]

    known.update(zip(jaxpr.constvars, (Constant(np.asarray(value)) for value in constants), strict=True))
    known.update(zip(jaxpr.invars, operands, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(var) for var in equation.invars]
        known.update(zip(equation.outvars, _emit_one(graph, equation, inputs), strict=True))
    return [read(var) for var in jaxpr.outvars]


def _emit_one(graph: Graph, equation: JaxprEqn, inputs: list[Operand]) -> list[Operand]:
    name = equation.primitive.name
    if name in _NOTHING:
        return inputs
    if name in _VIEWS:
        return [_VIEWS[name](graph, equation, *inputs)]
    if name in _CALLS:
        inner = equation.params[_CALLS[name]]
        if (operation := _as_one(equation, inner)) is not None:
            return [operation(graph, equation, *inputs)]
        # Of some operations it is closed over its constants, of others there are none.
        return emit(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if all(isinstance(operand, Constant) for operand in inputs):
        return _computed(equation, inputs)
    if name in _ELEMENTWISE:
        return [_ELEMENTWISE[name](graph, equation, *inputs)]
    if name in _OTHERS:
        return _OTHERS[name](graph, equation, *inputs)
    raise NotImplementedError(f"`{name}`")


def _computed(equation: JaxprEqn, inputs: Sequence[Operand]) -> list[Operand]:
    """The results of an operation whose operands are known."""
    values, hint = [], "constant"
    for operand, var in zip(inputs, equation.invars, strict=True):
        assert isinstance(operand, Constant)
        values.append(jnp.asarray(np.broadcast_to(operand.value, _shape(var))))
        hint = operand.hint if hint == "constant" else hint
    results = equation.primitive.bind(*values, **equation.params)
    return [
        Constant(np.asarray(result), hint) for result in (results if equation.primitive.multiple_results else [results])
    ]


def _as_one(equation: JaxprEqn, inner: Any) -> Callable[..., Operand] | None:
    """The one operation of ONNX that a function called in the traced one is, if there is one."""
    name = equation.params.get("name")
    if name == "softmax_of_last_axis":
        return _softmax
    if name == "hard_silu":
        # Anyone may name a function so: it must be JAX's to the letter.
        aval: Any = equation.invars[0].aval
        traced = jax.make_jaxpr(hard_swish)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        if str(traced.eqns[0].params["jaxpr"]) == str(inner):
            return partial(_elementwise, "HardSwish")
    return None


# Element by element.


def _elementwise(operation: str, graph: Graph, equation: JaxprEqn, *inputs: Operand, **attributes: Any) -> Operand:
    tensors = [operand for operand in inputs if isinstance(operand, Tensor)]
    first = tensors[0]
    shape = _shape(equation.outvars[0])
    unstored = [axis for axis, stored in enumerate(first.order) if stored is None]
    if all(operand.order == first.order for operand in tensors) and all(
        is_size(operand.value.shape[axis], 1)
        for operand in inputs
        if isinstance(operand, Constant) and operand.value.ndim
        for axis in unstored
    ):
        names = [
            operand.name if isinstance(operand, Tensor) else graph.constant(_beside(first, operand), operand.hint)
            for operand in inputs
        ]
        order = first.order
    else:
        names = [graph.in_order(operand) for operand in inputs]
        order = tuple(range(len(shape)))
    (name,) = graph.node(operation, names, **attributes)
    held = [operand.held if isinstance(operand, Tensor) else operand.value.shape for operand in inputs]
    held = [sizes for sizes in held if sizes]
    broadcast = [next((size for size in sizes if not is_size(size, 1)), 1) for sizes in zip(*held, strict=True)]
    stored = {axis: size for axis, size in zip(order, broadcast, strict=True) if axis is not None}
    return Tensor(name, tuple(stored[axis] for axis in sorted(stored)), order)


def _beside(tensor: Tensor, constant: Constant) -> np.ndarray:
    """The numbers that meet what is stored of `tensor`. Axes that ONNX adds in front are left out."""
    value = constant.value
    if value.ndim:
        at = {stored: axis for axis, stored in enumerate(tensor.order) if stored is not None}
        value = value.squeeze(tuple(axis for axis, stored in enumerate(tensor.order) if stored is None))
        kept = sorted(at.values())
        value = value.transpose([kept.index(at[stored]) for stored in sorted(at)])
    first = next((axis for axis, size in enumerate(value.shape) if size != 1), value.ndim)
    return value.reshape(value.shape[first:])


def _logical(operation: str, graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    aval: Any = equation.invars[0].aval
    if aval.dtype != np.bool_:
        raise NotImplementedError(f"`{equation.primitive.name}` of the bits of {aval.dtype.name}")
    return _elementwise(operation, graph, equation, *inputs)


def _neutral(operation: str, number: float, graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    """An operation of two operands, left out where one of them changes nothing."""
    for operand, other in (inputs, inputs[::-1]):
        if isinstance(other, Constant) and other.value.size == 1 and other.value.item() == number:
            return operand
    return _elementwise(operation, graph, equation, *inputs)


def _maximum(graph: Graph, equation: JaxprEqn, *inputs: Operand) -> Operand:
    for operand, other in (inputs, inputs[::-1]):
        if isinstance(other, Constant) and other.value.size == 1 and isinstance(operand, Tensor):
            if other.value.item() == 0:
                return _elementwise("Relu", graph, equation, operand)
            if other.value.item() == -np.inf:
                return operand
    return _elementwise("Max", graph, equation, *inputs)


def _clamp(graph: Graph, equation: JaxprEqn, low: Operand, x: Operand, high: Operand) -> Operand:
    return _elementwise("Clip", graph, equation, x, low, high)


def _cast(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    dtype = equation.params["new_dtype"]
    aval: Any = equation.invars[0].aval
    if aval.dtype == dtype:
        return x
    return _elementwise("Cast", graph, equation, x, to=graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _power(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    exponent = equation.params.get("y", 2)
    if exponent == 2:
        return _elementwise("Mul", graph, equation, x, x)
    return _elementwise("Pow", graph, equation, x, Constant(np.asarray(exponent, np.float32)))


def _rsqrt(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return _elementwise("Reciprocal", graph, equation, _elementwise("Sqrt", graph, equation, x))


def _complement_of_erf(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    one = Constant(np.ones((), np.float32))
    return _elementwise("Sub", graph, equation, one, _elementwise("Erf", graph, equation, x))


def _select(graph: Graph, equation: JaxprEqn, which: Operand, *cases: Operand) -> Operand:
    if len(cases) != 2:
        raise NotImplementedError(f"`select_n` of {len(cases)} cases")
    return _elementwise("Where", graph, equation, which, cases[1], cases[0])


# Without nodes, mostly.


def _transpose(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    return x.permuted(_integers(equation.params["permutation"]))


def _broadcast(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    source = _integers(equation.params["broadcast_dimensions"])
    rank = len(equation.params["shape"])
    if isinstance(x, Constant):
        sizes = dict(zip(source, x.value.shape, strict=True))
        return Constant(x.value.reshape([sizes.get(axis, 1) for axis in range(rank)]), x.hint)
    stored = dict(zip(source, x.order, strict=True))
    return Tensor(x.name, x.stored, tuple(stored.get(axis) for axis in range(rank)))


def _reshape(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    if isinstance(x, Constant):
        return Constant(np.broadcast_to(x.value, before).reshape(after), x.hint)
    if (sources := _same_but_units(before, after)) is not None:
        kept = [axis for axis in sources if axis is not None]
        x = _without(graph, x, [axis for axis in range(len(before)) if axis not in kept])
        rest = iter(x.order)
        return Tensor(x.name, x.stored, tuple(None if axis is None else next(rest) for axis in sources))
    # Of the axes of length 1, those that are not stored need not be for this.
    left = [axis for axis, size in enumerate(before) if not (is_size(size, 1) and x.order[axis] is None)]
    x, before = x.permuted(left), [before[axis] for axis in left]
    name = graph.whole(x, tuple(before))
    free = [axis for axis, size in enumerate(after) if not isinstance(size, int | np.integer)]
    sizes = list(after)
    for axis in free:
        # 0 stands for the size it has before, -1 for what remains.
        sizes[axis] = 0 if axis < len(before) and before[axis] == after[axis] else -1
    if sizes.count(-1) > 1:
        raise NotImplementedError(f"`reshape` from {before} to {after}")
    (name,) = graph.node("Reshape", [name, graph.constant(np.array(sizes, np.int64))])
    return Tensor.plain(name, after)


def _same_but_units(before: Shape, after: Shape) -> list[int | None] | None:
    """Where each axis after a change of shape comes from, if that only takes away or adds axes of length 1."""
    sources: list[int | None] = []
    axis = 0
    for size in after:
        while axis < len(before) and before[axis] != size and is_size(before[axis], 1):
            axis += 1
        if axis < len(before) and before[axis] == size:
            sources.append(axis)
            axis += 1
        elif is_size(size, 1):
            sources.append(None)
        else:
            return None
    return sources if all(is_size(size, 1) for size in before[axis:]) else None


def _squeeze(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    axes = _integers(equation.params["dimensions"])
    if isinstance(x, Constant):
        return Constant(x.value.squeeze(axes), x.hint)
    return _without(graph, x, axes)


def _without(graph: Graph, x: Tensor, axes: Sequence[int]) -> Tensor:
    """`x` without axes of length 1."""
    gone = [stored for axis in axes if (stored := x.order[axis]) is not None]
    kept = x.permuted(axis for axis in range(len(x.order)) if axis not in axes)
    if not gone:
        return kept
    (name,) = graph.node("Squeeze", [x.name, graph.constant(np.array(gone))])
    left = [axis for axis in range(len(x.stored)) if axis not in gone]
    order = tuple(None if axis is None else left.index(axis) for axis in kept.order)
    return Tensor(name, tuple(x.stored[axis] for axis in left), order)


# All others.


def _slice(graph: Graph, equation: JaxprEqn, x: Tensor) -> list[Operand]:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    shape = _shape(equation.invars[0])
    cut = [
        axis
        for axis, size in enumerate(shape)
        if not is_size(starts[axis], 0) or limits[axis] != size or strides[axis] != 1
    ]
    if not cut:
        return [x]
    x = _stored_along(graph, x, cut, shape)
    numbers = [[sizes[axis] for axis in cut] for sizes in (starts, limits)]
    numbers += [[x.order[axis] for axis in cut], [strides[axis] for axis in cut]]
    (name,) = graph.node("Slice", [x.name, *(graph.constant(np.array(row, np.int64)) for row in numbers)])
    return [_resized(x, name, {axis: _shape(equation.outvars[0])[axis] for axis in cut})]


def _split(graph: Graph, equation: JaxprEqn, x: Tensor) -> list[Operand]:
    axis, sizes = int(equation.params["axis"]), _integers(equation.params["sizes"])
    x = _stored_along(graph, x, [axis], _shape(equation.invars[0]))
    lengths = graph.constant(np.array(sizes, np.int64))
    names = graph.node("Split", [x.name, lengths], len(sizes), axis=x.order[axis])
    return [_resized(x, name, {axis: size}) for name, size in zip(names, sizes, strict=True)]


def _concatenate(graph: Graph, equation: JaxprEqn, *inputs: Operand) -> list[Operand]:
    shapes = [_shape(var) for var in equation.invars]
    names = [graph.whole(operand, shape) for operand, shape in zip(inputs, shapes, strict=True)]
    (name,) = graph.node("Concat", names, axis=equation.params["dimension"])
    return [Tensor.plain(name, _shape(equation.outvars[0]))]


def _pad(graph: Graph, equation: JaxprEqn, x: Tensor, filling: Operand) -> list[Operand]:
    widths = equation.params["padding_config"]
    shape = _shape(equation.invars[0])
    if any(inner for _, _, inner in widths) or not isinstance(filling, Constant):
        raise NotImplementedError("`pad` between elements, or with a number computed in the function")
    padded = [axis for axis, (before, after, _) in enumerate(widths) if before or after]
    x = _stored_along(graph, x, padded, shape)
    amounts = [widths[axis][0] for axis in padded] + [widths[axis][1] for axis in padded]
    inputs = [graph.constant(np.array(amounts, np.int64)), graph.constant(filling.value)]
    axes = graph.constant(np.array([x.order[axis] for axis in padded], np.int64))
    (name,) = graph.node("Pad", [x.name, *inputs, axes])
    return [_resized(x, name, {axis: _shape(equation.outvars[0])[axis] for axis in padded})]


def _reduce(operation: str, graph: Graph, equation: JaxprEqn, x: Tensor) -> list[Operand]:
    axes = _integers(equation.params["axes"])
    shape = _shape(equation.invars[0])
    x = _stored_along(graph, x, axes, shape)
    gone = sorted(stored for axis in axes if (stored := x.order[axis]) is not None)
    (name,) = graph.node(operation, [x.name, graph.constant(np.array(gone))], keepdims=0)
    if operation == "ReduceSum" and all(isinstance(shape[axis], int | np.integer) for axis in axes):
        graph.summed[name] = int(np.prod([shape[axis] for axis in axes]))
    left = [axis for axis in range(len(x.stored)) if axis not in gone]
    kept = [stored for axis, stored in enumerate(x.order) if axis not in axes]
    order = tuple(None if stored is None else left.index(stored) for stored in kept)
    return [Tensor(name, tuple(x.stored[axis] for axis in left), order)]


def _softmax(graph: Graph, equation: JaxprEqn, x: Operand) -> Operand:
    shape = _shape(equation.invars[0])
    name = graph.whole(x, shape)
    return Tensor.plain(graph.node("Softmax", [name], axis=len(shape) - 1)[0], shape)


def _dot(graph: Graph, equation: JaxprEqn, left: Operand, right: Operand) -> list[Operand]:
    (left_sums, right_sums), (left_batch, right_batch) = equation.params["dimension_numbers"]
    shapes = [_shape(var) for var in equation.invars]
    ranks = [len(shape) for shape in shapes]
    left_free, right_free = (
        [axis for axis in range(rank) if axis not in (*sums, *batch)]
        for rank, sums, batch in zip(ranks, (left_sums, right_sums), (left_batch, right_batch), strict=True)
    )
    out = _shape(equation.outvars[0])
    count = len(left_batch)
    if len(left_sums) != 1 or (count and (len(left_free), len(right_free)) != (1, 1)):
        raise NotImplementedError(f"`dot_general` of {shapes[0]} and {shapes[1]} over several axes")
    turned = len(right_free) != 1
    if turned:
        if len(left_free) != 1:
            raise NotImplementedError(f"`dot_general` of {shapes[0]} and {shapes[1]}")
        # As in `weight @ x`: the factors change places.
        left, right, shapes = right, left, shapes[::-1]
        left_free, right_free, left_sums, right_sums = right_free, left_free, right_sums, left_sums
    permutations = (*left_batch, *left_free, *left_sums), (*right_batch, *right_sums, *right_free)
    names = [
        graph.whole(operand.permuted(permutation), tuple(shape[axis] for axis in permutation))
        for operand, permutation, shape in zip((left, right), permutations, shapes, strict=True)
    ]
    is_flat = not count and len(left_free) == 1
    (name,) = graph.node("Gemm" if is_flat else "MatMul", names)
    if not turned:
        return [Tensor.plain(name, out)]
    return [Tensor.plain(name, (*out[1:], out[0])).permuted([len(out) - 1, *range(len(out) - 1)])]


def _convolution(graph: Graph, equation: JaxprEqn, x: Operand, weight: Operand) -> list[Operand]:
    numbers = equation.params["dimension_numbers"]
    if set(equation.params["lhs_dilation"]) != {1} or equation.params["batch_group_count"] != 1:
        raise NotImplementedError("a transposed `conv_general_dilated`")
    names = [
        graph.whole(operand.permuted(spec), tuple(_shape(var)[axis] for axis in spec))
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
    shape = _shape(equation.outvars[0])
    stored = tuple(shape[axis] for axis in numbers.out_spec)
    return [Tensor.plain(name, stored).permuted(np.argsort(numbers.out_spec).tolist())]


def _stored_along(graph: Graph, x: Tensor, axes: Sequence[int], shape: Shape) -> Tensor:
    """`x` with all of its extent stored along these axes."""
    if all(x.order[axis] is not None and not (is_size(x.held[axis], 1) and shape[axis] != 1) for axis in axes):
        return x
    return Tensor.plain(graph.whole(x, shape), shape)


def _resized(x: Tensor, name: str, sizes: Mapping[int, Any]) -> Tensor:
    new = {x.order[axis]: size for axis, size in sizes.items()}
    return Tensor(name, tuple(new.get(axis, size) for axis, size in enumerate(x.stored)), x.order)


def _shape(var: Any) -> Shape:
    return var.aval.shape


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    """Plain ones: batching leaves NumPy's."""
    return tuple(map(int, values))


# What changes no number.
_NOTHING = ("name", "optimization_barrier", "stop_gradient", "copy")

# Where the function that is called is kept.
_CALLS = {
    **dict.fromkeys(("jit", "pjit", "remat2", "checkpoint", "closed_call"), "jaxpr"),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}

_VIEWS: dict[str, Callable[..., Operand]] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
}

_ELEMENTWISE: dict[str, Callable[..., Operand]] = {
    **{
        name: partial(_elementwise, operation)
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
    "div": partial(_elementwise, "Div"),
    "max": _maximum,
    "clamp": _clamp,
    "convert_element_type": _cast,
    "integer_pow": _power,
    "square": _power,
    "erfc": _complement_of_erf,
    "rsqrt": _rsqrt,
    "select_n": _select,
}  # fmt: skip

_OTHERS: dict[str, Callable[..., list[Operand]]] = {
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "reduce_sum": partial(_reduce, "ReduceSum"),
    "reduce_max": partial(_reduce, "ReduceMax"),
    "reduce_min": partial(_reduce, "ReduceMin"),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
