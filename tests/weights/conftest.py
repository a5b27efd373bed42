from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import pytest

import levitax


@pytest.fixture
def trained(make: Callable[..., Any], randomise: Callable[..., Any]) -> tuple[Any, eqx.nn.State]:
    """A small model and its state, with numbers of their own everywhere."""
    return randomise(*make())


@pytest.fixture
def file(trained: tuple[Any, eqx.nn.State], tmp_path: Path) -> Path:
    """A file of ours with it."""
    levitax.save(tmp_path / "model.safetensors", *trained)
    return tmp_path / "model.safetensors"
