import re
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import levitax


# Each message gives the value, the rule and a fix. The fragments of a case sample all three.
pytestmark = pytest.mark.usefixtures("unchecked")


def fails(kind, *fragments):
    """Expects an error of `kind` whose message has the fragments, in order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(map(re.escape, fragments)))


IMAGES = {
    "channels first": ((3, 16, 20), "(3, 16, 20)", "expected (16, 20, 3)", "jnp.moveaxis(image, 0, -1)"),
    "channels": ((16, 20, 4), "(16, 20, 4)", "expected (16, 20, 3)", "in_channels=4"),
    "grey": ((16, 20), "(16, 20)", "expected (16, 20, 3)", "image[:, :, None]"),
    "batch": ((2, 16, 20, 3), "(2, 16, 20, 3)", "expected (16, 20, 3)", "levitax.batched(model)"),
    "batch with channels first": (
        (2, 3, 16, 20),
        "expected (16, 20, 3)",
        "jnp.moveaxis(images, 1, -1)",
        "batched(model)",
    ),
    "batches": ((4, 2, 16, 20, 3), "(4, 2, 16, 20, 3)", "images.reshape(-1, 16, 20, 3)", "levitax.batched(model)"),
    "six axes": ((1, 1, 1, 16, 20, 3), "(1, 1, 1, 16, 20, 3)", "images.reshape(-1, 16, 20, 3)", "batched(model)"),
    "scalar": ((), "()", "expected (16, 20, 3)", "Pass a whole image", "levitax.data.Preprocessing"),
    "one axis": ((16,), "(16,)", "expected (16, 20, 3)", "Pass a whole image", "levitax.data.Preprocessing"),
    "flat": ((960,), "(960,)", "expected (16, 20, 3)", "image.reshape(16, 20, 3)"),
    "flat batch": ((5, 960), "(5, 960)", "images.reshape(-1, 16, 20, 3)", "levitax.batched(model)"),
    "grey of another size": ((28, 28), "(28, 28)", "image[:, :, None].repeat(3, -1)"),
    "channels between": ((16, 3, 20), "(16, 3, 20)", "jnp.moveaxis(image, 1, -1)"),
    "channels first, of another size": ((3, 32, 48), "jnp.moveaxis(image, 0, -1)", "image_size=(32, 48)"),
    "batch of grey images": ((5, 16, 20), "(5, 16, 20)", "images[..., None].repeat(3, -1)", "levitax.batched(model)"),
    "width first": ((20, 16, 3), "(20, 16, 3)", "jnp.swapaxes(image, 0, 1)"),
    "both": ((32, 48, 4), "(32, 48, 4)", "image_size=(32, 48)", "in_channels=4", "levitax.data.Preprocessing"),
    "empty": ((0, 20, 3), "(0, 20, 3)", "no elements", "read, cropped or gathered"),
    "empty batch": ((0, 16, 20, 3), "(0, 16, 20, 3)", "no elements"),
    "size": ((20, 16, 3), "(20, 16, 3)", "expected (16, 20, 3)", "image_size=(20, 16)", "resize"),
}


def test_maps_in_place_of_the_last_one(make):
    model, state = eqx.nn.inference_mode(make())
    maps, state = model.features(jnp.zeros((16, 16, 3)), state)
    with fails(TypeError, "`features` is of type `tuple`", "expected an array with 24 channels"):
        model.classify(cast(Any, maps), state)
    with fails(ValueError, "`features` has shape (4, 4, 24)", "expected (2, 2, 24)", "jax.vmap"):
        model.classify(jnp.zeros((4, 4, 24)), state)


def test_a_predictor_holds_its_state(make):
    predict = levitax.fuse(*make())
    with fails(TypeError, "called with a state", "predict(image)"):
        predict(jnp.zeros((16, 16, 3)), predict.state)
    with fails(TypeError, "called without an input", "predict(image)"):
        predict()


@pytest.mark.parametrize(
    ("images", "kind"), [(SimpleNamespace(shape=(2, 16, 16, 3)), "SimpleNamespace"), ("state", "State")]
)
def test_batches_that_are_not_arrays(images, kind, make):
    model, state = make()
    with fails(TypeError, f"`images` is of type `{kind}`", "expected JAX or NumPy arrays", "(images, state)"):
        levitax.batched(model)(state if images == "state" else images, state)


def test_fields_of_a_configuration_are_a_dictionary():
    with fails(TypeError, "`fields` is of type `list`", "expected a dictionary"):
        levitax.LeViTConfig.from_dict(cast(Any, [1]))


@pytest.mark.parametrize("method", ("__call__", "features", "attention_maps"))
@pytest.mark.parametrize(("shape", "fragments"), [(case[0], case[1:]) for case in IMAGES.values()], ids=IMAGES)
def test_images_of_a_wrong_shape(shape, fragments, method, make):
    model, state = make(image_size=(16, 20))
    with fails(ValueError, "`image`", *fragments):
        getattr(eqx.nn.inference_mode(model), method)(np.ones(shape, np.float32), state)


def test_a_single_image_where_a_batch_belongs(make):
    model, state = make(image_size=(16, 20))
    with fails(ValueError, "`image`", "(20, 3)", "expected (16, 20, 3)", "without `batched`"):
        levitax.batched(model)(jnp.ones((16, 20, 3)), state)


def test_a_batch_with_channels_first(make):
    model, state = make(image_size=(16, 20))
    with fails(ValueError, "`image`", "(3, 16, 20)", "expected (16, 20, 3)", "jnp.moveaxis(image, 0, -1)"):
        levitax.batched(model)(jnp.ones((2, 3, 16, 20)), state)


@pytest.mark.parametrize("dtype", ("uint8", "int32", "bool", "complex64"))
def test_images_that_are_not_floating_point(dtype, make):
    model, state = make()
    with fails(TypeError, "`image`", dtype, "expected floating-point", "image.astype(jnp.float32) / 255"):
        model(jnp.ones((16, 16, 3), dtype), state)


KEYWORDS: list[tuple[dict[str, Any], Any, list[str]]] = [
    # Images too small.
    ({"image_size": 32, "stages": 3}, ValueError, ["`image_size` (32, 32)", "3 stages", "`patch_size`", "`stages`"]),
    ({"image_size": 4, "patch_size": 4, "stages": 2, "dim": 8, "heads": 1}, ValueError, ["(4, 4)", "2 stages"]),
    # Tuples of the wrong length.
    ({"dim": (16, 24)}, ValueError, ["`dim`", "(16, 24)", "length 2", "3: one for each stage"]),
    ({"depth": (1, 2, 3, 4)}, ValueError, ["`depth`", "length 4", "3: one for each stage"]),
    ({"heads": [1]}, ValueError, ["`heads`", "[1]", "3: one for each stage"]),
    ({"mlp_mult": ()}, ValueError, ["`mlp_mult`", "()", "3: one for each stage"]),
    ({"subsample_heads": (1, 2, 3)}, ValueError, ["`subsample_heads`", "2: one for each downsampling attention"]),
    ({"image_size": (32, 32, 3)}, ValueError, ["`image_size`", "(32, 32, 3)", "2: one for height and width"]),
    ({"stages": 4}, ValueError, ["`dim`", "length 3", "4: one for each stage"]),
    # Invalid sizes.
    ({"image_size": 0}, ValueError, ["`image_size` is 0", "integer of at least 1"]),
    ({"dim": (16, -24, 32)}, ValueError, ["`dim` is -24", "integer of at least 1"]),
    ({"depth": 0}, ValueError, ["`depth` is 0", "integer of at least 1"]),
    ({"num_classes": -1}, ValueError, ["`num_classes` is -1", "integer of at least 0"]),
    ({"in_channels": 0}, ValueError, ["`in_channels` is 0", "integer of at least 1"]),
    ({"stages": 0}, ValueError, ["`stages` is 0", "integer of at least 1"]),
    ({"dim": 16.5}, TypeError, ["`dim` is 16.5", "integer of at least 1"]),
    ({"heads": (1, 2, 2.0)}, TypeError, ["`heads` is 2.0", "integer of at least 1"]),
    ({"image_size": "224"}, TypeError, ["`image_size` is '224'", "integer of at least 1"]),
    ({"num_classes": None}, TypeError, ["`num_classes` is None", "integer of at least 0"]),
    ({"patch_size": 16.0}, (TypeError, ValueError), ["`patch_size` is 16.0", "16, 8, 4"]),
    # True equals 1 in Python.
    ({"depth": True}, TypeError, ["`depth` is True", "integer of at least 1"]),
    ({"heads": (1, True, 2)}, TypeError, ["`heads` is True", "integer of at least 1"]),
    ({"num_classes": False}, TypeError, ["`num_classes` is False", "integer of at least 0"]),
    # Rates.
    ({"dropout": 1}, ValueError, ["`dropout` is 1", "[0, 1)"]),
    ({"dropout": -0.1}, ValueError, ["`dropout` is -0.1", "[0, 1)"]),
    ({"drop_path": 1.5}, ValueError, ["`drop_path` is 1.5", "[0, 1)"]),
    ({"drop_path": float("nan")}, ValueError, ["`drop_path` is nan", "[0, 1)"]),
    ({"dropout": "0.1"}, TypeError, ["`dropout` is '0.1'", "[0, 1)"]),
    ({"dropout": True}, TypeError, ["`dropout` is True", "[0, 1)"]),
    # Choices and flags.
    ({"activation": "hardswish"}, ValueError, ["`activation` is 'hardswish'", "'silu'", "Did you mean 'hard_swish'"]),
    ({"network": "vit-pytorch"}, ValueError, ["`network` is 'vit-pytorch'", "'paper'", "Did you mean 'vit_pytorch'"]),
    ({"patch_size": 32}, ValueError, ["`patch_size` is 32", "16, 8, 4"]),
    ({"dtype": "int32"}, ValueError, ["`dtype` is 'int32'", "'bfloat16'"]),
    ({"dtype": None}, ValueError, ["`dtype` is None", "'bfloat16'"]),
    ({"patch_size": np.zeros(3)}, ValueError, ["`patch_size` is", "16, 8, 4"]),
    ({"dtype": "bf16"}, ValueError, ["`dtype` is 'bf16'", "'bfloat16'"]),
    ({"distillation": 2}, TypeError, ["`distillation` is 2", "True or False"]),
    ({"remat": "yes"}, TypeError, ["`remat` is 'yes'", "True or False"]),
]


@pytest.mark.parametrize(("keywords", "kind", "fragments"), KEYWORDS, ids=[str(case[0]) for case in KEYWORDS])
def test_keywords_of_the_model(keywords, kind, fragments, make):
    three = {"stages": 3, "dim": (16, 24, 32), "heads": (1, 2, 2), "image_size": 64, "patch_size": 16}
    with fails(kind, *fragments):
        make(**three | keywords)


@pytest.mark.parametrize("image_size", ((8, 4), (4, 5)))
def test_an_image_of_two_tokens_is_large_enough_to_shrink(image_size):
    config = levitax.LeViTConfig(image_size=image_size, patch_size=4, stages=2, dim=8, heads=1)
    assert config.grid(1) == (1, 1)


@pytest.mark.parametrize("value", (np.int64(16), jnp.asarray(16)), ids=repr)
def test_integers_of_numpy_and_jax_are_integers(value):
    config = levitax.LeViTConfig(dim=value, num_classes=value)
    assert type(config.num_classes) is int and config.dim == (16, 16, 16)


@pytest.mark.parametrize(
    ("make_layer", "kind", "fragments"),
    [
        (lambda key: levitax.nn.BatchNorm(0), ValueError, ["`channels` is 0", "at least 1"]),
        (lambda key: levitax.nn.LinearNorm(4, -1, key=key), ValueError, ["`out_features` is -1", "at least 1"]),
        (
            lambda key: levitax.nn.NormLinear(4, cast(Any, 2.5), key=key),
            TypeError,
            ["`out_features` is 2.5", "at least 1"],
        ),
        (lambda key: levitax.nn.ConvNorm(3, 8, stride=0, key=key), ValueError, ["`stride` is 0", "at least 1"]),
        (lambda key: levitax.nn.AttentionBias(0, (2, 2), key=key), ValueError, ["`heads` is 0", "at least 1"]),
        (lambda key: levitax.nn.DropPath(1.0), ValueError, ["`rate` is 1.0", "[0, 1)"]),
        (lambda key: levitax.nn.MLP(4, 8, dropout=1.5, key=key), ValueError, ["`dropout` is 1.5", "[0, 1)"]),
        (
            lambda key: levitax.nn.Attention(4, (2, 2), heads=1, key_dim=2, value_dim=2, dropout=-1.0, key=key),
            ValueError,
            ["`dropout` is -1.0", "[0, 1)"],
        ),
    ],
    ids=("BatchNorm", "LinearNorm", "NormLinear", "ConvNorm", "AttentionBias", "DropPath", "MLP", "Attention"),
)
def test_arguments_of_the_layers(make_layer, kind, fragments, key):
    with fails(kind, *fragments):
        make_layer(key)


@pytest.mark.parametrize(("rate", "what"), [("dropout", "Dropout"), ("drop_path", "Drop path")])
def test_a_missing_key(rate, what, make):
    model, state = make(**{rate: 0.2})
    with fails(ValueError, what, "0.2", "`key=...`", "eqx.nn.inference_mode(model)"):
        eqx.filter_eval_shape(levitax.batched(model), jnp.ones((2, 16, 16, 3)), state)


def test_training_without_a_batch_axis(make):
    model, state = make()
    with fails(ValueError, "batch axis 'batch'", "levitax.batched(model)", "eqx.nn.inference_mode(model)"):
        eqx.filter_eval_shape(model, jnp.ones((16, 16, 3)), state)


def test_training_on_a_batch_of_one(make):
    model, state = make()
    with fails(ValueError, "more than one value per channel", "larger batch", "eqx.nn.inference_mode(model)"):
        eqx.filter_eval_shape(levitax.batched(model), jnp.ones((1, 16, 16, 3)), state)


@pytest.mark.parametrize(
    "other",
    [{"dim": (16, 32)}, {"depth": 1, "stages": 1, "dim": 16, "heads": 1}, {"distillation": False}],
    ids=("wider", "fewer stages", "one head"),
)
def test_a_state_of_another_model(other, make):
    (model, _), (_, state) = make(), make(**other)
    for use in (lambda: model_in_inference(model, state), lambda: levitax.fuse(model, state)):
        with fails(ValueError, "`state`", "another model", "eqx.nn.make_with_state"):
            use()


def model_in_inference(model, state):
    return eqx.filter_eval_shape(eqx.nn.inference_mode(model), jnp.ones((16, 16, 3)), state)


@pytest.mark.parametrize("state", (None, {}, "state"), ids=repr)
def test_values_that_are_not_a_state(state, make):
    model, _ = make()
    with fails(TypeError, "`state`", f"`{type(state).__name__}`", "eqx.nn.make_with_state"):
        model_in_inference(model, state)
    with fails(TypeError, "`state`", f"`{type(state).__name__}`", "running statistics"):
        levitax.fuse(model, state)


def test_fusing_with_model_and_state_exchanged(make):
    model, state = make()
    with fails(TypeError, "`state`", "`LeViT`", "running statistics"):
        levitax.fuse(state, model)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("levit_265", "'levit_256'"),
        ("LeViT-128-S", "'levit_128s'"),
        ("levit_384s8", "'levit_384_s8'"),
        ("levit", "'levit_"),
    ],
)
def test_an_unknown_variant(name, near, key):
    with fails(ValueError, "`name` is", "expected one of", "'levit_512d'", "Did you mean", near):
        levitax.create_model(name, key=key)


@pytest.mark.parametrize(
    ("keyword", "near"),
    (
        ("img_size", "'image_size'"),
        ("num_class", "'num_classes'"),
        ("width", "Expected `image_size`, `num_cl"),
    ),
)
def test_a_variant_with_an_unknown_keyword(keyword, near, key):
    with fails(TypeError, f"There is no `{keyword}`", near):
        levitax.levit_256(key=key, **{keyword: 16})  # type: ignore[reportArgumentType]


@pytest.mark.parametrize("pretrained", (False, True))
def test_a_variant_of_other_sizes(pretrained, key):
    with fails(TypeError, "`key_dim` is 16", "it is [32, 32, 32]", "VARIANTS['levit_256'], 'key_dim': ...}"):
        levitax.levit_256(key=key, pretrained=pretrained, key_dim=16)  # type: ignore[reportCallIssue]


def test_a_name_that_resembles_nothing_gets_no_suggestion(key):
    with pytest.raises(ValueError, match="expected one of") as error:
        levitax.create_model("xyz", key=key)
    assert "Did you mean" not in str(error.value)


def test_a_model_that_was_fused_already(make):
    predict = levitax.fuse(*make())
    with fails(TypeError, "`Predictor`", "fused already", "`.model`"):
        levitax.fuse(predict, predict.state)


def test_a_layer_made_without_its_state(key):
    layer = levitax.nn.LinearNorm(3, 4, key=key)
    _, state = eqx.nn.make_with_state(levitax.nn.LinearNorm)(3, 4, key=key)
    with fails(ValueError, "made without its state", "make_with_state"):
        eqx.nn.inference_mode(layer)(jnp.zeros((2, 3)), state)


GREY = {
    "batch of grey images": ((5, 16, 20), "(5, 16, 20)", "`images[..., None]`", "levitax.batched(model)"),
    "channels first": ((1, 16, 20), "(1, 16, 20)", "jnp.moveaxis(image, 0, -1)"),
    "without channels": ((16, 20), "(16, 20)", "`image[:, :, None]`"),
    "single image": ((20, 1), "(20, 1)", "without `batched`"),
}


@pytest.mark.parametrize(("shape", "fragments"), [(case[0], case[1:]) for case in GREY.values()], ids=GREY)
def test_images_of_a_wrong_shape_for_a_model_of_one_channel(shape, fragments, make):
    model, state = make(image_size=(16, 20), in_channels=1)
    with fails(ValueError, "`image`", "expected (16, 20, 1)", *fragments[1:]):
        eqx.nn.inference_mode(model)(jnp.ones(shape), state)


@pytest.mark.parametrize(
    "image", ([[1.0]], "cat.png", None, 3, SimpleNamespace(shape=(16, 16, 3), dtype="torch.float32")), ids=repr
)
def test_an_image_that_is_not_an_array(image, make):
    with fails(TypeError, "`image` is of type", type(image).__name__, "`jnp.asarray(image, jnp.float32)`"):
        model, state = make()
        eqx.nn.inference_mode(model)(image, state)


@pytest.mark.parametrize("x", (None, 1.0, [[1.0] * 4]), ids=repr)
def test_layers_given_a_value_that_is_not_an_array(x: Any, key):
    layer, state = eqx.nn.make_with_state(levitax.nn.LinearNorm)(4, 4, key=key)
    with fails(TypeError, "`x` is of type", type(x).__name__, "expected an array with 4 channels"):
        layer(x, state)


def test_layers_given_integers_would_have_weights_of_zero(key):
    layers = [
        (eqx.nn.make_with_state(levitax.nn.LinearNorm)(3, 4, key=key), (2, 3)),
        (eqx.nn.make_with_state(levitax.nn.NormLinear)(3, 4, key=key), (3,)),
        (eqx.nn.make_with_state(levitax.nn.ConvNorm)(3, 4, key=key), (4, 4, 3)),
        (eqx.nn.make_with_state(levitax.nn.Stem)(3, (4, 8), key=key), (4, 4, 3)),
        (eqx.nn.make_with_state(levitax.nn.BatchNorm)(3), (2, 3)),
    ]
    for (layer, state), shape in layers:
        with fails(TypeError, "`x` has dtype uint8", "use `x.astype(jnp.float32)`"):
            eqx.nn.inference_mode(layer)(jnp.ones(shape, jnp.uint8), state)


def test_a_batch_where_a_map_belongs(key):
    makers: tuple[Any, ...] = (partial(levitax.nn.ConvNorm, 3, 4), partial(levitax.nn.Stem, 3, (4, 8)))
    for make_layer in makers:
        layer, state = eqx.nn.make_with_state(make_layer)(key=key)
        with fails(ValueError, "(2, 4, 4, 3)", "expected (height, width, channels)", "`jax.vmap`"):
            layer(jnp.ones((2, 4, 4, 3)), state)


def test_the_maps_of_a_batch_are_not_classified_as_one(make):
    model, state = make()
    for shape in ((3, 2, 2, 24), (2, 3, 24), (24,)):
        with fails(ValueError, f"`features` has shape {shape}", "expected (2, 2, 24)", "`jax.vmap`"):
            model.classify(jnp.ones(shape), state)


def test_an_activation_by_its_name(key):
    name: Any = "relu"
    for make_layer in (
        partial(levitax.nn.MLP, 4, 4),
        partial(levitax.nn.Stem, 3, (4, 8)),
        partial(levitax.nn.Attention, 4, (2, 2), heads=1, key_dim=4, value_dim=4),
    ):
        with fails(TypeError, "`activation` is 'relu'", "a function of an array, such as `jax.nn.gelu`"):
            make_layer(activation=name, key=key)


def test_values_that_are_not_a_model(make):
    nothing: Any = None
    for call in (lambda: levitax.batched(nothing), lambda: levitax.Predictor(nothing, make()[1])):
        with fails(TypeError, "`model` is of type `NoneType`", "expected a model"):
            call()


@pytest.mark.parametrize("images", (None, 1.0, jnp.zeros(()), []), ids=repr)
def test_images_without_a_batch(images, make):
    model, state = make()
    with fails(TypeError, "`images` is of type", "without a batch axis", "(batch, height, width, channels)"):
        levitax.batched(model)(images, state)


@pytest.mark.parametrize("stage", (2, -3, 1.0, None), ids=repr)
def test_a_stage_that_does_not_exist(stage: Any, make):
    config = make()[0].config
    for method in (config.grid, config.block_sizes):
        with fails((TypeError, ValueError), "`stage` is"):
            method(stage)
    assert config.grid(-1) == config.grid(1) == (2, 2)
    assert config.block_sizes(-2) == config.block_sizes(0)


def test_a_layer_given_another_number_of_channels_or_tokens(key):
    norm, state = eqx.nn.make_with_state(levitax.nn.BatchNorm)(8, inference=True)
    with fails(ValueError, "(5, 1)", "8 channels"):
        norm(jnp.zeros((5, 1)), state)
    attention, state = eqx.nn.make_with_state(levitax.nn.Attention)(8, (2, 3), heads=1, key_dim=4, value_dim=8, key=key)
    with fails(ValueError, "(5, 8)", "6 tokens"):
        eqx.nn.inference_mode(attention)(jnp.zeros((5, 8)), state)
