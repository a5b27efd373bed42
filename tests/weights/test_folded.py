"""Checkpoints of other libraries with normalisations folded into the linear layers: levitax reads fused models."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import levitax
from levitax.weights import adapt, load, load_initial, load_into, save, state_dict
from tests.equality import tree_equal


@pytest.fixture
def trained(make, randomise):
    return randomise(*make(patch_size=16, image_size=48))


def fold(arrays, *, renamed):
    """Folds a state dictionary like the authors' `replace_batchnorm`, timm's `reparameterize_model` and mmpretrain's
    `switch_to_deploy`. Unless `renamed`, the names are those with an identity in place of each normalisation."""
    folded = {name: array for name, array in arrays.items() if "attention_bias" in name}
    for name in arrays:
        if not name.endswith(".running_var"):
            continue
        norm = name.removesuffix(".running_var")
        owner = norm.rpartition(".")[0]
        of_map = next(f"{owner}.{kind}" for kind in MAPS if f"{owner}.{kind}.weight" in arrays)
        weight, bias = arrays[f"{of_map}.weight"], arrays.get(f"{of_map}.bias")
        scale = arrays[f"{norm}.weight"] / np.sqrt(arrays[name] + 1e-5)
        shift = arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * scale
        new = owner if renamed else of_map
        if bias is None:
            folded[f"{new}.weight"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            folded[f"{new}.bias"] = shift
        else:
            folded[f"{new}.weight"], folded[f"{new}.bias"] = weight * scale, weight @ shift + bias
    return folded


MAPS = ("linear", "c", "l", "conv", "convolution")
NAMES = {
    "official": "blocks.0.m.qkv.weight",
    "timm": "stages.0.blocks.0.attn.qkv.weight",
    "timm_conv": "stages.1.downsample.attn_downsample.q.ln.weight",
    "mmpretrain": "backbone.stages.0.0.block.qkv.weight",
}
KEPT_NAMES = {
    "timm": "stages.0.blocks.0.attn.qkv.linear.bias",
    "transformers": "levit.encoder.stages.0.layers.0.module.queries_keys_values.linear.bias",
}


@pytest.mark.parametrize(
    ("layout", "name", "renamed"),
    [*((*item, True) for item in NAMES.items()), *((*item, False) for item in KEPT_NAMES.items())],
)
def test_a_folded_checkpoint_is_read_as_a_fused_model(trained, images, error, layout, name, renamed):
    arrays = fold(state_dict(*trained, layout=layout), renamed=renamed)
    assert name in arrays
    model, state = load(arrays)
    assert model.config == trained[0].config
    predict, expected = levitax.Predictor(model, state), levitax.fuse(*trained)
    # One is folded by NumPy, the other by XLA, which round differently.
    assert error(*(eqx.filter(each, eqx.is_array) for each in (predict, expected))) < 2e-6
    assert jax.tree.structure(predict) == jax.tree.structure(expected)


@pytest.fixture
def folded(trained):
    return fold(state_dict(*trained, layout="timm"), renamed=True)


@pytest.mark.slow
def test_a_folded_checkpoint_computes_the_same_as_the_original_model(trained, folded, images, error, tmp_path):
    compute = eqx.filter_jit(lambda predict: jax.vmap(predict)(images(2, 48, 48, 3)))
    predict = levitax.Predictor(*load(folded))
    assert error(compute(predict), compute(levitax.Predictor(*trained))) < 2e-6
    # The model is saved like any fused model.
    save(tmp_path / "fused.safetensors", predict.model, predict.state)
    again = levitax.Predictor(*load(tmp_path / "fused.safetensors"))
    assert tree_equal(again, predict, typematch=True)


def test_fields_that_folding_does_not_fix_can_be_changed(trained, folded, error):
    changes: dict[str, Any] = {"image_size": 80, "in_channels": 1, "activation": "silu", "dtype": "bfloat16"}
    model, state = load(folded, **changes)
    expected = levitax.fuse(*adapt(*trained, **changes))
    assert model.config == expected.model.config
    # The precision of bfloat16 is 8 bits.
    assert (
        error(
            *(
                eqx.filter((each.model, each.state), eqx.is_array)
                for each in (levitax.Predictor(model, state), expected)
            )
        )
        < 2**-8
    )


def test_changes_of_fields_that_folding_fixed_are_refused(trained, folded, make, key):
    changes: list[dict[str, Any]] = [{"num_classes": 3}, {"distillation": False}]
    for change in changes:
        with pytest.raises(ValueError, match=f"a fused model, which cannot have another `{next(iter(change))}`"):
            load(folded, key=key, **change)
    assert load(folded, num_classes=5)[0].config.num_classes == 5
    model, state = make(patch_size=16, image_size=48)
    for call in (
        lambda: load_into(model, state, folded),
        lambda: load_initial(levitax.LeViT(**model.config.to_dict(), key=key), folded),
    ):
        with pytest.raises(
            ValueError, match=r"normalisations are folded in\. Read it with `levitax\.load`.*from before fusing"
        ):
            call()


def test_a_checkpoint_folded_in_part_is_refused_by_that_name(trained):
    arrays = state_dict(*trained, layout="timm")
    part = fold({name: array for name, array in arrays.items() if name.startswith("stem")}, renamed=False)
    rest = {name: array for name, array in arrays.items() if not name.startswith("stem")}
    with pytest.raises(ValueError, match=r"unexpected: stem.*normalisations are folded in: use the checkpoint from"):
        load(part | rest)
