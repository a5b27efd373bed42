from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import pytest

import levitax


@pytest.fixture
def trained(make: Callable[..., Any], randomise: Callable[..., Any]) -> tuple[Any, eqx.nn.State]:
    """A small model and its state, in which all arrays are random."""
    return randomise(*make())


@pytest.fixture
def file(trained: tuple[Any, eqx.nn.State], tmp_path: Path) -> Path:
    """A levitax file of the model."""
    levitax.save(tmp_path / "model.safetensors", *trained)
    return tmp_path / "model.safetensors"
