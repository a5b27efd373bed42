"""Parts of a LeViT that a user exchanges: it still trains, fuses and is saved, or says what to do."""

import json
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax import nn
from tests.equality import tree_equal


# Compiles in half the time of two stages.
ONE_STAGE: dict[str, Any] = {"stages": 1, "dim": (16,), "heads": (1,)}

NORMS: dict[str, Any] = {
    "GroupNorm": lambda channels, key: eqx.nn.GroupNorm(4, channels),
    "LayerNorm": lambda channels, key: eqx.nn.LayerNorm(channels),
    "RMSNorm": lambda channels, key: eqx.nn.RMSNorm(channels),
    "BatchNorm": lambda channels, key: eqx.nn.BatchNorm(channels, axis_name="batch", mode="batch"),
}


class Scaled(eqx.Module):
    """A normalisation of a user's own, with channels last and random numbers."""

    scale: jax.Array
    weight: jax.Array

    def __init__(self, channels, *, key):
        self.scale = jax.random.uniform(key, (channels,), jnp.float32)
        self.weight = jnp.ones(channels, jnp.float32)

    def __call__(self, x, state, *, key=None):
        noise = 0.0 if key is None else 0.1 * jax.random.normal(key, (), jnp.float32)
        factor = (self.scale + noise) * self.weight
        return jnp.expand_dims(factor, tuple(range(x.ndim - 1))) * x, state


class Doubled(nn.BatchNorm):
    def __call__(self, x, state, *, key=None):
        x, state = super().__call__(x, state, key=key)
        return 2 * x, state


class Signed(eqx.Module):
    """An attention bias that distinguishes left from right."""

    table: jax.Array
    stride: int = eqx.field(static=True)

    def __init__(self, heads, grid, *, stride, key):
        self.table = jax.random.normal(key, (heads, *(2 * size - 1 for size in grid)), jnp.float32)
        self.stride = stride

    def __call__(self):
        heads, *sizes = self.table.shape
        grid = [(size + 1) // 2 for size in sizes]
        rows, columns = (np.arange(0, size, self.stride)[:, None] - np.arange(size) + size - 1 for size in grid)
        entries = self.table[:, rows[:, None, :, None], columns[None, :, None, :]]
        return entries.reshape(heads, -1, grid[0] * grid[1])


class LoRA(eqx.Module):
    linear: nn.LinearNorm | nn.NormLinear
    a: jax.Array
    b: jax.Array

    def __init__(self, linear, *, key):
        self.linear = linear
        out_features, in_features = linear.weight.shape
        self.a = jax.random.normal(key, (in_features, 2), jnp.float32)
        self.b = jnp.full((2, out_features), 0.1, jnp.float32)

    def __call__(self, x, state, *, key=None):
        y, state = self.linear(x, state, key=key)
        return y + x @ self.a @ self.b, state


def assert_fuses(model, state, batch, unfused):
    """The fused model computes what the model does in inference mode, and names what it left."""
    predict = levitax.fuse(model, state)
    assert {path: kind.__name__ for path, kind in predict.unfused.items()} == unfused
    expected, _ = eqx.filter_jit(levitax.batched(eqx.nn.inference_mode(model)))(batch, state)
    np.testing.assert_allclose(jax.jit(jax.vmap(predict))(batch), expected, rtol=1e-4, atol=1e-5)
    return predict


def trained(made, batch, key):
    """After a step of gradient descent, which has moved every array of each exchanged part."""
    model, state = made

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, state):
        logits, state = levitax.batched(model)(batch, state, key=key)
        return sum(jnp.square(head - 1).mean() for head in jax.tree.leaves(logits)), state

    (_, state), gradient = loss(model, state)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    return eqx.apply_updates(model, jax.tree.map(lambda leaf: -0.1 * leaf, gradient)), state


@pytest.mark.parametrize(
    "name", ["GroupNorm", *(pytest.param(name, marks=pytest.mark.slow) for name in NORMS if name != "GroupNorm")]
)
def test_normalisations_of_equinox_are_one_keyword(name, make, images, key):
    model, state = trained(make(**ONE_STAGE, norm=NORMS[name]), images(4, 16, 16, 3), key)
    layers = [f"stages.{s}.blocks.{b}.{layer}" for s, b, layer in _linear_layers(model)]
    paths = ["stem.convolutions.0", "stem.convolutions.1", *layers, "head.classification", "head.distillation"]
    predict = assert_fuses(model, state, images(4, 16, 16, 3), {f"{path}.norm.layer": name for path in paths})
    assert all(isinstance(block.attention.bias, nn.GatheredAttentionBias) for block in predict.model.stages[0].blocks)


def _linear_layers(model):
    for number, stage in enumerate(model.stages):
        for index, block in enumerate(stage.blocks):
            names = ["linear"] if block.attention.stride == 1 else ["query", "key_value"]
            for layer in (*(f"attention.project_in.{name}" for name in names), "attention.project_out"):
                yield number, index, layer
            yield from ((number, index, "mlp.expand"), (number, index, "mlp.contract"))


def test_a_branch_starts_at_zero_with_any_normalisation_that_has_a_weight(make):
    for norm in (None, NORMS["GroupNorm"], Scaled):
        block = make(norm=norm)[0].stages[0].blocks[0]
        assert not _weight(block.mlp.contract.norm).any() and not _weight(block.attention.project_out.norm).any()
        assert _weight(block.mlp.expand.norm).all()


def _weight(norm: Any) -> jax.Array:
    return getattr(norm, "layer", norm).weight


def test_factories_may_leave_out_the_key(make, images):
    plain = lambda heads, grid, stride: Signed(heads, grid, stride=stride, key=jax.random.key(0))
    model, state = make(**ONE_STAGE, norm=eqx.nn.LayerNorm, attention_bias=plain)
    assert set(levitax.fuse(model, state).unfused.values()) == {eqx.nn.LayerNorm, Signed}
    assert isinstance(model.head.classification.norm.layer, eqx.nn.LayerNorm)


def test_a_normalisation_of_ones_own_gets_a_key(make, images, key):
    model, state = trained(make(**ONE_STAGE, norm=Scaled), images(4, 16, 16, 3), key)
    forward = eqx.filter_jit(levitax.batched(model))
    one, other = (forward(images(4, 16, 16, 3), state, key=jax.random.key(seed))[0] for seed in (0, 1))
    assert not tree_equal(one, other, rtol=1e-3)
    assert set(levitax.fuse(model, state).unfused.values()) == {Scaled}


def test_a_subclass_is_called_as_it_was(make, images, key):
    model, state = trained(make(**ONE_STAGE, norm=Doubled, distillation=False), images(4, 16, 16, 3), key)
    predict = levitax.fuse(model, state)
    assert set(predict.unfused.values()) == {Doubled}
    assert_fuses(model, state, images(4, 16, 16, 3), {path: "Doubled" for path in predict.unfused})


def test_an_attention_bias_is_one_class(make, images, key):
    model, state = trained(make(attention_bias=Signed), images(4, 16, 16, 3), key)
    kinds = {f"stages.{s}.blocks.{b}.attention.bias": "Signed" for s, b in ((0, 0), (1, 0), (1, 1))}
    assert_fuses(model, state, images(4, 16, 16, 3), kinds)


@pytest.mark.parametrize("activation", (jax.nn.gelu, eqx.nn.PReLU(0.25)), ids=("gelu", "PReLU"))
def test_an_activation_is_exchanged_as_in_equinoxs_mlp(activation, make, randomise, images, key, tmp_path):
    model, state = randomise(*make(**ONE_STAGE))
    changed = eqx.tree_at(lambda model: model.stages[0].blocks[0].mlp.activation, model, activation)
    changed, state = trained((changed, state), images(4, 16, 16, 3), key)
    is_module = isinstance(activation, eqx.Module)
    assert_fuses(
        changed, state, images(4, 16, 16, 3), {"stages.0.blocks.0.mlp.activation": "PReLU"} if is_module else {}
    )
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.0\.mlp\.activation.*eqx\.tree_serialise_leaves"):
        levitax.save(tmp_path / "model.safetensors", changed, state)


def test_every_layer_with_an_activation_has_it_as_a_leaf(make):
    model, _ = make(activation="silu")
    leaves = [leaf for leaf in jax.tree.leaves(model) if callable(leaf)]
    assert leaves == [nn.silu] * 7  # The stem, and attention and MLP of three blocks.


@pytest.mark.parametrize("part", ("query", pytest.param("every linear layer", marks=pytest.mark.slow)))
def test_lora_trains_merges_and_fuses(part, make, randomise, images, key):
    model, state = randomise(*make())
    batch = images(4, 16, 16, 3)
    if part == "query":
        where = lambda model: model.stages[1].blocks[0].attention.project_in.query
        adapted = eqx.tree_at(where, model, LoRA(where(model), key=key))
        left = {"stages.1.blocks.0.attention.project_in.query": "LoRA"}
    else:
        is_linear = lambda node: isinstance(node, nn.LinearNorm | nn.NormLinear)
        adapted = jax.tree.map(lambda node: LoRA(node, key=key) if is_linear(node) else node, model, is_leaf=is_linear)
        left = {f"stages.{s}.blocks.{b}.{layer}": "LoRA" for s, b, layer in _linear_layers(model)}
        left |= {"head.classification": "LoRA", "head.distillation": "LoRA"}
    tuned, state = trained((adapted, state), batch, key)
    assert_fuses(tuned, state, batch, left)


def test_a_removed_block_and_one_of_a_users_own(make, randomise, images, key):
    model, state = randomise(*make(**ONE_STAGE, depth=2))
    batch = images(4, 16, 16, 3)
    shorter = eqx.tree_at(lambda model: model.stages[0].blocks, model, replace_fn=lambda blocks: blocks[:1])
    skipped = eqx.tree_at(lambda model: model.stages[0].blocks[1], model, lambda x, state, key=None: (x, state))
    for changed in (shorter, skipped):
        assert_fuses(*trained((changed, state), batch, key), batch, {})

    # A stage that runs its blocks in an order of its own.
    class Reversed(nn.Stage):
        def __call__(self, x, state, *, key=None):
            return nn.Stage(self.blocks[::-1])(x, state, key=key)

    reversed_ = eqx.tree_at(lambda model: model.stages[0], model, Reversed(model.stages[0].blocks, remat=False))
    predict = levitax.fuse(reversed_, state)
    assert predict.unfused == {"stages.0": Reversed}
    for changed, name in ((reversed_, "Reversed"), (skipped, "function")):
        with pytest.raises(TypeError, match=f"A `{name}` in the model has no attention weights; expected blocks like"):
            changed.attention_maps(batch[0], state)
    expected = eqx.tree_at(lambda model: model.stages[0], model, nn.Stage(model.stages[0].blocks[::-1]))
    run = eqx.filter_jit(lambda predict: predict(batch[0]))
    np.testing.assert_allclose(run(predict), run(levitax.fuse(expected, state)), rtol=1e-4, atol=1e-5)


def test_parts_that_a_file_cannot_hold_are_written_by_equinox(make, images, key, tmp_path):
    foreign = ONE_STAGE | {"norm": NORMS["GroupNorm"], "attention_bias": Signed}
    model, state = trained(make(**foreign), images(4, 16, 16, 3), key)
    for write in (
        lambda: levitax.save(tmp_path / "model.safetensors", model, state),
        lambda: levitax.weights.state_dict(model, state, layout="timm"),
        lambda: levitax.weights.adapt(model, state, num_classes=2, key=key),
    ):
        with pytest.raises(
            ValueError, match=r'norm, attention_bias, .*`eqx\.tree_serialise_leaves\("model\.eqx", \(mo'
        ):
            write()
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", (model, state))
    again = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", make(**foreign))
    assert tree_equal(again, (model, state))


def squared(x):
    return jnp.square(jax.nn.relu(x))


def test_an_activation_that_is_a_function_is_asked_for(make, randomise, images, tmp_path):
    model, state = randomise(*make(activation=squared))
    config = model.config
    assert json.loads(json.dumps(config.to_dict()))["activation"] == {"function": "tests.test_surgery.squared"}
    asked = r"`activation` is the function `tests\.test_surgery\.squared`.*pass .*, as in `activation=squared`"
    with pytest.raises(ValueError, match=asked):
        levitax.LeViTConfig.from_dict(config.to_dict())
    assert levitax.LeViTConfig.from_dict(config.to_dict() | {"activation": squared}) == config
    path = tmp_path / "some.safetensors"
    levitax.save(path, model, state, preprocessing=levitax.data.Preprocessing(image_size=16))
    with pytest.raises(ValueError, match=asked):
        levitax.load(path)
    assert levitax.load_preprocessing(path).image_size == (16, 16)
    loaded = levitax.load(path, activation=squared)
    assert tree_equal(loaded, (model, state))
    fresh, fresh_state = make(activation=squared)
    assert tree_equal(levitax.weights.load_into(fresh, fresh_state, path), loaded)
    with pytest.raises(ValueError, match=r"has the function `tests\.test_surgery\.squared`"):
        levitax.weights.state_dict(model, state, layout="official")
    assert levitax.weights.state_dict(model, state, layout="timm")
    predict = levitax.fuse(model, state)
    levitax.save(path, predict.model, predict.state)
    again = levitax.Predictor(*levitax.load(path, activation=squared))
    assert tree_equal(again(images(1, 16, 16, 3)[0]), predict(images(1, 16, 16, 3)[0]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"norm": lambda channels, key: channels},
            TypeError,
            "`norm` returned 8, which cannot be called so .it is not a function.; expected a layer",
        ),
        (
            {"norm": lambda channels, key: lambda x: x},
            TypeError,
            "which cannot be called so .*`x, state = layer",
        ),
        (
            {"norm": eqx.nn.BatchNorm},
            TypeError,
            r"`norm` is `equinox.*BatchNorm`.*`norm\(channels, key=key\)`.*axis_name",
        ),
        ({"attention_bias": lambda heads, grid: None}, TypeError, r"`attention_bias` is .*unexpected.*'stride'"),
        (
            {"attention_bias": lambda heads, grid, stride: lambda x: x},
            TypeError,
            r"`attention_bias` returned .*missing.*'x'.*`bias\(\)`",
        ),
        ({"activation": lambda x, y: x}, TypeError, r"`activation` is .*`activation\(x\)`.*'y'"),
        (
            {"norm": lambda channels, key: lambda x, state, *, key: x},
            TypeError,
            "The layer of `norm`, .* returned an array of shape .*`return x, state`",
        ),
        (
            {"norm": lambda channels, key: lambda x, state, *, key: (x[..., :1], state)},
            ValueError,
            r"The result of the layer of `norm`.*expected \(8, 8, 8\)",
        ),
        (
            {"norm": lambda channels, key: nn.ChannelsFirst(lambda x, state, *, key: x)},
            TypeError,
            "The layer of `ChannelsFirst`, .* returned an array of shape .*`return x, state`",
        ),
        (
            {"norm": lambda channels, key: nn.PerToken(lambda x: x[:1])},
            ValueError,
            r"The result of the layer of `PerToken` has shape \(64, 1\); expected \(64, 8\)",
        ),
        (
            {"norm": lambda channels, key: nn.PerToken(lambda x: (x, x))},
            TypeError,
            r"The result of the layer of `PerToken` is a value of type `tuple`; expected an array of shape \(64, 8\)",
        ),
        ({"norm": "batch"}, TypeError, "`norm` is 'batch'; expected a function"),
        ({"attention_bias": lambda heads, grid, stride, key: None}, TypeError, "`attention_bias.*`bias\\(\\)`"),
        (
            {"attention_bias": lambda heads, grid, stride, key: lambda: jnp.zeros((heads, 1, 1))},
            ValueError,
            r"The attention bias has shape \(1, 1, 1\); expected \(1, 16, 16\)",
        ),
        ({"activation": eqx.nn.PReLU(0.25)}, TypeError, "`activation` is a `PReLU`.*`eqx.tree_at`"),
        ({"activation": 3}, ValueError, "`activation` is 3; expected one of 'hard_swish'"),
        ({"pooling": "max"}, ValueError, "`pooling` is 'max'; expected one of 'mean', 'none'"),
        ({"head_dropout": 1.0}, ValueError, "`head_dropout` is 1.0; expected a rate"),
    ],
)
def test_factories_that_make_no_part(keywords, error, message, make, images):
    with pytest.raises(error, match=message):
        model, state = make(**keywords)
        levitax.batched(model)(images(2, 16, 16, 3), state)


def test_weights_have_the_normalisations_of_levit(make, tmp_path):
    levitax.save(tmp_path / "model.safetensors", *make())
    for name in ("norm", "attention_bias"):
        factory = cast(Any, {name: {"norm": NORMS["GroupNorm"], "attention_bias": Signed}[name]})
        with pytest.raises(ValueError, match=rf"`{name}` is `tests\.test_surgery.*Make the model with `{name}="):
            levitax.load(tmp_path / "model.safetensors", **factory)


def test_maps_after_any_block(make, randomise, images):
    model, state = randomise(*make(depth=2))
    model, image = eqx.nn.inference_mode(model), images(1, 16, 16, 3)[0]
    ends, _ = model.features(image, state)
    maps, _ = model.features(image, state, blocks=[-1, "stages.0.blocks.1", 0, 2])
    assert tree_equal(maps[:2], ends[::-1])
    assert [each.shape for each in maps[2:]] == [(4, 4, 16), (2, 2, 24)]
    first = eqx.tree_at(lambda model: model.stages[0].blocks, model, replace_fn=lambda blocks: blocks[:1])
    assert tree_equal(maps[2], first.features(image, state)[0][0])
    # Nothing is computed after the last block that is asked for.
    products = lambda blocks: str(jax.make_jaxpr(lambda image: model.features(image, state, blocks=blocks)[0])(image))
    assert products([0]).count("dot_general") < products([1]).count("dot_general") < products([-1]).count("dot_general")


def test_only_the_maps_that_are_wanted_need_a_grid(make, images):
    """A block may add a token that a later block takes away."""
    model, state = make(**ONE_STAGE, depth=3, patch_size=8, image_size=24)
    adds = lambda x, state, key=None: (jnp.concatenate([x[:1], x]), state)
    takes = lambda x, state, key=None: (x[1:], state)
    model = eqx.tree_at(lambda model: model.stages[0].blocks, model, (adds, takes, model.stages[0].blocks[2]))
    model, image = eqx.nn.inference_mode(model), images(1, 24, 24, 3)[0]
    assert model(image, state)[0].shape == (5,)
    with pytest.raises(TypeError, match="reshape"):
        model.features(image, state, blocks=[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (["stages.1.block.0"], ValueError, "expected one of 'stages.0.blocks.0'.* Did you mean 'stages.1.blocks.0'"),
        ([3], ValueError, "`blocks` contains 3; expected a number from 0 to 2, or from -3 to -1"),
        ([0.5], TypeError, "`blocks` contains 0.5; expected the number of a block, or its path"),
        ("stages.0.blocks.0", TypeError, "expected a list"),
        ([], TypeError, "expected a list"),
    ],
)
def test_blocks_that_do_not_exist(blocks, error, message, make, images):
    model, state = make()
    with pytest.raises(error, match=message):
        model.features(images(1, 16, 16, 3)[0], state, blocks=blocks)


@pytest.mark.parametrize("num_classes", (0, 5))
def test_without_pooling_every_token_is_classified(num_classes, make, randomise, images):
    model, state = randomise(*make(pooling="none", num_classes=num_classes))
    image = images(1, 16, 16, 3)[0]
    predict = assert_fuses(model, state, image[None], {})
    tokens = predict(image)
    assert tokens.shape == (4, num_classes or 24)
    # The head is affine in inference, so it commutes with the mean.
    parts = lambda model: (model.stem, model.stages, model.head)
    like = make(num_classes=num_classes)[0]
    mean = levitax.fuse(eqx.tree_at(parts, like, parts(model), is_leaf=lambda node: node is None), state)
    np.testing.assert_allclose(tokens.mean(0), mean(image), rtol=1e-4, atol=1e-5)


def test_dropout_before_the_classifiers(make, images, key):
    model, state = make(**ONE_STAGE, head_dropout=0.5)
    heads = lambda model: (model.head.classification, model.head.distillation)
    model = eqx.tree_at(heads, model, (model.head.classification,) * 2)
    batch = images(4, 16, 16, 3)
    with pytest.raises(ValueError, match=r"Dropout at rate 0\.5 draws random numbers in training: pass `key"):
        levitax.batched(model)(batch, state)
    one, other = eqx.filter_jit(levitax.batched(model))(batch, state, key=key)[0]
    # Two equal heads, each with numbers of its own.
    assert not tree_equal(one, other, rtol=1e-3)
    plain = eqx.tree_at(lambda model: [head.dropout.p for head in heads(model)], model, (0.0, 0.0))
    run = eqx.filter_jit(lambda predict: predict(batch[0]))
    assert tree_equal(run(levitax.fuse(model, state)), run(levitax.fuse(plain, state)))
