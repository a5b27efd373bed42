import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from levitax.train import make_mesh, shard_batch, Teacher, torch_teacher


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def weights():
    return np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)


@pytest.fixture
def module(torch, weights):
    """A linear map of images `(3, 4, 6)`, channels first, behind dropout."""
    linear = torch.nn.Linear(3 * 4 * 6, 5)
    linear.weight.data = torch.from_numpy(weights.reshape(5, -1))
    linear.bias.data = torch.arange(5.0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), linear)


@pytest.fixture
def x(images):
    return np.asarray(images(8, 4, 6, 3))


@pytest.fixture
def expected(x, weights):
    return np.einsum("nhwc,kchw->nk", x, weights) + np.arange(5)


@pytest.mark.parametrize("device", (None, "cpu"))
def test_images_go_in_channels_last_and_logits_come_out(device, module, x, expected):
    assert module.training
    teacher = torch_teacher(module, device=device)
    assert isinstance(teacher, Teacher)
    # Without dropout.
    assert not any(part.training for part in module.modules())
    before = x.copy()
    logits = teacher(x)
    assert isinstance(logits, np.ndarray) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(x, before)


def test_logits_are_float32_whatever_the_module_computes_in(torch, module, x, expected):
    class Double(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, images):
            return self.inner(images).double()

    logits = torch_teacher(Double())(x)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_module_may_have_no_parameters(torch, x):
    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    np.testing.assert_allclose(torch_teacher(Mean())(x), x.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("put", (jnp.asarray, lambda x: shard_batch(x, make_mesh())), ids=("array", "spread"))
def test_of_arrays_of_jax_the_logits_are_such_arrays(put, module, x, expected):
    images = put(x)
    logits = torch_teacher(module)(images)
    assert isinstance(logits, jax.Array) and logits.dtype == jnp.float32
    assert logits.sharding == images.sharding
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# Devices are counted when JAX starts, so it starts anew.
CODE = """
import jax, numpy as np, torch
from jax.sharding import NamedSharding, PartitionSpec as P
from levitax.train import make_mesh, torch_teacher


class Mean(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


mesh = make_mesh()
assert mesh.size == 4
x = np.random.default_rng(0).normal(size=(8, 4, 6, 3)).astype(np.float32)
images = jax.device_put(x, NamedSharding(mesh, P(*SPEC)))
logits = torch_teacher(Mean())(images)
assert logits.shape == (8, 3), logits.shape
np.testing.assert_allclose(logits, x.mean((1, 2)), rtol=1e-5, atol=1e-6)
assert logits.sharding.is_equivalent_to(NamedSharding(mesh, P(*SPEC[:1])), 2), logits.sharding
"""
SPECS = {"spread": ("data",), "of all axes": ("data", None, None, None), "whole on each": ()}


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_logits_lie_where_their_images_lie(spec):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    code = f"SPEC = {spec}\n{CODE}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


def test_without_pytorch_there_is_no_such_teacher(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"`levitax\.train\.torch_teacher` needs torch: install it"):
        torch_teacher(lambda images: images)
