"""Checks of numbers, names and functions. Imports no JAX, so that the help of the command opens at once."""

import difflib
import inspect
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np


def as_integer(name: str, value: Any, minimum: int = 1) -> int:
    """Converts `value` to an `int` of at least `minimum`, or raises an error with `name`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` is {value!r}; expected an integer of at least {minimum}.") from None
    if number < minimum:
        raise ValueError(f"`{name}` is {number}; expected an integer of at least {minimum}.")
    return number


def as_integers(name: str, value: Any, length: int, each: str) -> tuple[int, ...]:
    """Converts `value`, one positive integer or a sequence of `length`, to a tuple. `each` names what each is for."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (as_integer(name, value),) * length
    if len(value) != length:
        raise ValueError(
            f"`{name}` is {value!r}, of length {len(value)}; expected one integer, or {length}: one for {each}."
        )
    return tuple(as_integer(name, number) for number in value)


def as_rate(name: str, value: Any) -> float:
    """Converts `value` to a `float` in [0, 1), or raises an error with `name`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` is {value!r}; expected a number in [0, 1).")
    rate = float(value)
    if not 0 <= rate < 1:
        raise ValueError(f"`{name}` is {value}; expected a rate in [0, 1), where 0 turns it off.")
    return rate


def as_real(name: str, value: Any, low: int | float, high: int | float, *, optional: bool = False) -> Any:
    """Converts `value` to a finite `float` from `low` to `high`, or raises an error with `name`.

    Keeps `None` if that is `optional`.
    """
    if value is None and optional:
        return value
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or math.isinf(number):
        rule = "a finite number" if low == -math.inf else f"a number from {low:g} to {high:g}"
        raise ValueError(f"`{name}` is {value!r}; expected {rule}{' or None' if optional else ''}.")
    return number


def as_crop_scale(value: Any) -> tuple[float, float] | None:
    """Converts `value`, the limits of a random crop's area, to two numbers; keeps `None`."""
    if value is None:
        return None
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"`crop_scale` is {value!r}; expected the smallest and the largest fraction of the image area, "
            "0 < smallest <= largest <= 1, or None."
        )
    return low, high


def as_layer_decay(name: str, value: Any) -> float:
    """Converts `value` to a `float` above 0 and at most 1, or raises an error with `name`."""
    decay = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 < decay <= 1:
        raise ValueError(f"`{name}` is {value!r}; expected a number above 0 and at most 1, where 1 turns it off.")
    return decay


def as_flag(name: str, value: Any) -> bool:
    """Returns `value` if it is a `bool`, or raises an error with `name`."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; expected True or False.")
    return value


def check_positive(**sizes: Any) -> None:
    """Raises unless every size is a positive integer."""
    for name, value in sizes.items():
        as_integer(name, value)


def check_odd(**sizes: int) -> None:
    """Raises unless every size is odd."""
    for name, size in sizes.items():
        if size % 2 == 0:
            raise ValueError(f"`{name}` is {size}; expected an odd size, which has a centre pixel.")


def check_widths(widths: Any) -> None:
    """Raises unless `widths` is a sequence with at least one element."""
    if not isinstance(widths, Sequence) or isinstance(widths, str) or not widths:
        raise ValueError(f"`widths` is {widths!r}; expected the output channels of at least one convolution.")


def check_schedule(epochs: int, warmup_epochs: int, *, by_epoch: bool, late: bool) -> None:
    """Raises for lengths and flags that contradict each other."""
    if warmup_epochs >= epochs:
        raise ValueError(
            f"`warmup_epochs` is {warmup_epochs} of {epochs} `epochs`: the warm-up would take the whole training. Set "
            "a smaller `warmup_epochs`, or more `epochs`."
        )
    if late and not by_epoch:
        raise ValueError(
            "`late` is True and `by_epoch` False: `late` delays a learning rate that is set once an epoch. Set "
            "`by_epoch` too, or leave `late` out."
        )


def as_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Returns the one of `choices` that equals `value`, or raises an error with the nearest ones."""
    choices = tuple(choices)
    # 16.0 equals 16, but sizes are integers.
    if np.ndim(value) == 0 and value in choices and not isinstance(value, float):
        return choices[choices.index(value)]
    listed = ", ".join(map(repr, choices))
    raise ValueError(f"`{name}` is {value!r}; expected one of {listed}.{_nearest(value, choices)}")


def check_keywords(given: Iterable[str], known: type) -> None:
    """Raises unless `known` annotates every keyword; suggests the nearest ones."""
    for name in given:
        if name not in known.__annotations__:
            listed = ", ".join(f"`{keyword}`" for keyword in known.__annotations__)
            hint = _nearest(name, known.__annotations__) or f" Expected {listed}."
            raise TypeError(f"There is no `{name}`.{hint}")


def _nearest(value: Any, choices: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def as_function(name: str, value: Any) -> Any:
    """Returns `value` if it is a function or a class that can be a part of a configuration."""
    if isinstance(value, Mapping) and "function" in value:
        raise ValueError(
            f"`{name}` is the function `{value['function']}`, and a file holds only its name: pass the function, "
            f"as in `{name}={str(value['function']).rpartition('.')[2]}`."
        )
    if not callable(value):
        raise TypeError(f"`{name}` is {value!r}; expected a function or a class.")
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"`{name}` is a `{type(value).__name__}`, which has no hash; expected a function or a class. Put a module "
            "with parameters of its own into the model with `eqx.tree_at`."
        ) from None
    return value


def name_of_function(function: Any) -> str:
    """The name of a function, such as "package.module.name"."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def why_not_called(function: Any, *arguments: Any, **keywords: Any) -> str:
    """Why `function` cannot be called with such arguments; empty if it can, or if it does not tell its parameters."""
    if not callable(function):
        return "it is not a function"
    try:
        inspect.signature(function).bind(*arguments, **keywords)
    except TypeError as error:
        return str(error)
    except ValueError:
        pass  # A built-in function, which has no signature.
    return ""
