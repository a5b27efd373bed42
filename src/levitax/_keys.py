from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray


def as_key(key: Any) -> PRNGKeyArray:
    """`key` as it is if it is one key, of either kind that JAX has.

    **Raises:** `TypeError` if it is something else, `ValueError` if it is an array of keys.
    """
    keys = _shape_of_keys(key)
    if keys:
        raise ValueError(f"`key` is an array of keys of shape {keys}; expected one key, such as `key[0]`.")
    return key


def split_key(key: PRNGKeyArray | None, num: int) -> tuple[PRNGKeyArray | None, ...]:
    """`jax.random.split` that hands on the absence of a key."""
    if key is None:
        return (None,) * num
    return tuple(jax.random.split(as_key(key), num))


def keys_of_batch(key: Any, size: int) -> Any:
    """A key for each of `size` examples, from one key or an array of as many; `None` stays `None`.

    **Raises:** `TypeError` if `key` is something else, `ValueError` if it is an array of another number of keys.
    """
    if key is None:
        return None
    keys = _shape_of_keys(key)
    if keys and keys != (size,):
        raise ValueError(
            f"`key` is an array of keys of shape {keys} for a batch of {size}; expected one key, or one an example."
        )
    return key if keys else jax.random.split(key, size)


def check_key(what: str, rate: float, inference: bool, key: PRNGKeyArray | None) -> None:
    """Raises where a layer is about to draw random numbers and there is no key."""
    if rate == 0 or inference:
        return
    if key is None:
        raise ValueError(
            f"{what} at rate {rate} draws random numbers in training: pass `key=...`, or call "
            "`eqx.nn.inference_mode(model)`."
        )
    as_key(key)


def key_numbers(leaf: Any) -> Any:
    """What a key is made of, as JAX does not handle keys everywhere; any other leaf as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def with_numbers(leaf: Any, numbers: Any) -> Any:
    """The inverse of `key_numbers`: a key of the kind of `leaf`, if that is one."""
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else numbers


def _is_key(leaf):
    """Whether it is of the kind that is not just numbers."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape_of_keys(key):
    """The shape of an array of keys, of a single one `()`. A key of the other kind is an axis of 32-bit numbers."""
    if _is_key(key):
        return key.shape
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == jnp.uint32 and key.ndim > 0:
        words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]
        if key.shape[-1] != words:
            raise TypeError(
                f"`key` is an array of shape {key.shape}; expected {words} numbers a key, or a key of `jax.random`, "
                "such as `jax.random.key(0)`."
            )
        return key.shape[:-1]
    seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
    of_type = (
        f"an array of {key.dtype}" if isinstance(key, jax.Array | np.ndarray) else f"of type `{type(key).__name__}`"
    )
    what = repr(key) if isinstance(key, int | float | None) else of_type
    raise TypeError(f"`key` is {what}; expected a key of `jax.random`, such as `jax.random.key({seed})`.")
