import math
from collections.abc import Iterable, Iterator
from typing import Any


def multiply_adds(jaxpr: Any, by_name: dict[str, int]) -> int:
    """Counts the multiplications of the matrix products and convolutions in a traced function.

    A loop that runs until a condition holds counts as one iteration. Of several branches, the largest counts.

    **Arguments:**

    - `jaxpr`: the traced function.
    - `by_name`: the names of functions inside `jax.jit`. Adds to each entry the number in that function.

    **Returns:** the number in the whole of `jaxpr`.
    """
    return sum(_of_equation(equation, by_name) for equation in jaxpr.eqns)


def _of_equation(equation: Any, by_name: dict[str, int]) -> int:
    match equation.primitive.name:
        case "dot_general":
            left, (axes, _), _ = equation.invars[0].aval, *equation.params["dimension_numbers"]
            return _size(equation.outvars[0]) * math.prod(left.shape[axis] for axis in axes)
        case "conv_general_dilated":
            # Of each output channel: the pixels of the kernel, and the channels of a group.
            kernel, (out_axis, *_) = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec
            return _size(equation.outvars[0]) * kernel.size // kernel.shape[out_axis]
    inner = [multiply_adds(jaxpr, by_name) for jaxpr in _jaxprs(equation.params.values())]
    count = max(inner) if equation.primitive.name == "cond" else sum(inner)
    count *= equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    if (name := equation.params.get("name")) in by_name:
        by_name[name] += count
    return count


def _jaxprs(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):
            yield value


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)
