from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from ._checks import name_of_function, why_not_called


def as_key(key: Any) -> PRNGKeyArray:
    """Returns `key` unchanged if it is one key, typed or raw.

    **Raises:** `TypeError` if it is something else, `ValueError` if it is an array of keys.
    """
    keys = _shape_of_keys(key)
    if keys:
        raise ValueError(f"`key` is an array of keys of shape {keys}; expected one key, such as `key[0]`.")
    return key


@overload
def split_key(key: PRNGKeyArray, num: int) -> tuple[PRNGKeyArray, ...]: ...


@overload
def split_key(key: PRNGKeyArray | None, num: int) -> tuple[PRNGKeyArray | None, ...]: ...


def split_key(key: PRNGKeyArray | None, num: int) -> tuple[PRNGKeyArray | None, ...]:
    """As many new keys, or a `None` for each if `key` is `None`."""
    if key is None:
        return (None,) * num
    key = as_key(key)
    # Not `jax.random.split`, which compiles for each number of keys and for taking each key out of the array.
    return tuple(jax.random.fold_in(key, np.uint32(index)) for index in range(num))


def call_factory(call: str, factory: Any, *arguments: Any, key: PRNGKeyArray, **keywords: Any) -> Any:
    """Calls a factory of layers, with `key` unless it takes none; `call` shows the call in an error.

    **Raises:** `TypeError` if the factory takes other arguments.
    """
    if not why_not_called(factory, *arguments, key=key, **keywords):
        return factory(*arguments, key=key, **keywords)
    if why := why_not_called(factory, *arguments, **keywords):
        raise TypeError(
            f"`{call.partition('(')[0]}` is `{name_of_function(factory)}`, which cannot be called as `{call}` ({why}); "
            "expected a function or a class that can. It may leave out `key`."
        )
    return factory(*arguments, **keywords)


def keys_of_batch(key: Any, size: int) -> Any:
    """Makes a key for each of `size` examples from one key or an array of `size` keys; `None` stays `None`.

    **Raises:** `TypeError` if `key` is something else, `ValueError` if it is an array of another number of keys.
    """
    if key is None:
        return None
    keys = _shape_of_keys(key)
    if keys and keys != (size,):
        raise ValueError(
            f"`key` is an array of keys of shape {keys} for a batch of {size}; expected one key, or one per example."
        )
    return key if keys else jax.random.split(key, size)


def check_key(what: str, rate: float, inference: bool, key: PRNGKeyArray | None) -> None:
    """Raises if a layer needs a key to draw random numbers and there is none."""
    if rate == 0 or inference:
        return
    if key is None:
        raise ValueError(
            f"{what} at rate {rate} draws random numbers in training: pass `key=...`, or call "
            "`eqx.nn.inference_mode(model)`."
        )
    as_key(key)


def key_numbers(leaf: Any) -> Any:
    """Converts a typed key to numbers, for the places where JAX cannot handle keys. Other leaves stay as they are."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def with_numbers(leaf: Any, numbers: Any) -> Any:
    """Inverts `key_numbers`: makes a key like `leaf` from its numbers, if `leaf` is a typed key."""
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else numbers


def _is_key(leaf):
    """Whether `leaf` is a typed key, or an array of them, and not raw numbers."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape_of_keys(key):
    """The shape of an array of keys; `()` for a single key. A raw key is an axis of 32-bit numbers."""
    if _is_key(key):
        return key.shape
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == jnp.uint32 and key.ndim > 0:
        words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]
        if key.shape[-1] != words:
            raise TypeError(
                f"`key` is an array of shape {key.shape}; expected {words} numbers per key, or a JAX random key, "
                "such as `jax.random.key(0)`."
            )
        return key.shape[:-1]
    seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
    of_type = (
        f"an array of {key.dtype}" if isinstance(key, jax.Array | np.ndarray) else f"of type `{type(key).__name__}`"
    )
    what = repr(key) if isinstance(key, int | float | None) else of_type
    raise TypeError(f"`key` is {what}; expected a JAX random key, such as `jax.random.key({seed})`.")
