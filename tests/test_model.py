import copy
import inspect
import math
import pickle
import re

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import levitax
from levitax.nn import DistilledLogits
from tests.equality import tree_equal


TINY = {"image_size": 32, "patch_size": 4, "dim": (16, 24, 32), "depth": 1, "heads": (1, 2, 2), "key_dim": 8}
THREE = {"stages": 3, "dim": (16, 24, 32), "heads": (1, 2, 2)}


@pytest.mark.parametrize(
    ("patch_size", "image_size", "grids"),
    [
        pytest.param(16, (200, 225), [(13, 15), (7, 8), (4, 4)], marks=pytest.mark.slow),
        pytest.param(8, (33, 50), [(5, 7), (3, 4), (2, 2)], marks=pytest.mark.slow),
        (4, (28, 17), [(7, 5), (4, 3), (2, 2)]),
    ],
)
def test_any_image_size_goes_through(patch_size, image_size, grids, make):
    model, state = make(**THREE, patch_size=patch_size, image_size=image_size)
    image = jnp.zeros((*model.config.image_size, 3))
    model = eqx.nn.inference_mode(model)
    logits, _ = eqx.filter_eval_shape(model, image, state)
    maps, _ = eqx.filter_eval_shape(model.features, image, state)
    weights = eqx.filter_eval_shape(model.attention_maps, image, state)
    assert logits.shape == (5,)
    assert [map.shape for map in maps] == [(*grid, dim) for grid, dim in zip(grids, (16, 24, 32), strict=True)]
    tokens = [rows * columns for rows, columns in grids]
    assert [[one.shape for one in stage] for stage in weights] == [
        [(1, tokens[0], tokens[0])],
        [(2, tokens[1], tokens[0]), (2, tokens[1], tokens[1])],
        [(3, tokens[2], tokens[1]), (2, tokens[2], tokens[2])],
    ]


@pytest.mark.parametrize(
    ("network", "activation"),
    [("paper", "hard_swish"), ("paper", "silu"), ("paper", "relu"), ("vit_pytorch", "gelu")],
)
def test_every_network_and_activation_runs(network, activation, make, images):
    model, state = make(network=network, activation=activation, in_channels=1)
    logits, _ = eqx.filter_eval_shape(levitax.batched(model), images(2, 16, 16, 1), state)
    heads = logits if network == "paper" else (logits,)
    assert isinstance(logits, DistilledLogits) == (network == "paper")
    assert all(head.shape == (2, 5) and head.dtype == jnp.float32 for head in heads)


@pytest.mark.parametrize("distillation", (False, True))
def test_training_gives_one_result_for_each_head_and_inference_one(distillation, make, images):
    model, state = make(distillation=distillation)
    logits, _ = eqx.filter_eval_shape(levitax.batched(model), images(2, 16, 16, 3), state)
    assert isinstance(logits, DistilledLogits) == distillation
    assert [head.shape for head in jax.tree.leaves(logits)] == [(2, 5)] * (1 + distillation)
    logits, _ = eqx.filter_eval_shape(levitax.batched(eqx.nn.inference_mode(model)), images(2, 16, 16, 3), state)
    assert logits.shape == (2, 5)


def test_the_head_gets_the_mean_of_the_last_map(make, randomise, images):
    model, state = randomise(*make())
    backbone, image = eqx.tree_at(lambda model: model.head, model, None), images(16, 16, 3)

    @eqx.filter_jit
    def results(model, backbone, image, state):
        maps, _ = model.features(image, state)
        pooled, _ = backbone(image, state)
        return maps, pooled, model.head(pooled, state)[0], model(image, state)[0]

    maps, pooled, of_pooled, logits = results(
        eqx.nn.inference_mode(model), eqx.nn.inference_mode(backbone), image, state
    )
    np.testing.assert_allclose(pooled, maps[-1].mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_pooled, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_without_classes_the_model_gives_the_mean_token_in_float32(dtype, make, images):
    model, state = make(num_classes=0, dtype=dtype)
    assert model.head is None
    pooled, _ = eqx.filter_eval_shape(levitax.batched(model), images(2, 16, 16, 3), state)
    assert pooled.shape == (2, 24) and pooled.dtype == jnp.float32


def test_attention_maps_are_weights_and_those_of_the_forward_pass(make, randomise, images):
    model, state = randomise(*make())
    image = images(16, 16, 3)

    @eqx.filter_jit
    def maps_twice(model, image, state):
        inference = eqx.nn.inference_mode(model)
        tokens = inference.features(image, state)[0][0].reshape(16, 16)
        return model.attention_maps(image, state), inference.stages[1].blocks[0].attention.weights(tokens, state)

    maps, shrinking = maps_twice(model, image, state)
    for weights in jax.tree.leaves(maps):
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(maps[1][0], shrinking, rtol=1e-5, atol=1e-7)


def test_residual_branches_of_a_fresh_model_are_zero(make, images, error):
    model, state = make()
    shrinking = lambda stage: tuple(block for block in stage.blocks if block.attention.stride == 2)
    bare = eqx.tree_at(lambda model: [stage.blocks for stage in model.stages], model, [*map(shrinking, model.stages)])
    run = eqx.filter_jit(lambda model: levitax.batched(model)(images(3, 16, 16, 3), state)[0])
    assert error(run(model).classification, run(bare).classification) < 1e-6


def loss(model, state, x, key):
    outputs, _ = levitax.batched(model)(x, state, key=key)
    return sum((head**2).mean() for head in outputs)


def kept(model, *arguments):
    """Returns the values that JAX stores for the backward pass."""
    residuals = eqx.filter_eval_shape(
        lambda model: eqx.filter_vjp(lambda model: loss(model, *arguments), model)[1], model
    )
    return [leaf for leaf in jax.tree.leaves(residuals) if hasattr(leaf, "shape")]


@pytest.mark.slow
def test_rematerialisation_keeps_less_and_changes_no_number(make, randomise, images, key, error):
    model, state = randomise(*make(stages=1, dim=16, heads=1, depth=2, image_size=8, drop_path=0.2))
    stages = tuple(levitax.nn.Stage(stage.blocks, remat=True) for stage in model.stages)
    remat = eqx.tree_at(lambda model: model.stages, model, stages)
    arguments = state, images(4, 8, 8, 3), key
    size = lambda model: sum(
        leaf.size * leaf.dtype.itemsize for leaf in kept(model, *arguments) if leaf.shape[:1] == (4,)
    )
    assert 0 < size(remat) < size(model) / 2
    value_and_grad = eqx.filter_value_and_grad(loss)
    ours, theirs = (eqx.filter_jit(value_and_grad)(model, *arguments) for model in (remat, model))
    # Compared as one vector: before a normalisation, the gradient of a bias is zero except for rounding.
    assert error(*(jax.flatten_util.ravel_pytree(jax.tree.leaves(result))[0] for result in (ours, theirs))) < 1e-5


def test_no_attention_weights_and_no_normalised_values_are_kept(make, images, key):
    model, state = make(stages=1, dim=16, heads=3, depth=2, image_size=32)
    tokens, batch = math.prod(model.config.grid(0)), 4
    shapes = [leaf.shape for leaf in kept(model, state, images(batch, 32, 32, 3), key)]
    assert (batch, 3, tokens, tokens) not in shapes
    # From the hidden layer of an MLP, only the product is stored. Normalised values and activations are recomputed.
    assert shapes.count((batch, tokens, 32)) == model.config.depth[0]


def test_remat_reaches_the_stages(make):
    assert all(stage.remat for stage in make(remat=True)[0].stages)
    assert not any(stage.remat for stage in make()[0].stages)


def test_bfloat16_is_for_the_computation_only(make, randomise, images, error):
    model, state = randomise(*make(dtype="bfloat16"))
    x = images(4, 16, 16, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((model, state)) if eqx.is_array(leaf)} == {jnp.dtype("float32")}
    logits, new = eqx.filter_eval_shape(levitax.batched(model), x, state)
    maps, _ = eqx.filter_eval_shape(levitax.batched(model.features), x, state)
    weights = eqx.filter_eval_shape(model.attention_maps, x[0], state)
    dtypes = lambda tree: {leaf.dtype for leaf in jax.tree.leaves(tree)}
    assert dtypes(maps) == {jnp.dtype("bfloat16")}
    assert dtypes((logits, new, weights)) == {jnp.dtype("float32")}


def test_gradients_in_bfloat16_are_float32(make, images):
    model, state = make(dtype="bfloat16", network="vit_pytorch", distillation=True)
    gradients = eqx.filter_eval_shape(eqx.filter_grad(loss), model, state, images(4, 16, 16, 3), None)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients) if hasattr(leaf, "dtype")} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("rates", ({"dropout": 0.5}, {"drop_path": 0.5}), ids=str)
def test_randomness_follows_the_key_in_training_and_is_off_in_inference(rates, make, randomise, images):
    model, state = randomise(*make(**rates, stages=1, dim=16, heads=1, image_size=8))
    x = images(4, 8, 8, 3)
    run = eqx.filter_jit(lambda model, key: levitax.batched(model)(x, state, key=key)[0])
    first, again, other = (run(model, jax.random.key(seed)).classification for seed in (0, 0, 1))
    assert (first == again).all() and not np.allclose(first, other)
    inference = eqx.nn.inference_mode(model)
    assert (run(inference, jax.random.key(0)) == run(inference, jax.random.key(1))).all()


def test_drop_path_draws_for_each_image_of_the_batch(make, randomise, images):
    model, state = randomise(*make(drop_path=0.5, stages=1, dim=16, heads=1, image_size=8))
    # With batch statistics, dropping a branch of one image would affect all others.
    model = eqx.nn.inference_mode(model)
    drops = lambda model: [block.drop_path.inference for stage in model.stages for block in stage.blocks]
    model = eqx.tree_at(drops, model, replace_fn=lambda _: False)
    x = jnp.broadcast_to(images(1, 8, 8, 3), (8, 8, 8, 3))
    logits, _ = eqx.filter_jit(lambda model: levitax.batched(model)(x, state, key=jax.random.key(0)))(model)
    assert len(np.unique(np.asarray(logits).round(4), axis=0)) > 1


def test_a_batch_in_inference_is_its_images_one_by_one(make, randomise, images, error):
    model, state = randomise(*make())
    model = eqx.nn.inference_mode(model)
    x = images(3, 16, 16, 3)
    logits, new = eqx.filter_jit(lambda model, x: levitax.batched(model)(x, state))(model, x)
    one = eqx.filter_jit(lambda model, image: model(image, state)[0])
    assert error(logits, jnp.stack([one(model, image) for image in x])) < 1e-6
    assert tree_equal(new, state)


def test_changed_attention_biases_take_effect_at_once(make, randomise, images):
    """Other implementations cache gathered biases for inference, and then use those of old weights."""
    model, state = randomise(*make())
    image = images(16, 16, 3)
    biases = lambda model: [block.attention.bias for stage in model.stages for block in stage.blocks]
    tables = lambda model: [bias.table for bias in biases(model)]
    run = eqx.filter_jit(lambda model, image: eqx.nn.inference_mode(model)(image, state)[0])
    before = run(model, image)
    other = eqx.tree_at(tables, model, replace_fn=lambda table: -8 * table)
    assert jnp.abs(run(other, image) - before).max() > 1e-2 * jnp.abs(before).max()
    assert jnp.array_equal(run(eqx.tree_at(tables, other, replace_fn=lambda table: table / -8), image), before)


def test_training_moves_every_running_statistic(make, randomise, images):
    model, state = randomise(*make())
    _, new = eqx.filter_jit(lambda model: levitax.batched(model)(images(4, 16, 16, 3), state))(model)
    is_norm = lambda node: isinstance(node, levitax.nn.BatchNorm)
    for norm in filter(is_norm, jax.tree.leaves(model, is_leaf=is_norm)):
        before, after = norm.running(state), norm.running(new)
        assert after.mean.shape == norm.weight.shape
        assert not np.allclose(before.mean, after.mean) and not np.allclose(before.var, after.var)


# Checks that the suite checks shapes at all: one word in pyproject.toml switches it on.
def test_wrong_shapes_and_dtypes_are_caught_in_this_suite(make):
    mlp, state = eqx.nn.make_with_state(levitax.nn.MLP)(4, 8, key=jax.random.key(0))
    with pytest.raises(jaxtyping.TypeCheckError):
        mlp(jnp.ones((2, 3, 4)), state)
    model, state = make()
    with pytest.raises(jaxtyping.TypeCheckError):
        model(jnp.ones((16, 16, 3), jnp.int32), state)


@pytest.mark.slow
@pytest.mark.parametrize("network", ("paper", "vit_pytorch"))
def test_a_model_is_pickled_and_copied_as_the_same_tree(network, key):
    model, state = eqx.nn.make_with_state(levitax.LeViT)(**TINY, network=network, key=key)
    for other, other_state in (pickle.loads(pickle.dumps((model, state))), copy.deepcopy((model, state))):
        assert jax.tree.structure(other) == jax.tree.structure(model)
        assert tree_equal((model, state), (other, other_state))


def test_a_model_is_made_again_from_its_configuration(key):
    model, _ = eqx.nn.make_with_state(levitax.LeViT)(**TINY, key=key)
    again, _ = eqx.nn.make_with_state(levitax.LeViT)(**model.config.to_dict(), key=key)
    assert tree_equal(model, again)


@pytest.mark.parametrize(
    ("function", "described", "first", "keywords", "defaults"),
    (
        (levitax.LeViT, levitax.LeViT.__init__, ["key"], levitax.LeViTKeywords, {}),
        (
            levitax.levit_384,
            levitax.levit_384,
            ["pretrained", "key"],
            levitax.Overrides,
            levitax.VARIANTS["levit_384"],
        ),
    ),
)
def test_help_shows_every_keyword(function, described, first, keywords, defaults):
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [*first, *keywords.__annotations__]
    assert re.findall(r"^ *- `(\w+)`: ", str(described.__doc__), re.MULTILINE) == list(parameters)
    shown = {name: parameter.default for name, parameter in parameters.items() if name not in first}
    assert levitax.LeViTConfig(**{**defaults, **shown}) == levitax.LeViTConfig(**defaults)
