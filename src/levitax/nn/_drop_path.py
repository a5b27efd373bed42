import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_rate
from .._keys import check_key


class DropPath(eqx.Module):
    """Stochastic depth: drops the whole residual branch of an image with probability `rate`, and scales the kept ones
    by `1 / (1 - rate)` so that the expectation stays (Huang et al. 2016, arXiv 1603.09382)."""

    rate: float = eqx.field(static=True)
    inference: bool

    def __init__(self, rate: float = 0.0, *, inference: bool = False):
        """**Arguments:**

        - `rate`: probability of dropping, in [0, 1).
        - `inference`: hand everything through.

        **Raises:** `TypeError` or `ValueError` for a rate outside [0, 1).
        """
        self.rate = as_rate("rate", rate)
        self.inference = inference

    def __call__(self, x: Float[Array, "..."], *, key: PRNGKeyArray | None = None) -> Float[Array, "..."]:
        """**Arguments:**

        - `x`: the branch of one image, of any shape.
        - `key`: needed in training where `rate` is above 0.

        **Returns:** `x` scaled, or zeros; in inference `x`.

        **Raises:** `ValueError` if a key is missing.
        """
        check_key("Drop path", self.rate, self.inference, key)
        if self.inference or self.rate == 0 or key is None:
            return x
        keep = jax.random.bernoulli(key, jnp.float32(1 - self.rate))
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))
