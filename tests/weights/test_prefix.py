"""LeViTs inside larger checkpoints, whose names have a prefix."""

import re
from typing import Any

import equinox as eqx
import numpy as np
import pytest
import safetensors.numpy

import levitax
from levitax.weights import load, load_initial, load_into, state_dict
from tests.equality import tree_equal


SIZES = {"patch_size": 16, "image_size": 48}


@pytest.fixture
def trained(make, randomise):
    return randomise(*make(**SIZES))


@pytest.fixture
def other(make, randomise):
    model, state = randomise(*make(**SIZES, num_classes=3))
    return model, state


def behind(prefix: str, model: Any, layout: Any = "timm") -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in state_dict(*model, layout=layout).items()}


def offers(*prefixes):
    """Expects an error that says which prefixes to pass."""
    return pytest.raises(
        ValueError, match=re.escape("pass " + " or ".join(f'`prefix="{prefix}"`' for prefix in prefixes))
    )


DECODER = {"decoder.weight": np.zeros((3, 24), np.float32), "encoder_norm.bias": np.zeros(3, np.float32)}


@pytest.mark.parametrize("others", ({}, DECODER), ids=("alone", "among others"))
@pytest.mark.parametrize("prefix", ("encoder.", "model.backbone.", "module.net.0."))
def test_a_prefix_is_named_and_taken_off(trained, tmp_path, prefix, others):
    arrays = behind(prefix, trained) | others
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path)
    for source in (arrays, path):
        with offers(prefix):
            load(source)
    assert tree_equal(load(path, prefix=prefix), trained, typematch=True)
    assert tree_equal(load(arrays, prefix=prefix.removesuffix(".")), trained, typematch=True)


@pytest.mark.parametrize("layout", ("official", "transformers", "mmpretrain", "levitax"))
def test_prefixes_in_every_layout_also_if_its_names_share_a_beginning(trained, layout):
    arrays = behind("backbone.", trained, layout)
    with offers("backbone."):
        load(arrays)
    assert tree_equal(load(arrays, prefix="backbone."), trained, typematch=True)


def test_a_layouts_own_prefix_leads_to_its_backbone(trained):
    model, _ = load(state_dict(*trained, layout="transformers"), prefix="levit")
    assert model.head is None
    assert tree_equal(model.stages, trained[0].stages)


def test_weights_behind_a_prefix_go_into_a_model(trained, make, key):
    arrays = behind("encoder.", trained)
    model, state = make(**SIZES)
    assert tree_equal(load_into(model, state, arrays, prefix="encoder."), trained)
    fresh = lambda key: load_initial(levitax.LeViT(**model.config.to_dict(), key=key), arrays, prefix="encoder.")
    assert tree_equal(eqx.nn.make_with_state(fresh)(key), trained)


def nested(student, teacher):
    return {"student": state_dict(*student, layout="timm"), "teacher": state_dict(*teacher, layout="timm"), "epoch": 3}


def flat(student, teacher):
    return behind("student.", student) | behind("teacher.", teacher)


@pytest.mark.parametrize("together", (nested, flat))
def test_each_of_several_models_can_be_loaded(trained, other, together):
    source = together(trained, other)
    with offers("student.", "teacher."):
        load(source)
    assert tree_equal(load(source, prefix="student."), trained, typematch=True)
    assert tree_equal(load(source, prefix="teacher."), other, typematch=True)


def test_other_content_that_training_scripts_save_with_a_model(trained, other):
    rest: dict[str, Any] = {"epoch": 3, "optimizer": {"state": {0: {"step": np.zeros(())}}, "param_groups": [{}]}}
    with offers("model_state_dict."):
        load({"model_state_dict": behind("", trained), **rest})
    assert tree_equal(load({"model_state_dict": behind("", trained), **rest}, prefix="model_state_dict"), trained)
    # A prefix may be relative to the part that is loaded by default. Other parts need the whole prefix.
    source = {"state_dict": behind("backbone.", trained), "state_dict_ema": behind("", other), **rest}
    with offers("backbone."):
        load(source)
    assert tree_equal(load(source, prefix="backbone."), trained)
    assert tree_equal(load(source, prefix="state_dict.backbone."), trained)
    assert tree_equal(load(source, prefix="state_dict_ema."), other)


def test_a_wrapper_is_taken_off_behind_the_prefix(trained):
    assert tree_equal(load(behind("teacher.module.", trained), prefix="teacher."), trained)


def test_a_copy_next_to_the_model_is_offered(trained):
    arrays = behind("", trained) | behind("ema.", trained)
    with offers("ema."):
        load(arrays)
    assert tree_equal(load(arrays, prefix="ema."), trained)


def test_a_copy_behind_a_wrapper_is_offered_by_its_whole_prefix(trained):
    arrays = behind("model.", trained) | behind("model.ema.", trained)
    with offers("model.ema."):
        load(arrays)
    assert tree_equal(load(arrays, prefix="model.ema."), trained)


def test_a_layouts_own_prefix_is_not_offered(trained):
    arrays = state_dict(*trained, layout="transformers")
    del arrays["classifier.linear.weight"]
    with pytest.raises(ValueError, match="1 missing") as refusal:
        load(arrays)
    assert "prefix" not in str(refusal.value)


def test_a_prefix_that_no_name_has(trained):
    with pytest.raises(
        ValueError, match=r"`prefix` is 'decoder', but no name in the given arrays begins with it.*\"encoder\.\""
    ):
        load(behind("encoder.", trained), prefix="decoder")
    with pytest.raises(ValueError, match=r"`prefix` is 'enc', but no name"):
        load(behind("encoder.", trained), prefix="enc")


def test_a_prefix_that_is_too_short_is_completed(trained):
    for prefix in ("model", "model."):
        with offers("model.backbone.", "model.head."):
            load(behind("model.backbone.", trained) | behind("model.head.", trained), prefix=prefix)


def test_a_prefix_of_another_type(trained, unchecked):
    wrong: Any = 3
    with pytest.raises(TypeError, match=r"`prefix` is 3; expected the beginning of array names, such as 'encoder\.'"):
        load(behind("encoder.", trained), prefix=wrong)
