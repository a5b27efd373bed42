import jax
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
