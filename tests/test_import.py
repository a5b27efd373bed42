import importlib.metadata
import importlib.resources
import subprocess
import sys

import pytest

import levitax


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
    "onnx",
    "openvino",
    "levitax.export",
    "levitax.plot",
    "levitax.train",
)


def test_importing_needs_no_optional_package():
    code = f"import sys, levitax; print(*(name for name in {OPTIONAL} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_submodules_are_imported_on_first_use():
    code = "import levitax; print(levitax.train.adamw.__name__, levitax.export.to_onnx.__name__, levitax.plot.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["adamw", "to_onnx", "levitax.plot"]
    with pytest.raises(AttributeError, match="No levitax attribute trian"):
        _ = levitax.trian  # type: ignore[reportAttributeAccessIssue]


def test_the_version_is_that_of_the_package():
    assert levitax.__version__ == importlib.metadata.version("levitax")


def test_types_are_shipped():
    assert importlib.resources.files("levitax").joinpath("py.typed").is_file()
