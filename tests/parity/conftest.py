from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def optimised() -> Iterator[None]:
    """Compiles with all optimisations, as for a user. The other tests compile faster without them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
