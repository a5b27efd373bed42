"""Random functions as graphs: whatever order axes are stored in, the numbers are those of JAX."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.export._endpoint import endpoint
from levitax.export._onnx import onnx_model


TOLERANCE = 1e-5


class Steps(eqx.Module):
    """Functions of an array, one after the other, as a model. After each, the mean square is 1."""

    steps: list[Callable[[Any], Any]]

    def __call__(self, image, state, *, key=None):
        x = image
        for step in self.steps:
            x = step(x)
            x = x * jax.lax.rsqrt(jnp.square(x).mean() + 1e-3)
        return x, state


def transposed(rng, shape):
    order = tuple(rng.permutation(len(shape)).tolist())
    return lambda x: x.transpose(order)


def merged(rng, shape):
    if len(shape) < 2:
        return None
    axis = int(rng.integers(len(shape) - 1))
    return lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def split(rng, shape):
    axis = int(rng.integers(len(shape)))
    factors = [factor for factor in (2, 3, 4) if shape[axis] % factor == 0 and shape[axis] > factor]
    if not factors or len(shape) > 4:
        return None
    factor = int(rng.choice(factors))
    return lambda x: x.reshape(*x.shape[:axis], factor, -1, *x.shape[axis + 1 :])


def regrouped(rng, shape):
    """(6, 4) to (8, 3), and what else fits."""
    size = math.prod(shape)
    first = int(rng.choice([factor for factor in range(1, size + 1) if size % factor == 0]))
    return lambda x: x.reshape(first, -1)


def with_a_unit(rng, shape):
    axis = int(rng.integers(len(shape) + 1))
    return (lambda x: jnp.expand_dims(x, axis)) if len(shape) < 5 else None


def without_units(rng, shape):
    return jnp.squeeze


def repeated(rng, shape):
    axis = int(rng.integers(len(shape)))
    return lambda x: jnp.broadcast_to(jax.lax.slice_in_dim(x, 0, 1, 1, axis), x.shape)


def cut(rng, shape):
    axis, start, stride = int(rng.integers(len(shape))), int(rng.integers(2)), int(rng.integers(1, 3))
    return (lambda x: jax.lax.slice_in_dim(x, start, None, stride, axis)) if shape[axis] > 2 else None


def padded(rng, shape):
    widths = [tuple(rng.integers(0, 2, 2).tolist()) for _ in shape]
    return lambda x: jnp.pad(x, widths)


def averaged(rng, shape):
    axis = int(rng.integers(len(shape)))
    return (lambda x: x.mean(axis)) if len(shape) > 1 else None


def shifted(rng, shape):
    kept = rng.integers(0, 2, len(shape)).astype(bool)
    constant = rng.normal(size=[size if keep else 1 for size, keep in zip(shape, kept, strict=True)])
    return lambda x: x + constant.astype(np.float32)


def mapped(rng, shape):
    weight = (rng.normal(size=(shape[-1], 4)) / math.sqrt(shape[-1])).astype(np.float32)
    return lambda x: jnp.matmul(x, weight)


def convolved(rng, shape):
    if len(shape) != 3:
        return None
    kernel = rng.normal(size=(3, 3, shape[-1], 6)).astype(np.float32)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lambda x: jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=dimensions)[0]


def attended(rng, shape):
    if len(shape) != 3:
        return None
    return lambda x: jnp.matmul(jax.nn.softmax(jnp.matmul(x, x.swapaxes(1, 2)), axis=-1), x)


def added_to_itself(rng, shape):
    if len(shape) < 2:
        return None
    return lambda x: x + jnp.tanh(x.reshape(-1, x.shape[-1]).T).T.reshape(x.shape)


STEPS = (
    transposed, merged, split, regrouped, with_a_unit, without_units, repeated, cut, padded, averaged, shifted, mapped,
    convolved, attended, added_to_itself,
)  # fmt: skip


def drawn_steps(seed: int) -> list[Callable[[Any], Any]]:
    rng = np.random.default_rng(seed)
    shape, steps = (6, 4, 3), []
    while len(steps) < 8:
        step = STEPS[rng.integers(len(STEPS))](rng, shape)
        if step is not None and shape:
            after = jax.eval_shape(step, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
            if math.prod(after) < 3000:
                shape = after
                steps.append(step)
        elif not shape:
            break
    return steps


@pytest.mark.parametrize("seed", range(24))
def test_random_functions(seed):
    import onnxruntime

    module = Steps(drawn_steps(seed))
    predict = levitax.fuse(module, eqx.nn.State(module))
    served = endpoint(predict, {"image_size": (6, 4)})
    images = np.random.default_rng(seed).normal(size=(3, 6, 4, 3)).astype(np.float32)
    for batch, pointwise in ((3, True), (3, False), (1, True), (None, True), (None, False)):
        given = images[: batch or 3]
        graph = onnx_model(served, batch, pointwise=pointwise).SerializeToString()
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        result = np.asarray(session.run(None, {"images": given})[0])
        expected = np.asarray(jax.jit(jax.vmap(predict))(given))
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)
