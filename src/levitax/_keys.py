from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray


def split_key(key: PRNGKeyArray | None, num: int) -> tuple[PRNGKeyArray | None, ...]:
    """`jax.random.split` that hands on the absence of a key."""
    if key is None:
        return (None,) * num
    return tuple(jax.random.split(key, num))


def check_key(what: str, rate: float, inference: bool, key: PRNGKeyArray | None) -> None:
    """Raises where a layer is about to draw random numbers and there is no key."""
    if rate > 0 and not inference and key is None:
        raise ValueError(
            f"{what} at rate {rate} draws random numbers in training: pass `key=...`, or call "
            "`eqx.nn.inference_mode(model)`."
        )


def is_one_key(key: Any) -> bool:
    """Whether this is a single key, of either kind that JAX has, and not an array of keys."""
    return key.ndim == (0 if _is_key(key) else 1)


def key_numbers(leaf: Any) -> Any:
    """What a key is made of, as JAX does not handle keys everywhere; any other leaf as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def with_numbers(leaf: Any, numbers: Any) -> Any:
    """The inverse of `key_numbers`: a key of the kind of `leaf`, if that is one."""
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else numbers


def _is_key(leaf):
    """Whether it is of the kind that is not just numbers."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
