from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from tests.equality import tree_equal


# Limit for the largest error over the largest magnitude.
TOLERANCE = 1e-5


def both(model, state, x):
    """Returns the outputs of the fused model and of the original model."""

    @eqx.filter_jit
    def run(model, state, x):
        predicts = levitax.fuse(model, state), levitax.Predictor(model, state)
        return tuple(jax.vmap(predict)(x) for predict in predicts)

    return run(model, state, x)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"num_classes": 0},
        {"network": "vit_pytorch", "distillation": True},
        {"image_size": (20, 13), "depth": 2, "distillation": False},
    ],
    ids=("two heads", "no head", "vit_pytorch", "rectangle, one head"),
)
def test_outputs_of_the_fused_model_are_those_of_inference(keywords, make, randomise, images, error):
    model, state = randomise(*make(**keywords))
    x = images(3, *model.config.image_size, 3)
    fused, exact = both(model, state, x)
    assert error(fused, exact) < TOLERANCE
    # Outside of a compiled function, NumPy folds the same.
    folded = levitax.fuse(model, state), eqx.filter_jit(levitax.fuse)(model, state)
    for one, other in zip(*(jax.tree.leaves(eqx.filter(each, eqx.is_array)) for each in folded), strict=True):
        assert np.allclose(one, other, rtol=1e-5, atol=1e-6) and one.dtype == other.dtype


def test_the_unfused_predictor_is_inference(make, randomise, images):
    model, state = randomise(*make())
    image = images(16, 16, 3)
    run = eqx.filter_jit(lambda model: model(image))
    logits = run(levitax.Predictor(model, state))
    expected = run(lambda image: eqx.nn.inference_mode(model)(image, state)[0])
    assert jnp.allclose(logits, expected, rtol=1e-6, atol=1e-7)


def test_nothing_of_training_is_left(make, randomise):
    predict = levitax.fuse(*randomise(*make()))
    trained_only = levitax.nn.BatchNorm, levitax.nn.AttentionBias, levitax.nn.DistilledHead, eqx.nn.StateIndex
    is_trained_only = lambda node: isinstance(node, trained_only)
    assert [node for node in jax.tree.leaves(predict, is_leaf=is_trained_only) if is_trained_only(node)] == []
    assert jax.tree.leaves(predict.state) == []
    is_projection = lambda node: isinstance(node, levitax.nn.QueryKeyValue | levitax.nn.SubsampledQueryKeyValue)
    projections = filter(is_projection, jax.tree.leaves(predict, is_leaf=is_projection))
    assert [projection.scale for projection in projections] == [1.0] * 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_weights_have_the_dtype_of_the_computation(dtype, make, randomise, images, error):
    model, state = randomise(*make(dtype=dtype, num_classes=5))
    fused = levitax.fuse(model, state)
    is_map = lambda node: isinstance(node, levitax.nn.LinearNorm | levitax.nn.ConvNorm)
    maps, rest = eqx.partition(fused, is_map, is_leaf=is_map)
    dtypes = lambda tree: {leaf.dtype for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)}
    assert dtypes(maps) == {jnp.dtype(dtype)} and dtypes(rest) == {jnp.dtype("float32")}
    # Without fusing, every call rounds the weights in the same way.
    wide = jax.tree.map(lambda leaf: leaf.astype("float32") if eqx.is_array(leaf) else leaf, fused)
    x = images(3, *model.config.image_size, 3)
    run = eqx.filter_jit(lambda predict: jax.vmap(predict)(x))
    assert (run(fused) == run(wide)).all()
    exact = run(levitax.fuse(*levitax.weights.adapt(model, state, dtype="float32")))
    # 8 or 11 bits of precision, through some twenty layers.
    assert error(run(fused), exact) < 20 * float(jnp.finfo(dtype).eps)


def test_fusing_leaves_the_model_and_its_state_usable(make, randomise):
    model, state = randomise(*make())
    copy = jax.tree.map(lambda leaf: leaf, (model, state))
    levitax.fuse(model, state)
    assert tree_equal((model, state), copy)


def test_features_and_attention_maps_stay_the_same(make, randomise, images, error):
    model, state = randomise(*make())
    predict = levitax.fuse(model, state)
    image = images(16, 16, 3)

    @eqx.filter_jit
    def maps(model, state):
        return model.features(image, state)[0], model.attention_maps(image, state)

    assert error(maps(predict.model, predict.state), maps(eqx.nn.inference_mode(model), state)) < TOLERANCE


class Classifier(eqx.Module):
    """A module of a user: a LeViT, a normalisation without a linear layer next to it, and an Equinox linear layer."""

    backbone: Any
    norm: levitax.nn.BatchNorm
    linear: eqx.nn.Linear

    def __init__(self, backbone, *, key):
        backbone_key, linear_key = jax.random.split(key)
        self.backbone = backbone(key=backbone_key)
        self.norm = levitax.nn.BatchNorm(24)
        self.linear = eqx.nn.Linear(24, 7, dtype=jnp.float32, key=linear_key)

    def __call__(self, image, state, *, key=None):
        x, state = self.backbone(image, state, key=key)
        x, state = self.norm(x, state)
        return self.linear(x), state


@pytest.fixture
def backbone(small):
    """Makes a LeViT without a head and without splitting off its state."""
    return lambda *, key: levitax.LeViT(**small | {"num_classes": 0}, key=key)


def test_a_users_module_is_folded_around_its_levit(backbone, randomise, images, error, key):
    model, state = randomise(*eqx.nn.make_with_state(Classifier)(backbone, key=key))
    predict = levitax.fuse(model, state)
    assert isinstance(predict.model.norm, levitax.nn.Affine)
    assert tree_equal(predict.model.linear, model.linear)
    assert jax.tree.leaves(predict.state) == []
    fused, exact = both(model, state, images(3, 16, 16, 3))
    assert error(fused, exact) < TOLERANCE


class Counting(eqx.Module):
    """A module of a user with additional state."""

    levit: Any
    calls: eqx.nn.StateIndex

    def __init__(self, backbone, *, key):
        self.levit = backbone(key=key)
        self.calls = eqx.nn.StateIndex(jnp.array(3))

    def __call__(self, image, state, *, key=None):
        x, state = self.levit(image, state, key=key)
        calls = state.get(self.calls)
        return x + calls, state.set(self.calls, calls + 1)


def test_other_state_of_a_users_module_is_kept_and_every_call_sees_it(backbone, randomise, images, key):
    predict = levitax.fuse(*randomise(*eqx.nn.make_with_state(Counting)(backbone, key=key)))
    image = images(16, 16, 3)
    assert [int(leaf) for leaf in jax.tree.leaves(predict.state)] == [3]
    first = predict(image)
    assert (predict(image) == first).all()


@pytest.mark.parametrize(
    ("layer", "arguments", "shape"),
    [
        (levitax.nn.BatchNorm, (4,), (5, 4)),
        (levitax.nn.LinearNorm, (4, 6), (5, 4)),
        (levitax.nn.NormLinear, (4, 6), (5, 4)),
        (levitax.nn.ConvNorm, (4, 6), (5, 7, 4)),
        (levitax.nn.MLP, (4, 8), (5, 4)),
        (levitax.nn.DistilledHead, (4, 6), (4,)),
    ],
)
def test_single_layers_are_folded_too(layer, arguments, shape, randomise, images, error, key):
    keywords = {} if layer is levitax.nn.BatchNorm else {"key": key}
    model, state = randomise(*eqx.nn.make_with_state(layer)(*arguments, **keywords))
    fused, exact = both(model, state, images(3, *shape))
    assert error(fused, exact) < TOLERANCE
    assert jax.tree.leaves(levitax.fuse(model, state).state) == []


@pytest.mark.slow
def test_an_ensemble_is_fused_in_one_call(make, randomise, images, error):
    keys = jax.random.split(jax.random.key(3), 2)
    sizes: dict[str, Any] = {
        "stages": 1,
        "dim": 16,
        "heads": 1,
        "patch_size": 4,
        "key_dim": 8,
        "depth": 1,
        "image_size": 8,
    }
    create = eqx.filter_vmap(lambda key: eqx.nn.make_with_state(levitax.LeViT)(**sizes, num_classes=5, key=key))
    models, states = randomise(*create(keys))
    x = images(3, 8, 8, 3)

    @eqx.filter_jit
    def run(predicts):
        return eqx.filter_vmap(lambda predict: jax.vmap(predict)(x))(predicts)

    fused = run(eqx.filter_vmap(levitax.fuse)(models, states))
    exact = run(levitax.Predictor(models, states))
    assert fused.shape == (2, 3, 5) and not jnp.allclose(exact[0], exact[1])
    assert error(fused, exact) < TOLERANCE


def test_compiling_a_predictor_with_jax_jit_says_what_to_use(make, images):
    predict = levitax.fuse(*make())
    with pytest.raises(TypeError, match=r"use `eqx.filter_jit\(predict\)`, or `jax.jit\(jax.vmap\(predict\)\)`"):
        jax.jit(predict)(images(16, 16, 3))
    # Both calls in the message work, and so does a predictor inside another module.
    batch = images(2, 16, 16, 3)
    logits = jax.jit(jax.vmap(predict))(batch)
    assert jnp.allclose(eqx.filter_jit(predict)(batch[0]), logits[0], atol=1e-6)
    assert jnp.allclose(eqx.filter_jit(eqx.filter_vmap(predict))(batch), logits, atol=1e-6)


def test_weights_in_numpy_are_folded_too(make, randomise, images):
    model, state = randomise(*make())
    in_numpy = jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, (model, state))
    x = images(2, 16, 16, 3)
    assert np.array_equal(jax.vmap(levitax.fuse(*in_numpy))(x), jax.vmap(levitax.fuse(model, state))(x))


def test_a_layer_keeps_the_dtype_of_its_weights(key):
    layer = levitax.nn.QueryKeyValue(
        levitax.nn.LinearNorm(8, 16, use_norm=False, use_bias=True, key=key), heads=1, key_dim=4, scale=0.5
    )
    layer = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_array(leaf) else leaf, layer)
    fused = levitax.fuse(layer, eqx.nn.make_with_state(eqx.nn.Identity)()[1]).model
    assert fused.linear.weight.dtype == fused.linear.bias.dtype == jnp.bfloat16
    assert jnp.array_equal(fused.linear.weight[:4], layer.linear.weight[:4] / 2)
    assert jnp.array_equal(fused.linear.weight[4:], layer.linear.weight[4:])
