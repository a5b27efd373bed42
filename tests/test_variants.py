import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

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
