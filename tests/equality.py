from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def tree_equal(one: Any, other: Any, *, typematch: bool = False, rtol: float = 0.0, atol: float = 0.0) -> bool:
    """`eqx.tree_equal` with NumPy, because JAX compiles a comparison for each shape."""
    if typematch and [*map(type, jax.tree.leaves(one))] != [*map(type, jax.tree.leaves(other))]:
        return False
    return bool(eqx.tree_equal(jax.tree.map(_on_host, one), jax.tree.map(_on_host, other), rtol=rtol, atol=atol))


def _on_host(leaf):
    is_numbers = isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(leaf) if is_numbers else leaf
