from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._checks import as_real


_KINDS = {jnp.bool_: "booleans", jnp.integer: "integers", jnp.floating: "floating-point numbers"}


def as_array(name: str, value: Any) -> Any:
    """Converts `value` to a JAX or NumPy array. Refuses a tuple, which holds several results."""
    if isinstance(value, tuple):
        raise TypeError(f"`{name}` is of type `{type(value).__name__}`; expected one array: pass one of its elements.")
    return value if isinstance(value, jax.Array) else np.asarray(value)


def check_form(
    name: str, array: Any, forms: Mapping[Any, tuple[int | str | EllipsisType, ...]], *, way_out: str = ""
) -> None:
    """Raises unless `array` matches one of `forms`, which maps a kind of dtype to a shape.

    A named axis has any size, and `...` matches any further axes at the end.
    """
    of_kind = [axes for kind, axes in forms.items() if jnp.issubdtype(array.dtype, kind)]
    if any(_fits(array.shape, axes) for axes in of_kind):
        return
    shown = lambda axes: f"({', '.join('...' if axis is ... else str(axis) for axis in axes)}{',' * (len(axes) == 1)})"
    expected = " or ".join(f"{_KINDS[kind]} of shape {shown(axes)}" for kind, axes in forms.items())
    message = f"`{name}` has shape {array.shape} and dtype {array.dtype}; expected {expected}. {way_out}".strip()
    raise ValueError(message) if of_kind else TypeError(message)


def check_not_empty(name: str, array: Any) -> None:
    """Raises if `array` has no rows."""
    if array.shape[0] == 0:
        raise ValueError(f"`{name}` is empty, of shape {array.shape}; expected at least one row. Skip empty batches.")


def check_width(name: str, array: Any) -> None:
    """Raises for 64-bit NumPy integers that do not fit in 32 bits. Without 64-bit mode, JAX would truncate them."""
    if isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        fits = lambda rows: rows == rows.astype(dtype).astype(rows.dtype)
        check_each(name, array, fits, f"numbers that fit in {dtype}.")


def check_number(name: str, value: Any, holds: Callable[[Any], Any], expected: str) -> Any:
    """Returns `value` if it is a real number that `holds` accepts; raises otherwise.

    The value of a traced number is unknown: it becomes NaN if `holds` rejects it.
    """
    is_array = isinstance(value, jax.Array) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    if not is_array and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"`{name}` is {value!r}; expected {expected}.")
    if isinstance(value, Tracer):
        return jnp.where(holds(value), value, jnp.nan)
    if not holds(float(value)):
        raise ValueError(f"`{name}` is {value}; expected {expected}.")
    return value if is_array else float(value)


def as_share(name: str, value: Any) -> Any:
    """Checks for a number in [0, 1], as `check_number` does."""
    return check_number(name, value, lambda number: (number >= 0) & (number <= 1), "a number in [0, 1]")


def check_each(
    name: str, array: Any, holds: Callable[[Any], Any], expected: str, show: Callable[[Any], str] = "is {}".format
) -> jax.Array:
    """Raises if `holds` rejects a row that this process can read.

    A process cannot read the rows of a traced array, or those on the devices of other processes. So the result says
    for each row whether `holds` accepts it, and the caller turns the others into NaN.

    **Arguments:**

    - `holds`: maps a JAX or NumPy array to a boolean for each row.
    - `expected`: the rule and the way out.
    - `show`: describes a row in the message, after its name.
    """
    for start, rows in _seen(array):
        with np.errstate(all="ignore"):
            wrong = np.flatnonzero(~np.asarray(holds(rows)))
            if len(wrong):
                more = f", and {len(wrong) - 1} more break the rule" if len(wrong) > 1 else ""
                place = name if rows.ndim == 0 else f"{name}[{start + wrong[0]}]"
                raise ValueError(f"`{place}` {show(rows[wrong[0]] if rows.ndim else rows)}{more}; expected {expected}")
    return holds(jnp.asarray(array))


def _fits(shape, axes):
    if axes[-1] is ...:
        axes = axes[:-1]
        shape = shape[: len(axes)]
    return len(shape) == len(axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, shape, strict=True)
    )


def _seen(array: Any) -> Iterator[tuple[int, np.ndarray]]:
    """The complete rows that this process can read, in blocks, each with the index of its first row."""
    if isinstance(array, Tracer):
        return
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        yield 0, np.asarray(array)
        return
    for shard in array.addressable_shards:
        if shard.data.shape[1:] == array.shape[1:]:
            yield shard.index[0].start or 0, np.asarray(shard.data)


def as_number(name: str, value: Any, low: int | float, high: int | float, *, optional: bool = False) -> Any:
    """Like `as_real`, also for an array with one number. Keeps a traced value, which cannot be checked."""
    if isinstance(value, Tracer):
        return value
    is_scalar = isinstance(value, jax.Array | np.ndarray) and value.shape == () and value.dtype != bool
    return as_real(name, value.item() if is_scalar else value, low, high, optional=optional)


def as_floating(name: str, value: Any) -> str:
    """Converts `value` to the name of a floating-point dtype, or raises an error with `name`."""
    try:
        # `jnp.dtype(None)` is float64.
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` is {value!r}; expected a floating-point dtype such as 'float32' or 'bfloat16'.")
    return dtype.name


def check_axis(name: str, array: Any, axis: int, size: int, what: str) -> None:
    """Raises unless `array` is floating-point with `size` elements along `axis`; `what` names the elements."""
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(f"`{name}` is of type `{type(array).__name__}`; expected an array with {size} {what}.")
    # Layers cast their weights to the dtype of the input: as integers, they would be 0.
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` has dtype {array.dtype}; expected floating-point numbers: use `{name}.astype(jnp.float32)`."
        )
    if array.ndim == 0 or array.shape[axis] != size:
        raise ValueError(
            f"`{name}` has shape {array.shape}; this layer takes {size} {what} on axis {axis}. Pass an input of that "
            "shape, or make the layer for this one."
        )


def check_map(name: str, array: Any) -> None:
    """Raises unless `array` has the axes of one feature map."""
    if jnp.ndim(array) != 3:
        raise ValueError(
            f"`{name}` has shape {jnp.shape(array)}; expected (height, width, channels), one feature map. For "
            "a batch, use `jax.vmap`."
        )
