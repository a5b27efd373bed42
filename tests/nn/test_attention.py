import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.nn import Attention, AttentionBias


GRIDS = ((4, 4), (3, 5), (5, 4), (1, 3), (7, 7))


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("grid", GRIDS)
def test_biases_are_looked_up_by_absolute_offset(grid, stride, key):
    rows, columns = grid
    bias = AttentionBias(2, grid, stride=stride, scale=3.0, std=1.0, key=key)
    flat = np.asarray(bias.table).reshape(2, -1)
    tokens, per_row = rows * columns, -(-columns // stride)
    expected = np.zeros((2, -(-rows // stride) * per_row, tokens))
    for query, token in np.ndindex(*expected.shape[1:]):
        (y1, x1), (y2, x2) = divmod(query, per_row), divmod(token, columns)
        expected[:, query, token] = 3 * flat[:, abs(y1 * stride - y2) * columns + abs(x1 * stride - x2)]
    np.testing.assert_allclose(bias(), expected, rtol=1e-6)


def make(randomise, grid=(3, 4), **keywords):
    sizes = {"heads": 2, "key_dim": 4, "value_dim": 6, "key": jax.random.key(0)} | keywords
    attention, state = eqx.nn.make_with_state(Attention)(10, grid, **sizes)
    return eqx.nn.inference_mode(randomise(attention, state))


def linear_norm(layer, state, x):
    mean, var = (np.asarray(array, np.float64) for array in layer.norm.running(state))
    x = x @ np.asarray(layer.weight, np.float64).T
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(layer.norm.weight) + np.asarray(layer.norm.bias)


@pytest.mark.parametrize(("stride", "grid"), [(1, (3, 4)), (2, (3, 4)), (2, (5, 5))])
def test_attention_equals_loops_over_heads_queries_and_tokens(stride, grid, randomise):
    rows, columns = grid
    attention, state = make(randomise, grid, stride=stride, out_dim=12 if stride == 2 else None)
    x = np.random.default_rng(0).normal(size=(rows * columns, 10)).astype(np.float32)
    table = np.asarray(attention.bias.table, np.float64)

    # The channels of each head are its query, key and value, in this order.
    positions = [(y, x) for y in range(0, rows, stride) for x in range(0, columns, stride)]
    if stride == 1:
        channels = linear_norm(attention.project_in.linear, state, x).reshape(-1, 2, 14)
        query, keys, values = channels[..., :4], channels[..., 4:8], channels[..., 8:]
    else:
        kept = np.stack([x[row * columns + column] for row, column in positions])
        query = linear_norm(attention.project_in.query, state, kept).reshape(-1, 2, 4)
        channels = linear_norm(attention.project_in.key_value, state, x).reshape(-1, 2, 10)
        keys, values = channels[..., :4], channels[..., 4:]

    mixed = np.zeros((len(positions), 2, 6))
    weights = np.zeros((2, len(positions), rows * columns))
    for head in range(2):
        for index, (row, column) in enumerate(positions):
            scores = [
                query[index, head] @ keys[token, head] / np.sqrt(4)
                + table[head, abs(row - token // columns), abs(column - token % columns)]
                for token in range(rows * columns)
            ]
            weights[head, index] = np.exp(scores) / np.exp(scores).sum()
            mixed[index, head] = weights[head, index] @ values[:, head]
    mixed = mixed.reshape(len(positions), -1)
    expected = linear_norm(attention.project_out, state, mixed * np.clip(mixed + 3, 0, 6) / 6)

    np.testing.assert_allclose(attention.weights(jnp.asarray(x), state), weights, rtol=1e-4, atol=1e-6)
    y, _ = eqx.filter_jit(attention)(jnp.asarray(x), state)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_weights_are_float32_and_add_up_to_one(dtype, randomise):
    attention, state = make(randomise)
    weights = attention.weights(jax.random.normal(jax.random.key(1), (12, 10), dtype), state)
    assert weights.shape == (2, 12, 12) and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_bfloat16_goes_in_and_out(randomise):
    attention, state = make(randomise)
    assert attention(jnp.ones((12, 10), jnp.bfloat16), state)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(("grid", "queries"), [((4, 4), 4), ((5, 4), 6), ((3, 5), 6), ((1, 3), 2), ((7, 7), 16)])
def test_a_stride_of_two_halves_the_grid_and_rounds_up(grid, queries, randomise):
    attention, state = make(randomise, grid, stride=2, out_dim=12)
    x = jnp.ones((grid[0] * grid[1], 10))
    assert eqx.filter_eval_shape(attention, x, state)[0].shape == (queries, 12)
    assert eqx.filter_eval_shape(attention.weights, x, state).shape == (2, queries, grid[0] * grid[1])


@pytest.mark.parametrize(
    ("keywords", "zero"),
    [({}, True), ({"stride": 2}, False), ({"zero_init": False}, False), ({"stride": 2, "zero_init": True}, True)],
)
def test_it_starts_at_zero_by_default_except_with_a_stride(keywords, zero, key):
    attention, state = eqx.nn.make_with_state(Attention)(
        10, (3, 4), heads=2, key_dim=4, value_dim=6, **keywords, key=key
    )
    y, _ = jax.jit(levitax.batched(attention))(jax.random.normal(key, (3, 12, 10)), state)
    assert (y == 0).all() == zero


def test_dropout_follows_the_key_and_is_off_in_inference(randomise, key):
    inference, state = make(randomise, dropout=0.5)
    training = eqx.tree_at(lambda attention: attention.dropout.inference, inference, False)
    without, _ = make(randomise, dropout=0.0)
    x = jax.random.normal(key, (12, 10))
    first, again, other = (training(x, state, key=jax.random.key(seed))[0] for seed in (0, 0, 1))
    assert (first == again).all() and not (first == other).all()
    # Dropout acts on half of the output, and on some of the attention weights.
    assert 0.2 < (first == 0).mean() < 0.8
    exact = inference(x, state)[0]
    kept = first != 0
    assert not np.allclose(first[kept], 2 * exact[kept], rtol=1e-2)
    assert inference.dropout.p != without.dropout.p and (inference(x, state, key=key)[0] == exact).all()
