"""Exported graphs compute the numbers of JAX, whatever order they store axes in."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax import export
from levitax.export._endpoint import endpoint
from levitax.export._onnx import onnx_model


TOLERANCE = 1e-5


class Steps(eqx.Module):
    """A model that applies functions one after the other and rescales each result to a mean square of 1."""

    steps: list[Callable[[Any], Any]]

    def __call__(self, image, state, *, key=None):
        x = image
        for step in self.steps:
            x = jnp.asarray(step(x), jnp.float32)
            x = x * jax.lax.rsqrt(jnp.square(x).mean() + 1e-3)
        return x, state


def convolution(x, kernel, **options):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=names, **options)[0]


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
    """Reshapes (6, 4) to (8, 3), for example."""
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
    return lambda x: convolution(x, kernel)


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
    while len(steps) < 8 and shape:
        step = STEPS[rng.integers(len(STEPS))](rng, shape)
        if step is None:
            continue
        after = jax.eval_shape(step, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
        if math.prod(after) < 3000:
            shape = after
            steps.append(step)
    return steps


# Functions of one image (6, 4, 3): operations of no other test, and cases that once failed.


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def heads_of_grouped_channels(x):
    channels = convolution(x, normal(3, 3, 1, 12), feature_group_count=3)
    first, second = jnp.split(channels.reshape(24, 2, 6), [2], axis=-1)
    return jnp.concatenate([second, first], axis=-1)


def heads_of_a_linear_map(x):
    query, keys, values = jnp.split((x.reshape(24, 3) @ normal(3, 16)).reshape(24, 2, 8), [2, 4], axis=-1)
    scores = jnp.matmul(query.transpose(1, 0, 2), keys.transpose(1, 2, 0))
    return jnp.matmul(jax.nn.softmax(scores), values.transpose(1, 0, 2))


def strided(x, row, column):
    return jax.lax.slice(x, (row, column, *[0] * (x.ndim - 2)), x.shape, (2, 3, *[1] * (x.ndim - 2)))


def softmax_by_another_name(x):
    @jax.jit
    def softmax(x):
        return jax.nn.softmax(x / 2, axis=-1)

    return softmax(x)


HALF = np.float32(0.5)

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "literals": lambda x: jax.lax.max(jax.lax.mul(jax.lax.add(x, HALF), HALF), HALF / 5),
    "arithmetic": lambda x: (x - 1) / (jnp.abs(x) + 1) * -x + x**3 + jnp.sqrt(jnp.abs(x)) + x**2.0,
    "powers": lambda x: jnp.power(jnp.abs(x) + 0.1, x) + jax.lax.rsqrt(jnp.abs(x) + 1),
    "exponentials": lambda x: jnp.exp(x) + jnp.log(jnp.abs(x) + 1) + jnp.expm1(x) + jnp.log1p(jnp.abs(x)),
    "bounds": lambda x: jnp.minimum(x, 0.2) + jnp.maximum(x, -0.3) + jnp.maximum(x, 0.0) + jnp.clip(x, -1.0, 1.0),
    "bounds of arrays": lambda x: jax.lax.clamp(-jnp.abs(x), 2 * x, jnp.ones_like(x)),
    "bounds that are computed": lambda x: jax.lax.clamp(x.min(), 2 * x, x.max()),
    "rounding": lambda x: jnp.floor(3 * x) + jnp.ceil(5 * x) + jnp.round(7 * x) + jnp.sign(x),
    "remainders": lambda x: jax.lax.rem(3 * x, jnp.abs(x) + 1),
    "waves": lambda x: jnp.sin(x) + jnp.cos(x) + jnp.tanh(x) + jax.nn.sigmoid(x),
    "error functions": lambda x: jax.lax.erf(x) + jax.lax.erfc(x / 2),
    "comparisons": lambda x: jnp.where((x < 0) | (x >= 1) & ~(x > 1.5), x, -x) + jnp.where(x <= 0, 1.0, x),
    "equality": lambda x: jnp.where(jnp.round(x) == 0, x, 2 * x) + jnp.where(jnp.round(x) != 1, x, 3 * x),
    "finite": lambda x: jnp.where(jnp.isfinite(x), x, 0.0),
    "activations": lambda x: jax.nn.gelu(x) + jax.nn.softplus(x) + jax.nn.elu(x) + jax.nn.silu(x) + jax.nn.mish(x),
    "cond": lambda x: jax.lax.cond(x.sum() > 0, lambda x: 2 * x, lambda x: -x, x),
    "integers": lambda x: (x * 10).astype(jnp.int32).reshape(24, 3) @ np.arange(12, dtype=np.int32).reshape(3, 4),
    "integers alone": lambda x: jnp.maximum((x * 10).astype(jnp.int32), 0).reshape(72) @ np.ones((72, 2), np.int32),
    "casts": lambda x: (x > 0).astype(jnp.float32) + (x * 10).astype(jnp.int32).astype(jnp.float32),
    "new axes reduced": lambda x: x[None].sum(0) + x[None].mean(0) + x[:, None].max(1) + x.sum(()),
    "extremes": lambda x: x.max(0) - x.min((0, 1), keepdims=True)[0],
    "bias of what repeats": lambda x: jnp.broadcast_to(x.reshape(-1) @ normal(72, 1), (5,)) + normal(5),
    "bias of repeated rows": lambda x: jnp.broadcast_to((x @ normal(3, 1))[..., 0], (7, 6, 4)) + normal(7, 1, 1),
    "outer": lambda x: jnp.outer(x[0, 0], x[0, :, 0]),
    "inner": lambda x: jnp.dot(x[0, 0], x[1, 1]),
    "weighted mean": lambda x: jax.nn.softmax(x[..., 0].reshape(24)) @ x.reshape(24, 3),
    "matrix and vector": lambda x: x @ x[0, 0],
    "vector and matrix": lambda x: jnp.einsum("k,ijk->ij", x[0, 0], x),
    "a map for each position": lambda x: jnp.einsum("tc,tcn->tn", x.reshape(24, 3), normal(24, 3, 5)),
    "weight from the left": lambda x: normal(5, 6) @ x.transpose(2, 0, 1),
    "a constant with batches": lambda x: jnp.einsum("tnc,tc->tn", normal(24, 5, 3), x.reshape(24, 3)),
    # Not `x[::2, ::3]`, which is a gather before jax 0.9.1.
    "strides": lambda x: strided(x, 0, 0) @ normal(3, 4) + strided(x, 1, 1) @ normal(3, 4),
    "convolution in groups": lambda x: convolution(x, normal(3, 3, 1, 6), feature_group_count=3) + normal(1, 1, 6),
    "dilated convolution": lambda x: convolution(x, normal(3, 3, 3, 4), rhs_dilation=(2, 1)),
    "heads of grouped channels": heads_of_grouped_channels,
    "heads of a linear map": heads_of_a_linear_map,
    "softmax by another name": softmax_by_another_name,
    "softmax of another axis": lambda x: jax.nn.softmax(x, axis=0),
    "pad": lambda x: jnp.pad(x, ((1, 0), (0, 2), (1, 1)), constant_values=0.5),
}


def check(steps: list[Callable[[Any], Any]]) -> None:
    import onnxruntime

    module = Steps(steps)
    predict = levitax.fuse(module, eqx.nn.State(module))
    served = endpoint(predict, {"image_size": (6, 4)})
    images = np.random.default_rng(0).normal(size=(3, 6, 4, 3)).astype(np.float32)
    results = np.asarray(jax.jit(jax.vmap(predict))(images))
    for batch, pointwise in ((3, True), (1, False), (None, True), (None, False)):
        given, expected = images[: batch or 3], results[: batch or 3]
        graph = onnx_model(served, batch, pointwise=pointwise).SerializeToString()
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        result = np.asarray(session.run(None, {"images": given})[0])
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    check([FUNCTIONS[name]])


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 30))])
def test_random_functions(seed):
    check(drawn_steps(seed))


class Named(eqx.Module):
    """A module whose arrays have names that the graph uses too."""

    t: Any
    t_1: Any
    tanh_1: Any
    images: Any
    output: Any

    def __call__(self, image, state, *, key=None):
        x = image.reshape(72) * self.images + self.output
        return (x + self.t) * jnp.tanh(x * self.t) * jnp.tanh(x * self.t_1) + jnp.tanh(x * self.tanh_1), state


def test_names_in_the_graph_are_unique(in_onnx_runtime, error, tmp_path):
    module = Named(*jax.random.normal(jax.random.key(0), (5, 72), jnp.float32))
    predict = levitax.fuse(module, eqx.nn.State(module))
    images = normal(3, 6, 4, 3)
    path = export.to_onnx(predict, tmp_path / "named.onnx", image_size=(6, 4))
    assert error(in_onnx_runtime(path, images), {"output": np.asarray(jax.vmap(predict)(images))}) < TOLERANCE
