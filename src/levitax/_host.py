"""Numbers of a model that are computed once: by NumPy, because XLA compiles each operation anew for each shape."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def on_host(function: Callable[..., Any], *arrays: Array | np.ndarray) -> Any:
    """`function(*arrays)`, an array or a tuple of arrays, computed by NumPy if each of the `arrays` is on one device.

    Arrays that are traced, or spread over devices, stay with JAX. `function` must therefore do with operators and
    methods that both libraries have. The results are put where the first array is. Folding LeViT-256 takes 0.2 s
    instead of 3.
    """
    if not all(isinstance(array, np.ndarray) or _is_on_one_device(array) for array in arrays):
        return function(*arrays)
    result = function(*map(np.asarray, arrays))
    return jax.tree.map(lambda values: placed_like(arrays[0], values), result)


def placed_like(array: Array | np.ndarray, values: np.ndarray) -> Array:
    """Puts `values` where `array` is, or on the default device."""
    place = array.sharding if isinstance(array, jax.Array) and array.committed else None
    # Not `jnp.asarray`, which jax 0.10 compiles for each shape.
    return jax.device_put(values, place)


def _is_on_one_device(array):
    return not isinstance(array, Tracer) and len(array.sharding.device_set) == 1
