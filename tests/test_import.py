import importlib.metadata
import importlib.resources
import subprocess
import sys

import pytest

import levitax
import levitax.data
import levitax.nn
import levitax.train
import levitax.weights


OPTIONAL = (
    "optax",
    "torch",
    "mlxtend",
    "PIL",
    "matplotlib",
    "tqdm",
    "safetensors",
    "huggingface_hub",
    "transformers",
    "levitax.data",
    "levitax.train",
)


def test_importing_needs_no_optional_package():
    code = f"import sys, levitax; print(*(name for name in {OPTIONAL} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_the_version_is_that_of_the_package():
    assert levitax.__version__ == importlib.metadata.version("levitax")


def test_types_are_shipped():
    assert importlib.resources.files("levitax").joinpath("py.typed").is_file()


# Tables and types, which cannot have a docstring; and jaxtyping's hook leaves its own name in what it has checked.
WITHOUT = (
    *("VARIANTS", "RECIPES", "ACTIVATIONS", "IMAGENET_MEAN", "IMAGENET_STD"),
    *("Activation", "Loss", "Parameters", "LayoutName", "Source"),
    "jaxtyping",
)
PUBLIC = [
    pytest.param(value, id=f"{module.__name__}.{name}")
    for module in (levitax, levitax.nn, levitax.weights, levitax.train, levitax.data)
    for name, value in vars(module).items()
    if not name.startswith("_") and name not in WITHOUT
]


@pytest.mark.parametrize("value", PUBLIC)
def test_every_public_name_has_a_docstring(value):
    # Named tuples and dataclasses without one get their signature for a docstring.
    assert value.__doc__ and not value.__doc__.startswith(f"{value.__name__}(")
