import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax.nn import (
    Attention,
    AttentionBias,
    BatchNorm,
    Block,
    ConvNorm,
    DistilledHead,
    DistilledLogits,
    DropPath,
    LinearNorm,
    MLP,
    NormLinear,
    Stage,
    Stem,
)


def stateful(layer, *args, **keywords):
    return eqx.nn.make_with_state(layer)(*args, **{"key": jax.random.key(0)} | keywords)


def is_uniform(array, bound):
    """Whether the values are spread evenly within the bound and reach it."""
    array = np.asarray(array)
    return 0.998 * bound < np.abs(array).max() <= bound and abs(array.std() / (bound / math.sqrt(3)) - 1) < 0.02


# Initialisation.


def test_linear_maps_start_uniform_as_in_pytorch(key):
    layer, _ = stateful(LinearNorm, 64, 300)
    assert layer.bias is None and is_uniform(layer.weight, 1 / 8)
    layer, _ = stateful(LinearNorm, 16, 5000, use_bias=True, use_norm=False)
    assert is_uniform(layer.weight, 1 / 4) and is_uniform(layer.bias, 1 / 4)


def test_convolutions_start_uniform_as_in_pytorch():
    layer, _ = stateful(ConvNorm, 4, 400)
    assert layer.bias is None and is_uniform(layer.weight, 1 / 6)
    layer, _ = stateful(ConvNorm, 1, 5000, use_bias=True, use_norm=False)
    assert is_uniform(layer.weight, 1 / 3) and is_uniform(layer.bias, 1 / 3)


def test_classifiers_start_normal_and_not_cut_at_two_sigma():
    layer, _ = stateful(NormLinear, 256, 200)
    weight = np.asarray(layer.weight)
    assert abs(weight.std() / 0.02 - 1) < 0.02 and abs(weight.mean()) < 5e-4
    assert abs((np.abs(weight) > 0.04).mean() - 0.0455) < 0.005
    assert (layer.bias == 0).all()


def test_classifiers_without_normalisation_start_uniform():
    layer, _ = stateful(NormLinear, 16, 5000, use_norm=False)
    assert layer.norm is None and is_uniform(layer.weight, 1 / 4) and is_uniform(layer.bias, 1 / 4)


def test_both_heads_start_differently():
    head, _ = stateful(DistilledHead, 8, 5)
    assert not np.allclose(head.classification.weight, head.distillation.weight)


def nodes(tree, kind):
    is_kind = lambda node: isinstance(node, kind)
    return [node for node in jax.tree.leaves(tree, is_leaf=is_kind) if is_kind(node)]


def test_in_a_fresh_model_only_residual_branches_end_in_zero(make):
    model, _ = make(depth=2)
    blocks = [block for stage in model.stages for block in stage.blocks]
    ends = [block.mlp.contract.norm for block in blocks]
    ends += [block.attention.project_out.norm for block in blocks if block.attention.stride == 1]
    norms = nodes(model, BatchNorm)
    assert len(ends) == 9 and all((norm.weight == 0).all() for norm in ends)
    assert sum(bool((norm.weight == 1).all()) for norm in norms) == len(norms) - len(ends)
    assert all((norm.bias == 0).all() for norm in norms)


def test_the_papers_network_has_biases_in_its_heads_only(make):
    model, _ = make()
    assert all(layer.bias is None for layer in nodes(model, (LinearNorm, ConvNorm)))
    assert all((head.bias == 0).all() for head in nodes(model, NormLinear))
    assert all((bias.table == 0).all() and bias.scale == 1 for bias in nodes(model, AttentionBias))


@pytest.mark.slow
def test_the_vit_pytorch_network_starts_as_there(make):
    model, _ = make(network="vit_pytorch", image_size=128, heads=4)
    tables = np.concatenate([np.asarray(bias.table).ravel() for bias in nodes(model, AttentionBias)])
    assert abs(tables.std() - 1) < 0.03 and abs(tables.mean()) < 0.03 and np.abs(tables).max() > 3
    assert all(bias.scale == pytest.approx(math.sqrt(8)) for bias in nodes(model, AttentionBias))
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert all((block.attention.project_out.norm.weight == 0).all() for block in blocks)
    assert all((block.attention.project_out.bias != 0).any() for block in blocks)
    for part in (model.stem, model.head, *(block.mlp for block in blocks)):
        assert nodes(part, BatchNorm) == []
        assert all((layer.bias != 0).any() for layer in nodes(part, (LinearNorm, ConvNorm, NormLinear)))


# The computation of each layer.


def convolve(x, weight, bias, stride):
    """Convolves by loops, with one pixel of padding on every side, as PyTorch's `padding=1`."""
    height, width, _ = x.shape
    x = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    y = np.zeros((-(-height // stride), -(-width // stride), len(weight)))
    for row, column in np.ndindex(*y.shape[:2]):
        patch = x[row * stride : row * stride + 3, column * stride : column * stride + 3]
        y[row, column] = np.einsum("ijc,ocij->o", patch, weight)
    return y + np.asarray(bias)


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5), (4, 7), (1, 2)])
def test_convolutions_equal_loops(height, width, stride):
    layer, state = stateful(ConvNorm, 2, 3, stride=stride, use_bias=True, use_norm=False)
    x = np.random.default_rng(0).normal(size=(height, width, 2)).astype(np.float32)
    y, _ = layer(jnp.asarray(x), state)
    np.testing.assert_allclose(y, convolve(x, layer.weight, layer.bias, stride), rtol=1e-5, atol=1e-5)


def test_a_kernel_without_a_centre_is_refused():
    with pytest.raises(ValueError, match=r"`kernel_size` is 4; expected an odd size"):
        stateful(ConvNorm, 2, 3, kernel_size=4)


def normalise(norm, state, x):
    running = norm.running(state)
    x = (x - np.asarray(running.mean)) / np.sqrt(np.asarray(running.var, np.float64) + 1e-5)
    return x * np.asarray(norm.weight) + np.asarray(norm.bias)


def test_linear_norm_normalises_after_the_map(randomise):
    layer, state = eqx.nn.inference_mode(randomise(*stateful(LinearNorm, 4, 6, use_bias=True)))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = normalise(layer.norm, state, x @ np.asarray(layer.weight).T + np.asarray(layer.bias))
    np.testing.assert_allclose(layer(jnp.asarray(x), state)[0], expected, rtol=1e-5, atol=1e-5)


def test_norm_linear_normalises_before_the_map(randomise):
    layer, state = eqx.nn.inference_mode(randomise(*stateful(NormLinear, 4, 6)))
    x = np.random.default_rng(0).normal(size=4).astype(np.float32)
    expected = normalise(layer.norm, state, x) @ np.asarray(layer.weight).T + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(jnp.asarray(x), state)[0], expected, rtol=1e-5, atol=1e-6)


def test_mlp_activates_between_its_maps_and_nowhere_else(randomise):
    mlp, state = eqx.nn.inference_mode(randomise(*stateful(MLP, 4, 12)))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    hidden = normalise(mlp.expand.norm, state, x @ np.asarray(mlp.expand.weight).T)
    hidden = hidden * np.clip(hidden + 3, 0, 6) / 6
    expected = normalise(mlp.contract.norm, state, hidden @ np.asarray(mlp.contract.weight).T)
    np.testing.assert_allclose(mlp(jnp.asarray(x), state)[0], expected, rtol=1e-5, atol=1e-5)


def test_mlp_drops_after_the_activation_and_after_the_second_map(key):
    mlp, state = stateful(MLP, 50, 60, use_norm=False, dropout=0.5)
    x = jax.random.normal(key, (20, 50))
    dropped, _ = mlp(x, state, key=key)
    exact, _ = eqx.nn.inference_mode(mlp)(x, state)
    assert 0.4 < (dropped == 0).mean() < 0.6 and not (exact == 0).any()
    kept = dropped != 0
    assert not np.allclose(dropped[kept], 2 * exact[kept], rtol=1e-2)


@pytest.mark.parametrize("halvings", (2, 3, 4))
@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 50), (16, 31)])
def test_each_convolution_of_the_stem_halves_the_image_and_rounds_up(halvings, height, width):
    widths = [4, 6, 8, 10][:halvings]
    stem, state = stateful(Stem, 3, widths)
    y, _ = eqx.filter_eval_shape(eqx.nn.inference_mode(stem), jnp.ones((height, width, 3)), state)
    assert y.shape == (-(-height // 2**halvings), -(-width // 2**halvings), widths[-1])


def test_the_stem_activates_between_its_convolutions_and_not_after_the_last():
    stem, state = stateful(Stem, 1, (2, 3), activation=jax.nn.relu, use_norm=False)
    x = np.random.default_rng(0).normal(size=(6, 7, 1)).astype(np.float32)
    first, second = stem.convolutions
    hidden = np.maximum(convolve(x, first.weight, first.bias, 2), 0)
    expected = convolve(hidden, second.weight, second.bias, 2)
    assert (expected < 0).any()
    np.testing.assert_allclose(stem(jnp.asarray(x), state)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", (0.25, 0.9))
def test_drop_path_drops_all_or_nothing_and_keeps_the_expectation(rate):
    x = jnp.array([[1.0, -2.0], [3.0, 4.0]])
    draws = 4000
    y = jax.vmap(lambda key: DropPath(rate)(x, key=key))(jax.random.split(jax.random.key(0), draws))
    dropped = (y == 0).all((1, 2))
    np.testing.assert_allclose(y[~dropped], np.broadcast_to(x / (1 - rate), y[~dropped].shape), rtol=1e-6)
    four_sigma = 4 * math.sqrt(rate * (1 - rate) / draws)
    assert abs(dropped.mean() - rate) < four_sigma


def test_drop_path_changes_nothing_in_inference_and_at_rate_zero(key):
    x = jnp.array([1.0, -2.0])
    for layer in (DropPath(0.5, inference=True), eqx.nn.inference_mode(DropPath(0.5)), DropPath(0.0)):
        assert (layer(x) == x).all() and (layer(x, key=key) == x).all()


def block(randomise, stride=1, rate=0.0):
    def make(*, key):
        sizes = {"heads": 2, "key_dim": 4, "value_dim": 6, "key": key}
        attention = Attention(8, (3, 4), stride=stride, out_dim=8 * stride, **sizes)
        return Block(attention, MLP(8 * stride, 16, key=key), DropPath(rate))

    return randomise(*stateful(make))


@pytest.mark.parametrize("stride", (1, 2))
def test_a_block_has_residual_connections_except_around_a_shrinking_attention(stride, randomise, key):
    layer, state = eqx.nn.inference_mode(block(randomise, stride))
    x = jax.random.normal(key, (12, 8))
    y, _ = layer.attention(x, state)
    y = x + y if stride == 1 else y
    expected = y + layer.mlp(y, state)[0]
    np.testing.assert_allclose(layer(x, state)[0], expected, rtol=1e-6)


# At this rate every residual branch is dropped.
@pytest.mark.parametrize("stride", (1, 2))
def test_a_block_drops_its_residual_branches_and_never_a_shrinking_attention(stride, randomise, key):
    layer, state = block(randomise, stride, rate=1 - 1e-7)
    layer = eqx.tree_at(lambda layer: layer.drop_path.inference, eqx.nn.inference_mode(layer), False)
    x = jax.random.normal(key, (12, 8))
    expected = x if stride == 1 else layer.attention(x, state)[0]
    np.testing.assert_array_equal(layer(x, state, key=key)[0], expected)


def test_a_block_drops_each_branch_on_its_own(randomise, key):
    layer, state = block(randomise, rate=0.5)
    layer = eqx.tree_at(lambda layer: layer.drop_path.inference, eqx.nn.inference_mode(layer), False)
    x = jax.random.normal(key, (12, 8))
    y = jax.vmap(lambda key: layer(x, state, key=key)[0])(jax.random.split(key, 40))
    assert len({np.asarray(one).round(3).tobytes() for one in y}) == 4


def test_a_stage_runs_its_blocks_in_order(randomise, key):
    def make(*, key):
        first = Attention(8, (3, 4), heads=2, key_dim=4, value_dim=6, out_dim=10, stride=2, key=key)
        second = Attention(10, (2, 2), heads=2, key_dim=4, value_dim=6, key=key)
        return Stage([Block(part, MLP(10, 16, key=key), DropPath()) for part in (first, second)])

    stage, state = eqx.nn.inference_mode(randomise(*stateful(make)))
    x = jax.random.normal(key, (12, 8))
    expected, _ = stage.blocks[0](x, state)
    expected, _ = stage.blocks[1](expected, state)
    np.testing.assert_array_equal(stage(x, state)[0], expected)


def test_two_heads_are_a_pair_in_training_and_their_mean_in_inference(randomise, key):
    head, state = randomise(*stateful(DistilledHead, 8, 5))
    x = jax.random.normal(key, (6, 8))
    pair, _ = levitax.batched(head)(x, state)
    assert isinstance(pair, DistilledLogits) and pair.classification.shape == pair.distillation.shape == (6, 5)
    assert not np.allclose(pair.classification, pair.distillation)
    head = eqx.nn.inference_mode(head)
    mean, _ = levitax.batched(head)(x, state)
    both = [levitax.batched(part)(x, state)[0] for part in (head.classification, head.distillation)]
    np.testing.assert_allclose(mean, (both[0] + both[1]) / 2, rtol=1e-6, atol=1e-7)
