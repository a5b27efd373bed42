import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import levitax
from levitax.weights import load, load_initial, load_into, save, state_dict
from tests.equality import tree_equal


@pytest.mark.parametrize("as_source", (str, Path, lambda path: path.parent), ids=("str", "path", "folder"))
def test_a_file_is_given_by_its_path_or_its_folder(file, trained, as_source):
    assert tree_equal(load(as_source(file)), trained, typematch=True)


def test_configuration_comes_with_a_file_of_ours(make, tmp_path):
    model, state = make(
        activation="silu", dropout=0.2, drop_path=0.1, remat=True, dtype="bfloat16", image_size=(15, 18)
    )
    save(tmp_path / "model.safetensors", model, state)
    assert load(tmp_path / "model.safetensors")[0].config == model.config


def test_a_loaded_model_computes_what_the_saved_one_did(file, trained, images):
    batch = images(3, 16, 16, 3)
    for mode in (lambda model: model, eqx.nn.inference_mode):
        ours, new = eqx.filter_jit(levitax.batched(mode(trained[0])))(batch, trained[1])
        model, state = load(file)
        theirs, other = eqx.filter_jit(levitax.batched(mode(model)))(batch, state)
        assert tree_equal((ours, new), (theirs, other))


def test_loading_draws_no_random_numbers(file, monkeypatch):
    keys = []

    def note(draw):
        return lambda key, *args, **kwargs: keys.append(key) or draw(key, *args, **kwargs)

    for name in ("uniform", "normal", "split"):
        monkeypatch.setattr(jax.random, name, note(getattr(jax.random, name)))
    load(file)
    # Shapes come from tracing the model, which draws no numbers.
    assert all(isinstance(key, jax.core.Tracer) for key in keys)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_loading_takes_less_memory_than_twice_the_file(tmp_path):
    # The model has 15 million parameters.
    code = """
import re, jax, levitax, sys
keywords = dict(dim=(256, 1024), heads=(4, 16), depth=(1, 1), stages=2, num_classes=10)
if sys.argv[1] == "save":
    import equinox as eqx
    levitax.save(sys.argv[2], *eqx.nn.make_with_state(levitax.LeViT)(**keywords, key=jax.random.key(0)))
else:
    def memory(what):
        return 1024 * int(re.search(rf"{what}:\\s+(\\d+)", open("/proc/self/status").read())[1])
    kept = levitax.load(sys.argv[3])  # With it come packages, and what JAX keeps for each shape.
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    model = levitax.load(sys.argv[2])
    print(memory("VmHWM") - before)
"""
    large, other = tmp_path / "large.safetensors", tmp_path / "other.safetensors"
    run = lambda *arguments: (
        subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
        ).stdout
    )
    run("save", large)
    other.write_bytes(large.read_bytes())
    # The largest of three runs: a run that frees earlier memory meanwhile measures too little.
    peak = max(int(run("load", large, other)) for _ in range(3))
    assert 0.9 * large.stat().st_size < peak < 2 * large.stat().st_size


def test_float16_and_bfloat16_become_float32(trained, tmp_path):
    arrays = state_dict(*trained, layout="timm")
    for dtype in (np.float16, jnp.bfloat16, np.float64):
        kept = {name: array.astype(dtype) if array.dtype == np.float32 else array for name, array in arrays.items()}
        path = tmp_path / "model.safetensors"
        safetensors.numpy.save_file(kept, path)
        model, state = load(path, image_size=16)
        assert {leaf.dtype for leaf in jax.tree.leaves((eqx.filter(model, eqx.is_array), state))} == {
            np.dtype("float32")
        }
        rounded = np.asarray(trained[0].stem.convolutions[0].weight).astype(dtype).astype(np.float32)
        assert np.array_equal(model.stem.convolutions[0].weight, rounded)


class Classifier(eqx.Module):
    """A module of a user with its own state, created before that of the LeViT."""

    calls: eqx.nn.StateIndex
    backbone: levitax.LeViT
    linear: eqx.nn.Linear

    def __init__(self, backbone, *, key):
        self.calls = eqx.nn.StateIndex(jnp.array(7))
        self.backbone = backbone
        self.linear = eqx.nn.Linear(24, 3, key=key)

    def __call__(self, image, state, *, key=None):
        x, state = self.backbone(image, state, key=key)
        assert isinstance(x, jax.Array)
        return self.linear(x), state


HEADLESS = {"num_classes": 0, "distillation": False}


@pytest.mark.parametrize("layout", ("levitax", "timm_conv"))
def test_weights_go_into_a_levit_inside_a_users_module(trained, small, tmp_path, images, key, layout):
    save(tmp_path / "model.safetensors", *trained, layout=layout)
    expected_model, expected_state = load(tmp_path / "model.safetensors", **HEADLESS)
    batch = images(2, 16, 16, 3)
    expected = jax.jit(jax.vmap(levitax.Predictor(expected_model, expected_state)))(batch)
    make_module = eqx.nn.make_with_state(Classifier)

    # Loads after the state is split off.
    module, state = make_module(levitax.LeViT(**small | HEADLESS, key=key), key=key)
    backbone, loaded = load_into(module.backbone, state, tmp_path / "model.safetensors")
    assert jnp.array_equal(jax.jit(jax.vmap(levitax.Predictor(backbone, loaded)))(batch), expected)
    assert loaded.get(module.calls) == 7
    assert state.get(module.calls) == 7  # The old state can still be used.

    # Loads before the state is split off.
    raw = load_initial(levitax.LeViT(**small | HEADLESS, key=key), tmp_path / "model.safetensors")
    module, state = make_module(raw, key=key)
    assert jnp.array_equal(jax.jit(jax.vmap(levitax.Predictor(module.backbone, state)))(batch), expected)
    assert state.get(module.calls) == 7


def test_weights_adapt_to_the_model_they_go_into(trained, make):
    model: Any
    loaded: Any
    model, state = make(image_size=(24, 16), num_classes=7, in_channels=1, distillation=False)
    loaded, loaded_state = load_into(model, state, state_dict(*trained, layout="levitax"))
    arrays, source = state_dict(loaded, loaded_state, layout="levitax"), state_dict(*trained, layout="levitax")
    assert loaded.config == model.config
    assert jnp.array_equal(loaded.head.weight, model.head.weight)
    for ours, theirs in (
        ("head.norm.mean", "head.classification.norm.mean"),
        ("stages.1.blocks.1.mlp.expand.weight",) * 2,
        ("stages.0.blocks.0.attention.project_in.linear.norm.var",) * 2,
    ):
        assert np.array_equal(arrays[ours], source[theirs])
    assert arrays["stages.0.blocks.0.attention.bias.table"].shape == (1, 6, 4)


def test_a_fused_model_is_saved_and_loaded(trained, tmp_path, images):
    predict = levitax.fuse(*trained)
    save(tmp_path / "fused.safetensors", predict.model, predict.state)
    loaded = levitax.Predictor(*load(tmp_path / "fused.safetensors"))
    assert tree_equal(loaded, predict, typematch=True)
    batch = images(2, 16, 16, 3)
    assert jnp.array_equal(jax.jit(jax.vmap(loaded))(batch), jax.jit(jax.vmap(predict))(batch))


def test_trailing_arrays_of_pytorch_are_not_asked_for(trained):
    arrays = state_dict(*trained, layout="timm")
    kept = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    assert len(kept) < len(arrays)
    assert tree_equal(load(kept, image_size=16), trained, typematch=True)


def test_the_error_for_a_wrong_object_says_where_the_levit_is(trained, file, unchecked):
    predict: Any = levitax.Predictor(*trained)
    nothing: Any = None
    for call in (
        lambda: save(file, predict, trained[1]),
        lambda: load_into(predict, trained[1], file),
        lambda: load_initial(predict, file),
        lambda: levitax.weights.adapt(predict, trained[1], image_size=24),
    ):
        with pytest.raises(TypeError, match=r"`model` is of type `Predictor`; .* `predict\.model`"):
            call()
    with pytest.raises(TypeError, match="`source` is of type `NoneType`; expected a path"):
        load(nothing)


def test_a_keyword_that_does_not_exist(file):
    misspelt: dict[str, Any] = {"num_class": 3}
    with pytest.raises(TypeError, match=r"There is no `num_class`. Did you mean 'num_classes'"):
        load(file, **misspelt)


def test_numbers_too_large_for_float32_are_refused_as_not_finite(trained):
    arrays = state_dict(*trained, layout="timm")
    arrays["head.linear.bias"] = np.full(5, 1e39)
    with pytest.raises(ValueError, match=r"NaN or infinite, or negative variances, in head\.linear\.bias"):
        load(arrays, image_size=16)


def test_a_negative_variance_makes_nan(trained):
    arrays = state_dict(*trained, layout="timm")
    arrays["head.bn.running_var"] = -arrays["head.bn.running_var"]
    with pytest.raises(ValueError, match=r"negative variances, in head\.bn\.running_var"):
        load(arrays, image_size=16)
    load(arrays, image_size=16, allow_nonfinite=True)


def test_a_config_next_to_the_weights_sets_the_image_size(make, randomise, tmp_path):
    model, state = randomise(*make(image_size=(15, 22), depth=2))
    safetensors.numpy.save_file(state_dict(model, state, layout="timm"), tmp_path / "model.safetensors")
    write = lambda **content: (tmp_path / "config.json").write_text(json.dumps(content))
    write(image_size=[15, 22], drop_path_rate=None, pretrained_cfg={"input_size": None}, model_args=[1])
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert tree_equal(load(source), (model, state), typematch=True)
    write(pretrained_cfg={"input_size": [3, 15, 22]}, drop_path_rate=0.2, image_size="15")
    assert load(tmp_path)[0].config == levitax.LeViTConfig(**model.config.to_dict() | {"drop_path": 0.2})


@pytest.mark.parametrize(
    ("content", "named"),
    (
        ({"depths": [2, 4]}, r"`depth` \(2, 4\), but the weights have `depth` \(2, 2\)"),
        ({"hidden_sizes": [16, 40]}, r"`dim` \(16, 40\), but"),
        ({"model_args": {"num_heads": [2, 4], "embed_dim": [8, 16]}}, r"`dim` \(8, 16\), `heads` \(2, 4\), but"),
        ({"architecture": "levit_conv_192"}, r"`depth` \(4, 4, 4\), `dim` \(192, 288, 384\), `heads`"),
        ({"num_classes": 7}, r"`num_classes` 7, but the weights have `num_classes` 5"),
        ({"id2label": {"0": "cat", "1": "dog"}}, "`num_classes` 2, but"),
    ),
)
def test_a_config_of_another_model_is_refused(make, tmp_path, content, named):
    safetensors.numpy.save_file(state_dict(*make(depth=2), layout="timm"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"describes a model with {named}"):
        load(tmp_path)


def test_a_backbone_has_the_config_of_its_classifier(make, tmp_path):
    safetensors.numpy.save_file(state_dict(*make(num_classes=0), layout="timm"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_classes": 1000}))
    assert load(tmp_path, image_size=16)[0].config.num_classes == 0
