"""The image size of weights whose file does not give it: flat attention bias tables show only the token count."""

import json
import warnings
from typing import Any

import equinox as eqx
import jax
import pytest
import safetensors.numpy

import levitax
from levitax.weights import adapt, load, load_initial, load_into, save, state_dict
from tests.equality import tree_equal


THREE = {"stages": 3, "dim": 16, "heads": 1, "patch_size": 16}
TWO = {"stages": 2, "dim": 16, "heads": 1}

# Sizes whose token counts in every stage are also those of a square.
RECTANGLES = {
    "64x256": {**THREE, "image_size": (64, 256)},
    "128x512": {**THREE, "image_size": (128, 512)},
    "192x768": {**THREE, "image_size": (192, 768)},
    "256x576": {**THREE, "image_size": (256, 576)},
    "higher than wide": {**THREE, "image_size": (256, 64)},
    "two stages": {**TWO, "image_size": (32, 128), "patch_size": 16},
    "patches of 8": {**THREE, "image_size": (32, 128), "patch_size": 8},
    "patches of 4": {**THREE, "image_size": (16, 64), "patch_size": 4},
    "no multiple of a patch": {**THREE, "image_size": (60, 250)},
}


@pytest.fixture
def rectangle(make, randomise, request):
    return randomise(*make(**request.param))


def same(loaded, written) -> bool:
    return bool(tree_equal(loaded, written, typematch=True))


SLOW = ("128x512", "192x768", "higher than wide", "patches of 8")


@pytest.mark.parametrize(
    "rectangle",
    [
        pytest.param(sizes, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, sizes in RECTANGLES.items()
    ],
    indirect=True,
)
def test_the_requested_size_is_preferred_to_a_square(rectangle):
    assert same(load(state_dict(*rectangle, layout="timm"), image_size=rectangle[0].config.image_size), rectangle)


@pytest.mark.parametrize("rectangle", [RECTANGLES["64x256"], RECTANGLES["no multiple of a patch"]], indirect=True)
@pytest.mark.parametrize("layout", ("timm", "levitax"))
def test_the_size_of_a_given_model_is_preferred_to_a_square(rectangle, layout, make):
    arrays, config = state_dict(*rectangle, layout=layout), rectangle[0].config
    model, state = make(**config.to_dict())
    assert same(load_into(model, state, arrays), rectangle)
    fresh = lambda key: load_initial(levitax.LeViT(**config.to_dict(), key=key), arrays)
    assert same(eqx.nn.make_with_state(fresh)(jax.random.key(0)), rectangle)


@pytest.mark.parametrize("rectangle", [RECTANGLES["64x256"]], indirect=True)
@pytest.mark.parametrize("layout", ("official", "timm_conv", "transformers", "mmpretrain"))
def test_the_requested_size_is_used_in_every_layout_with_flat_tables(rectangle, layout):
    assert tree_equal(load(state_dict(*rectangle, layout=layout), image_size=(64, 256)), rectangle)


@pytest.mark.parametrize("rectangle", [{**RECTANGLES["64x256"], "network": "vit_pytorch"}], indirect=True)
def test_the_requested_size_is_used_in_the_layout_of_vit_pytorch(rectangle):
    assert tree_equal(load(state_dict(*rectangle, layout="vit_pytorch"), image_size=(64, 256)), rectangle)


@pytest.mark.parametrize("rectangle", [RECTANGLES["64x256"]], indirect=True)
@pytest.mark.parametrize("asked", ((60, 250), (49, 241), (64, 256)))
def test_a_requested_size_with_the_same_tokens_is_used(rectangle, asked, make):
    arrays = state_dict(*rectangle, layout="timm")
    model, state = load(arrays, image_size=asked)
    assert model.config.image_size == asked
    assert tree_equal(state_dict(model, state, layout="timm"), arrays)
    model, state = make(**{**THREE, "image_size": asked})
    model, state = load_into(model, state, arrays)
    assert tree_equal(state_dict(model, state, layout="timm"), arrays)


@pytest.mark.parametrize("rectangle", [RECTANGLES["64x256"]], indirect=True)
def test_a_square_is_guessed_with_a_warning_that_names_the_others(rectangle, make):
    arrays = state_dict(*rectangle, layout="timm")
    candidates = (
        "64 tokens and fit images of 64x256, 128x128, 256x64 pixels; assumed 128x128. .*`image_size=.height, width.`"
    )
    with pytest.warns(UserWarning, match=candidates):
        assert load(arrays)[0].config.image_size == (128, 128)
    # It also warns if the requested size is none of the candidates.
    with pytest.warns(UserWarning, match=candidates):
        resized = load(arrays, image_size=96)
    assert tree_equal(resized, adapt(*load(arrays, image_size=128), image_size=96))
    model, state = make(**{**THREE, "image_size": 96})
    with pytest.warns(UserWarning, match=candidates):
        load_into(model, state, arrays)
    # The fix: load with the original size, then resize.
    assert same(adapt(*load(arrays, image_size=(64, 256)), image_size=(64, 256)), rectangle)


SURE = {
    "a table with rows and columns": ("levitax", {**THREE, "image_size": 128}),
    "a published variant": (
        "timm",
        {**levitax.VARIANTS["levit_128s"], "stages": 3, "patch_size": 16, "image_size": 224},
    ),
    "one grid alone": ("timm", {**THREE, "image_size": 96}),
}


@pytest.mark.parametrize(("layout", "sizes"), SURE.values(), ids=SURE)
def test_an_unambiguous_square_does_not_warn(layout, sizes, make):
    model, state = make(**sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(state_dict(model, state, layout=layout))[0].config == model.config


@pytest.mark.parametrize("rectangle", [RECTANGLES["64x256"]], indirect=True)
def test_weights_are_read_at_the_size_in_the_file_and_then_resized(rectangle, tmp_path):
    written = rectangle[0].config.image_size
    path = tmp_path / "model.safetensors"
    resized = adapt(*rectangle, image_size=128)
    # A levitax header.
    save(path, *rectangle, layout="timm")
    assert same(load(path), rectangle)
    assert same(load(path, image_size=128), resized)
    # A `config.json` next to the file of another library.
    safetensors.numpy.save_file(state_dict(*rectangle, layout="timm"), path)
    (tmp_path / "config.json").write_text(json.dumps({"model_args": {"img_size": written}}))
    assert same(load(path), rectangle)
    assert same(load(path, image_size=128), resized)


def test_a_size_that_cannot_be_guessed_names_the_candidates(make):
    model, state = make(**THREE, image_size=(64, 96))
    arrays: Any = state_dict(model, state, layout="timm")
    with pytest.raises(ValueError, match=r"24 tokens: .*4x6 or 6x4.*`image_size`.*`levitax\.weights\.adapt`"):
        load(arrays, image_size=128)
