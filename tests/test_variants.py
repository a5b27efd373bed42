import functools
import os
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy

import levitax
from tests.equality import tree_equal


# With two heads, one head and no head, and fused with both heads merged.
COUNTS = {
    "levit_128s": (7_777_058, 7_391_290, 7_005_522, 7_371_466),
    "levit_128": (9_213_936, 8_828_168, 8_442_400, 8_803_864),
    "levit_192": (10_947_069, 10_561_301, 10_175_533, 10_533_613),
    "levit_256": (18_893_876, 18_379_852, 17_865_828, 18_343_276),
    "levit_384": (39_128_836, 38_358_300, 37_587_764, 38_305_100),
    "levit_512": (96_200_748, 95_173_700, None, None),
    "levit_256d": (26_724_812, 26_210_788, None, None),
    "levit_512d": (93_268_074, 92_497_538, None, None),
    "levit_384_s8": (39_118_960, 38_348_424, None, None),
    "levit_512_s8": (74_945_488, 74_046_696, None, None),
}
OVERRIDES = {"two heads": {"distillation": True}, "one head": {"distillation": False}, "no head": {"num_classes": 0}}
CASES = [
    pytest.param(name, overrides, count, id=f"{name}-{heads}")
    for name, counts in COUNTS.items()
    for (heads, overrides), count in zip(OVERRIDES.items(), counts[:3], strict=True)
    if count is not None
]
FOLDED = {name: counts[-1] for name, counts in COUNTS.items() if counts[-1] is not None}


def shapes(make, *args, **keywords):
    """Returns the shapes and dtypes of the result of `make`, without computing it."""
    return eqx.filter_eval_shape(make, *args, **keywords, key=jax.random.key(0))


@functools.cache
def variant(name):
    return shapes(levitax.create_model, name)


@pytest.mark.parametrize(("name", "overrides", "expected"), CASES)
def test_parameters_are_as_many_as_published(name, overrides, expected):
    model, _ = shapes(levitax.create_model, name, **overrides)
    assert levitax.count_parameters(model) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), FOLDED.items())
def test_parameters_of_the_fused_model_are_as_many_as_published(name, expected):
    predict = eqx.filter_eval_shape(levitax.fuse, *variant(name))
    assert levitax.count_parameters(predict) == expected


def test_running_statistics_are_not_counted_before_they_are_split_off(small, key):
    assert levitax.count_parameters(levitax.nn.BatchNorm(8)) == 16
    model, state = eqx.nn.make_with_state(levitax.LeViT)(**small, key=key)
    expected = levitax.count_parameters(model)
    assert levitax.count_parameters((model, state)) == expected
    assert levitax.count_parameters(levitax.LeViT(**small, key=key)) == expected


def test_arrays_are_counted_as_their_shapes_are():
    model, state = variant("levit_128s")
    predict = eqx.filter_eval_shape(levitax.fuse, model, state)
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    assert levitax.count_parameters(jax.tree.map(zeros, model)) == COUNTS["levit_128s"][0]
    assert levitax.count_parameters(jax.tree.map(zeros, predict)) == FOLDED["levit_128s"]


def test_the_vit_pytorch_example_has_as_many_parameters_as_there():
    model, _ = shapes(
        eqx.nn.make_with_state(levitax.LeViT),
        network="vit_pytorch",
        image_size=224,
        num_classes=1000,
        stages=3,
        dim=(256, 384, 512),
        depth=4,
        heads=(4, 6, 8),
        mlp_mult=2,
        dropout=0.1,
    )
    assert levitax.count_parameters(model) == 17_348_972


@pytest.mark.parametrize("name", levitax.VARIANTS)
def test_every_variant_has_a_function_of_its_name(name):
    assert tree_equal(shapes(getattr(levitax, name)), variant(name))


@pytest.mark.parametrize("name", levitax.VARIANTS)
def test_docstrings_give_the_number_of_parameters(name):
    number = re.search(r"([\d.]+) M parameters", getattr(levitax, name).__doc__)
    assert number is not None and float(number[1]) == round(levitax.count_parameters(variant(name)[0]) / 1e6, 1)


@pytest.mark.parametrize("spelling", ("LeViT-256", "levit-256", "LEVIT_256"))
def test_names_are_found_however_they_are_spelled(spelling):
    model, _ = shapes(levitax.create_model, spelling)
    assert model.config == levitax.LeViTConfig(**levitax.VARIANTS["levit_256"])


def test_overrides_go_into_the_model():
    overrides: levitax.Overrides = {
        "image_size": (200, 225),
        "num_classes": 7,
        "in_channels": 1,
        "distillation": False,
        "dropout": 0.2,
        "drop_path": 0.3,
        "remat": True,
        "dtype": "bfloat16",
    }
    model, _ = shapes(levitax.levit_384, **overrides)
    fields = model.config.to_dict()
    keywords: levitax.LeViTKeywords = {**levitax.VARIANTS["levit_384"], **overrides}
    assert fields == levitax.LeViTConfig(**keywords).to_dict()
    assert {name: fields[name] for name in overrides} == {**overrides, "image_size": [200, 225]}


def test_the_default_model_is_levit_256():
    assert levitax.LeViTConfig() == levitax.LeViTConfig(**levitax.VARIANTS["levit_256"])


@pytest.mark.parametrize("name", levitax.VARIANTS)
def test_only_levit_384_is_published_with_drop_path(name):
    model, _ = variant(name)
    expected = 0.1 if name == "levit_384" else 0.0
    rates = {block.drop_path.rate for stage in model.stages for block in stage.blocks}
    assert model.config.drop_path == expected and rates == {expected}


@pytest.fixture
def published(key, tmp_path, monkeypatch):
    """A folder in the place of the published weights of LeViT-128S, which `load` prefers to the hub: the weights are
    random. Returns the model in it."""
    folder = tmp_path / levitax.PRETRAINED["levit_128s"]
    folder.mkdir(parents=True)
    model, state = levitax.levit_128s(key=key)
    arrays = levitax.weights.state_dict(model, state, layout="timm")
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return model


def test_published_weights_are_loaded_and_adapted(published, key):
    assert tree_equal(levitax.levit_128s(pretrained=True)[0], published)
    model, _ = levitax.create_model("LeViT-128s", pretrained=True, num_classes=7, image_size=(96, 128), key=key)
    assert (model.config.num_classes, model.config.image_size) == (7, (96, 128))
    assert tree_equal(model.stem, published.stem)
    with pytest.raises(ValueError, match=r"no classifier for `num_classes` 7: pass `key=\.\.\.` to draw one"):
        levitax.levit_128s(pretrained=True, num_classes=7)


def test_without_a_network_the_error_says_how_to_go_on(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    code = "import levitax; levitax.levit_256(pretrained=True)"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ConnectionError: There is no folder") and "the hub is out of reach" in last
    assert (
        "timm/levit_256.fb_dist_in1k/resolve/main/model.safetensors" in last
        and "pass the path of that folder instead of the name" in last
    )


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    (
        (
            "levit_512",
            {},
            r"`pretrained` is True, but 'levit_512' has no .* levit_128s, .* pass `key=jax.random.key\(0\)`",
        ),
        ("levit_256", {"patch_size": 8}, "`patch_size` is 8, but the published weights of 'levit_256' need 16: leave"),
        ("levit_256", {"norm": eqx.nn.GroupNorm}, "`norm` is .*GroupNorm.*, but .* need None: leave out `norm`, or"),
        ("levit_256", {"attention_bias": print}, "`attention_bias` is .*print.*, but the published weights"),
        ("levit_256", {"image_size": 0}, "`image_size` is 0; expected"),
    ),
)
def test_what_published_weights_do_not_fit_is_refused_before_a_download(name, overrides, message, monkeypatch):
    monkeypatch.setattr("levitax._create.load", None)
    with pytest.raises(ValueError, match=message):
        levitax.create_model(name, pretrained=True, **overrides)


@pytest.mark.parametrize("name", levitax.VARIANTS)
def test_a_missing_key_leads_to_a_key_or_to_published_weights(name):
    message = r"`key` is None; expected a JAX random key, such as `jax\.random\.key\(0\)`"
    with pytest.raises(TypeError, match=message) as error:
        getattr(levitax, name)()
    assert ("pass `pretrained=True`" in str(error.value)) == (name in levitax.PRETRAINED)


def test_pretrained_is_true_or_false(key, unchecked):
    with pytest.raises(TypeError, match="`pretrained` is 'timm'; expected True or False"):
        levitax.levit_256(pretrained="timm", key=key)  # type: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`pretrained` is 1; expected True or False"):
        levitax.list_models(pretrained=1)  # type: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    (
        ("*", list(levitax.VARIANTS)),
        ("levit_256*", ["levit_256", "levit_256d"]),
        ("LeViT-384-S8", ["levit_384_s8"]),
        ("levit-[1-2]*", ["levit_128s", "levit_128", "levit_192", "levit_256", "levit_256d"]),
        ("*[0-9]d", ["levit_256d", "levit_512d"]),
        ("resnet*", []),
    ),
)
def test_models_are_listed_by_pattern(pattern, expected):
    assert levitax.list_models(pattern) == expected


def test_models_with_published_weights_are_listed():
    assert levitax.list_models(pretrained=True) == list(levitax.PRETRAINED)
    assert levitax.list_models("*128*", pretrained=True) == ["levit_128s", "levit_128"]
    without = set(levitax.VARIANTS) - set(levitax.PRETRAINED)
    assert all("no published weights" in re.sub(r"\s+", " ", getattr(levitax, name).__doc__) for name in without)


def test_a_pattern_that_is_no_string_is_refused(unchecked):
    with pytest.raises(TypeError, match=r"`pattern` is 256; expected a string"):
        levitax.list_models(256)  # type: ignore[reportArgumentType]
