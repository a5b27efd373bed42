import os
import subprocess
import sys
from types import SimpleNamespace

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
    """A linear layer for images `(3, 4, 6)`, channels first, after dropout."""
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
    # The teacher switches dropout off.
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
def test_for_jax_arrays_the_logits_are_jax_arrays(put, module, x, expected):
    images = put(x)
    logits = torch_teacher(module)(images)
    assert isinstance(logits, jax.Array) and logits.dtype == jnp.float32
    assert logits.sharding == images.sharding
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


# JAX sets the number of devices when it starts, so this runs in a new process.
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
def test_logits_have_the_sharding_of_their_images(spec):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    code = f"SPEC = {spec}\n{CODE}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def returning(torch):
    """Makes a teacher from a module that applies a function to the mean pixels, `(batch, 3)`."""

    def returning(function):
        class Module(torch.nn.Module):
            def forward(self, images):
                return function(images.mean((2, 3)))

        return torch_teacher(Module())

    return returning


def test_the_logits_of_an_output_are_taken(returning, x):
    # The models of transformers return such an output.
    teacher = returning(lambda means: SimpleNamespace(logits=means, hidden_states=None))
    np.testing.assert_allclose(teacher(x), x.mean((1, 2)), rtol=1e-5, atol=1e-6)


OUTPUTS = {
    "a tuple": (lambda means: (means, means), TypeError, "returned a `tuple`; expected logits"),
    "a dictionary": (lambda means: {"logits": means}, TypeError, "returned a `dict`; expected logits"),
    "nothing": (lambda means: None, TypeError, "returned a `NoneType`"),
    "classes": (lambda means: means.argmax(-1), TypeError, r"shape \(8,\) and dtype int64"),
    "integers": (lambda means: means.int(), TypeError, r"dtype int32; expected floating-point .* \(8, classes\)"),
    "a map": (lambda means: means[:, :, None, None], ValueError, r"shape \(8, 3, 1, 1\) .* expected .* \(8, classes\)"),
    "one image": (lambda means: means[:1], ValueError, r"shape \(1, 3\) .* expected .* \(8, classes\)"),
    "NaN": (
        lambda means: means.index_fill(0, means.new_tensor([2, 5]).long(), float("nan")),
        ValueError,
        r"\[2\]` holds nan, and 1 more",
    ),
    "overflow": (
        lambda means: (1e5 * means.abs() + 1e6).half(),
        ValueError,
        r"\[0\]` holds inf, and 7 more .* in float32",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("function", "kind", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_are_not_logits_for_each_image_and_class_are_refused(function, kind, message, returning, x):
    teacher = returning(function)
    for images in (x, jnp.asarray(x)):
        with pytest.raises(kind, match=message):
            teacher(images)


@pytest.mark.usefixtures("unchecked")
def test_images_that_a_teacher_does_not_take_are_refused(torch, module, x):
    teacher = torch_teacher(module)
    for images, kind, message in (
        (np.zeros(x.shape, np.uint8), TypeError, r"`images` has .* dtype uint8; expected floating.*normalise"),
        (x[0], ValueError, r"`images` has shape \(4, 6, 3\)"),
        (x[:0], ValueError, "`images` is empty"),
        (x[:, :, :, :1], ValueError, r"failed on images of shape \(4, 6, 1\).*number of channels"),
        (np.where(x > 0, np.nan, x), ValueError, r"\[0\]` holds nan"),
    ):
        for convert in (np.asarray, jnp.asarray):
            with pytest.raises(kind, match=message):
                teacher(convert(images))
    with pytest.raises(TypeError, match=r"under a transformation .*`jax\.jit`.* before"):
        jax.jit(teacher)(x)
    with pytest.raises(TypeError, match=r"`module` is of type `function`; expected a `torch\.nn\.Module`"):
        torch_teacher(lambda images: images)


@pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float64"))
def test_images_may_be_of_any_floating_point(dtype, module, x, expected):
    images = x.astype(jnp.dtype(dtype))
    np.testing.assert_allclose(torch_teacher(module)(images), expected, rtol=0.1, atol=0.5)


def test_without_pytorch_a_teacher_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"`levitax\.train\.torch_teacher` needs torch: install it"):
        torch_teacher(lambda images: images)
