from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def optimised() -> Iterator[None]:
    """Compiles as for a user; the other tests spend less time on it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
