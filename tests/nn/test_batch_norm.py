import itertools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.nn import BatchNorm, RunningStatistics
from tests.equality import tree_equal


MOMENTUM, EPS = 0.1, 1e-5


def make(channels=3, *, weight=(0.5, -1.0, 2.0), bias=(0.1, 0.0, -3.0), **keywords):
    """Makes a layer with the given weight and bias, and its state."""
    layer, state = eqx.nn.make_with_state(BatchNorm)(channels, **keywords)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (jnp.float32(weight), jnp.float32(bias))), state


def draw(*shape, offset=0.0, seed=0):
    """Draws channels of different spread about `offset`."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * np.array([0.5, 1.0, 3.0]) + offset).astype(np.float32)


def in_pytorch(layer, x, mean, var):
    """Runs `torch.nn.BatchNorm1d` in float64 on `x` `(..., channels)`; returns output, running mean and variance."""
    x, weight, bias = (np.asarray(array, np.float64) for array in (x, layer.weight, layer.bias))
    x = x.reshape(-1, x.shape[-1])
    y = (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * weight + bias
    mean = (1 - MOMENTUM) * mean + MOMENTUM * x.mean(0)
    var = (1 - MOMENTUM) * var + MOMENTUM * x.var(0, ddof=1)
    return y, mean, var


# The means are up to 2, 20 and 2,000 times the smallest spread.
@pytest.mark.parametrize("offset", (0.0, 1.0, 10.0, 1000.0))
def test_training_follows_pytorch_for_several_steps(offset):
    layer, state = make()
    mean, var = np.zeros(3), np.ones(3)
    step = jax.jit(levitax.batched(layer))
    # A float32 mean can be off by half its last bit.
    tolerance = 1e-5 + np.finfo(np.float32).eps * offset / 0.5
    for seed in range(4):
        x = draw(6, 7, 3, offset=offset, seed=seed)
        y, state = step(jnp.asarray(x), state)
        expected, mean, var = in_pytorch(layer, x, mean, var)
        running = layer.running(state)
        np.testing.assert_allclose(y.reshape(-1, 3), expected, rtol=0, atol=tolerance * np.abs(expected).max())
        np.testing.assert_allclose(running.mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(running.var, var, rtol=tolerance)


ROWS, COLUMNS, CHANNELS = 7, 8, 3

# Functions that set outliers in a batch of maps, given a random generator.
OUTLIERS = {
    "the first token": lambda x, far, rng: x[:, 0, 0].fill(far),
    "the first token of one image": lambda x, far, rng: x[rng.integers(len(x)), 0, 0].fill(far),
    "the last token": lambda x, far, rng: x[:, -1, -1].fill(far),
    "a few tokens": lambda x, far, rng: np.put(x, rng.integers(x.size, size=5), far),
    "a row": lambda x, far, rng: x[:, rng.integers(ROWS)].fill(far),
    "a column": lambda x, far, rng: x[:, :, rng.integers(COLUMNS)].fill(far),
    "every seventh token": lambda x, far, rng: x.reshape(len(x), -1, CHANNELS)[:, ::7].fill(far),
    "a corner": lambda x, far, rng: x[:, :2, :2].fill(far),
    "a border": lambda x, far, rng: (x[:, [0, -1]].fill(far), x.__setitem__(np.s_[:, :, [0, -1]], far)),
    "an image": lambda x, far, rng: x[rng.integers(len(x))].fill(far),
    "all images but one": lambda x, far, rng: x[1:].fill(far),
    "nowhere": lambda x, far, rng: None,
}


@pytest.mark.parametrize("where", OUTLIERS)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_statistics_are_exact_wherever_outliers_stand(where, dtype):
    layer, state = make(weight=(1.0, 1.0, 1.0), bias=(0.0, 0.0, 0.0), momentum=1.0)
    step = jax.jit(levitax.batched(layer))
    rng = np.random.default_rng(0)
    for far, offset, spread in itertools.product((3.0, 1e3, -1e6), (0.0, 10.0, 1e3), (0.0, 1.0)):
        x = (spread * rng.normal(size=(5, ROWS, COLUMNS, CHANNELS)) + offset).astype(np.float32)
        OUTLIERS[where](x, far, rng)
        x = jnp.asarray(x, dtype)
        y, new = step(x, state)
        exact = np.asarray(x, np.float64).reshape(-1, CHANNELS)
        mean, var = exact.mean(0), exact.var(0)
        expected = (exact - mean) / np.sqrt(var + EPS)
        close = partial(np.testing.assert_allclose, rtol=0, err_msg=f"{far}, {offset}, {spread}")
        rounded = 0 if dtype == "float32" else 2**-8
        close(np.asarray(y, np.float64).reshape(-1, CHANNELS), expected, atol=(1e-5 + rounded) * abs(expected).max())
        running = layer.running(new)
        close(running.mean, mean, atol=1e-6 * abs(exact).max())
        # The running variance starts at 1, so its absolute error is that of the last digit of 1.
        unbiased = exact.var(0, ddof=1)
        close(running.var, unbiased, atol=2e-7 + 1e-5 * unbiased.max())


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("value", (1000.0, 1001.7, -7e4, 0.1))
def test_a_constant_channel_becomes_the_bias(value, dtype):
    # If a mean is rounded differently in two places, the difference is multiplied by 1 / sqrt(eps), 316. This once
    # happened for some shapes only.
    for shape in ((8, 3136, 16), (3, 49, 5), (7, 1, 16)):
        layer, state = eqx.nn.make_with_state(BatchNorm)(shape[-1])
        y, _ = jax.jit(levitax.batched(layer))(jnp.full(shape, value, dtype), state)
        np.testing.assert_allclose(np.asarray(y, np.float32), 0, atol=1e-6)


def test_eps_and_momentum_are_settable():
    layer, state = make(eps=0.1, momentum=0.3, axis_name=None)
    x = draw(50, 3)
    y, state = layer(jnp.asarray(x), state)
    normalised = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1)
    np.testing.assert_allclose(y, normalised * np.asarray(layer.weight) + np.asarray(layer.bias), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.running(state).mean, 0.3 * x.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero_init", (False, True))
def test_it_starts_as_in_pytorch(zero_init):
    layer, state = eqx.nn.make_with_state(BatchNorm)(3, zero_init=zero_init)
    running = layer.running(state)
    assert (layer.weight == (0 if zero_init else 1)).all() and (layer.bias == 0).all()
    assert (running.mean == 0).all() and (running.var == 1).all()
    assert (layer.eps, layer.momentum) == (EPS, MOMENTUM)


def test_bfloat16_goes_in_and_out_and_statistics_stay_float32(error):
    layer, state = make()
    # bfloat16 cannot represent this mean: statistics summed in bfloat16 would be far off.
    x = jnp.asarray(draw(64, 16, 3, offset=3.3), jnp.bfloat16)
    y, new = levitax.batched(layer)(x, state)
    exact, expected = levitax.batched(layer)(x.astype(jnp.float32), state)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}
    assert error(new, expected) < 1e-6
    assert error(y, exact) < 2**-8


def test_the_batch_may_be_inside_x_where_there_is_no_axis():
    x = jnp.asarray(draw(6, 7, 3))
    layer, state = make()
    expected = levitax.batched(layer)(x, state)
    layer, state = make(axis_name=None)
    y, state = layer(x, state)
    np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_batch_may_be_spread_over_two_axes():
    x = jnp.asarray(draw(2, 3, 7, 3))
    layer, state = make()
    expected, expected_state = levitax.batched(layer)(x.reshape(6, 7, 3), state)
    layer, state = make(axis_name=("outer", "inner"))
    axes: dict[str, Any] = {"in_axes": (0, None), "out_axes": (0, None)}
    y, state = jax.vmap(jax.vmap(layer, **axes, axis_name="inner"), **axes, axis_name="outer")(x, state)
    np.testing.assert_allclose(y.reshape(6, 7, 3), expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_single_value_has_no_variance():
    layer, state = make(axis_name=None)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(jnp.ones((1, 3)), state)


@pytest.fixture
def trained():
    """A layer in inference mode, with statistics unlike those of any batch."""
    layer, state = make(inference=True)
    return layer, state.set(layer.statistics, RunningStatistics(jnp.float32([0.3, -1, 2]), jnp.float32([0.1, 2, 5])))


def test_inference_uses_the_running_statistics_and_leaves_them(trained):
    layer, state = trained
    x = draw(7, 3)
    y, new = layer(jnp.asarray(x), state)
    expected = (x - [0.3, -1, 2]) / np.sqrt(np.array([0.1, 2, 5]) + EPS) * np.asarray(layer.weight)
    np.testing.assert_allclose(y, expected + np.asarray(layer.bias), rtol=1e-5, atol=1e-6)
    assert tree_equal(new, state)


def test_affine_equals_inference(trained):
    layer, state = trained
    x = jnp.asarray(draw(7, 3))
    affine = layer.affine(state)
    np.testing.assert_allclose(affine(x, state)[0], layer(x, state)[0], rtol=1e-5, atol=1e-5)
    assert affine(x.astype(jnp.bfloat16), state)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("offset", (0.0, 1.0))
def test_gradients_of_training_are_the_analytic_ones(offset):
    layer, state = make()
    x = draw(6, 7, 3, offset=offset)
    cotangent = draw(6, 7, 3, seed=9)

    def loss(layer, x):
        y, _ = levitax.batched(layer)(x, state)
        return (y * cotangent).sum()

    by_x = jax.grad(loss, argnums=1)(layer, jnp.asarray(x))
    by_layer = eqx.filter_grad(loss)(layer, jnp.asarray(x))
    x, cotangent = x.reshape(-1, 3).astype(np.float64), cotangent.reshape(-1, 3).astype(np.float64)
    scale = 1 / np.sqrt(x.var(0) + EPS)
    normalised = (x - x.mean(0)) * scale
    inner = cotangent - cotangent.mean(0) - normalised * (cotangent * normalised).mean(0)
    np.testing.assert_allclose(by_x.reshape(-1, 3), inner * scale * np.asarray(layer.weight), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_layer.weight, (cotangent * normalised).sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_layer.bias, cotangent.sum(0), rtol=1e-4, atol=1e-5)


def test_new_statistics_send_no_gradient_to_the_input():
    layer, state = make()

    def loss(x):
        running = layer.running(levitax.batched(layer)(x, state)[1])
        return running.mean.sum() + running.var.sum()

    assert (jax.grad(loss)(jnp.asarray(draw(6, 7, 3))) == 0).all()


def test_outputs_of_training_send_no_gradient_to_the_running_statistics():
    layer, state = make()
    x = jnp.asarray(draw(6, 7, 3))

    def loss(state):
        y, _ = levitax.batched(layer)(x, state)
        return (y * y * y).sum()

    for gradient in jax.tree.leaves(eqx.filter_grad(loss)(state)):
        np.testing.assert_array_equal(gradient, np.zeros(3))
