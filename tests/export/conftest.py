from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import levitax


@pytest.fixture
def fused(make, randomise) -> Callable[..., levitax.Predictor[levitax.LeViT]]:
    """Makes a small fused model in which every weight affects the output; keywords override the sizes."""
    return lambda **overrides: levitax.fuse(*randomise(*make(**overrides)))


@pytest.fixture
def drawn() -> Callable[..., np.ndarray]:
    """Draws a batch of images for a model, channels last: normalised images or pixels."""

    def drawn(predict, batch, dtype=np.float32):
        shape = (batch, *predict.model.config.image_size, predict.model.config.in_channels)
        rng = np.random.default_rng(1)
        if dtype == np.uint8:
            return rng.integers(0, 256, shape).astype(np.uint8)
        return rng.normal(size=shape).astype(np.float32)

    return drawn


@pytest.fixture
def expected() -> Callable[..., np.ndarray]:
    """Returns the logits that the model has in JAX."""
    return lambda predict, images: np.asarray(jax.jit(jax.vmap(predict))(images))


@pytest.fixture
def in_onnx_runtime() -> Callable[..., dict[str, Any]]:
    """Runs an ONNX file and returns its outputs by name."""

    def run(path: Path, images: Any) -> dict[str, Any]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run


@pytest.fixture
def in_openvino() -> Callable[..., dict[str, Any]]:
    """Runs an OpenVINO or ONNX file and returns its outputs by name."""

    def run(path: Path, images: Any, precision: str = "f32") -> dict[str, Any]:
        import openvino

        compiled: Any = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        results = compiled(images)
        return {output.get_any_name(): results[output] for output in compiled.outputs}

    return run
