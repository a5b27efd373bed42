import json
import re
import sys
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import levitax
from levitax import data, export


# Largest error over largest magnitude.
TOLERANCE = 1e-5


def preprocessing(**changes):
    """Returns the preprocessing of a small model."""
    return data.Preprocessing(**{"image_size": 16, **changes})


ACROSS_RUNTIMES = 1e-4


@pytest.mark.parametrize(
    ("keywords", "batch"),
    [
        ({}, None),
        ({"image_size": (20, 13), "activation": "silu", "in_channels": 1}, 3),
        pytest.param({"network": "vit_pytorch"}, None, marks=pytest.mark.slow),
        pytest.param({"activation": "relu", "depth": 2}, 1, marks=pytest.mark.slow),
    ],
    ids=("two heads", "rectangle, silu, grey", "vit_pytorch", "relu"),
)
def test_onnx_runtime_computes_what_jax_does(keywords, batch, fused, drawn, expected, in_onnx_runtime, error, tmp_path):
    predict = fused(**keywords)
    images = drawn(predict, batch or 2)
    path = export.to_onnx(predict, tmp_path / "levit.onnx", batch=batch)
    assert error(in_onnx_runtime(path, images), {"logits": expected(predict, images)}) < TOLERANCE


def test_the_graph_has_no_more_operations_than_a_handwritten_one(fused, tmp_path):
    model = onnx.load(export.to_onnx(fused(heads=(2, 3)), tmp_path / "levit.onnx"))
    counts = Counter(node.op_type for node in model.graph.node)
    # Two convolutions, then three blocks of at most six linear layers, which are 1x1 convolutions with biases. There
    # is no gather, slice or division.
    assert counts.keys() <= {
        *("Conv", "HardSwish", "MatMul", "Add", "Softmax", "Transpose", "Reshape", "ReduceMean", "Gemm")
    }
    assert counts["Conv"] <= 2 + 3 * 6 and counts["MatMul"] == 3 * 2 and counts["Softmax"] == 3
    assert counts["Transpose"] + counts["Reshape"] <= 1 + 3 * 6


def test_one_head_takes_fewer_layers(fused, tmp_path):
    graphs = [onnx.load(export.to_onnx(fused(heads=heads), tmp_path / "levit.onnx")) for heads in ((1, 1), (2, 3))]
    one, several = ([node.op_type for node in model.graph.node].count("Conv") for model in graphs)
    assert one < several


def test_weights_keep_their_names(fused, tmp_path):
    model = onnx.load(export.to_onnx(fused(heads=(2, 3)), tmp_path / "levit.onnx"))
    shapes = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    assert shapes["stem.convolutions.0.weight"][1:] == (3, 3, 3) and shapes["head.weight"][1] == 5
    block = "stages.0.blocks.0"
    for layer in ("mlp.expand", "mlp.contract", "attention.project_out"):
        weight = shapes[f"{block}.{layer}.weight"]
        assert shapes[f"{block}.{layer}.bias"] == weight[:1]
    # The weights of queries, keys and values.
    parts = [shapes[f"{block}.attention.project_in.linear.weight{end}"] for end in ("_1", "_2", "_3")]
    assert parts[0] == parts[1] and parts[2][0] == 2 * parts[0][0]


def test_the_batch_may_be_free(fused, drawn, expected, in_onnx_runtime, error, tmp_path):
    predict = fused()
    path = export.to_onnx(predict, tmp_path / "levit.onnx")
    for batch in (1, 4):
        images = drawn(predict, batch)
        assert error(in_onnx_runtime(path, images), {"logits": expected(predict, images)}) < TOLERANCE


@pytest.mark.slow
def test_channels_may_come_first(fused, drawn, expected, in_onnx_runtime, error, tmp_path):
    predict = fused(image_size=(20, 13))
    images = drawn(predict, 2)
    path = export.to_onnx(predict, tmp_path / "levit.onnx", channels_first=True, features=True)
    results = in_onnx_runtime(path, images.transpose(0, 3, 1, 2))
    maps = jax.vmap(lambda image: predict.model.features(image, predict.state)[0])(images)
    for stage, features in enumerate(maps):
        assert error(results.pop(f"features_{stage}"), np.asarray(features).transpose(0, 3, 1, 2)) < TOLERANCE
    assert error(results, {"logits": expected(predict, images)}) < TOLERANCE


def test_pixels_are_normalised_in_the_graph(fused, drawn, expected, in_onnx_runtime, error, tmp_path):
    predict = fused()
    pixels = drawn(predict, 2, np.uint8)
    preprocessing = data.Preprocessing(image_size=16)
    path = export.to_onnx(predict, tmp_path / "levit.onnx", uint8=True, preprocessing=preprocessing)
    logits = expected(predict, preprocessing.normalise(pixels))
    assert error(in_onnx_runtime(path, pixels), {"logits": logits}) < TOLERANCE


def test_grey_pixels_and_custom_statistics(fused, drawn, expected, in_onnx_runtime, error, tmp_path):
    predict = fused(in_channels=1)
    pixels = drawn(predict, 2, np.uint8)
    preprocessing = data.Preprocessing(image_size=16, mean=(0.1,), std=(0.3,))
    path = export.to_onnx(predict, tmp_path / "levit.onnx", uint8=True, preprocessing=preprocessing)
    logits = expected(predict, preprocessing.normalise(pixels))
    assert error(in_onnx_runtime(path, pixels), {"logits": logits}) < TOLERANCE


def test_probabilities_and_names_of_classes(fused, drawn, expected, in_onnx_runtime, error, tmp_path):
    predict = fused()
    images = drawn(predict, 2)
    names = ["tench", "goldfish", "é", "great, white shark", "5"]
    preprocessing = data.Preprocessing(image_size=16, class_names=names)
    path = export.to_onnx(predict, tmp_path / "levit.onnx", probabilities=True, preprocessing=preprocessing)
    softmax = np.asarray(jax.nn.softmax(expected(predict, images)))
    assert error(in_onnx_runtime(path, images), {"probabilities": softmax}) < TOLERANCE
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert data.Preprocessing.from_dict(json.loads(metadata["preprocessing"])) == preprocessing
    assert metadata["levitax"] == levitax.__version__
    assert metadata["input"] == "(batch, 16, 16, 3), normalised"


def test_a_backbone_has_one_output(fused, drawn, expected, in_onnx_runtime, error, tmp_path):
    predict = fused(num_classes=0)
    images = drawn(predict, 2)
    path = export.to_onnx(predict, tmp_path / "levit.onnx")
    assert error(in_onnx_runtime(path, images), {"output": expected(predict, images)}) < TOLERANCE


class Custom(eqx.Module):
    """A module of a user, with a LeViT inside and operations that LeViT does not use."""

    backbone: levitax.LeViT
    token: jax.Array
    mix: eqx.nn.Linear

    def __call__(self, image, state, *, key=None):
        maps, state = self.backbone.features(image, state, key=key)
        tokens = maps[-1].reshape(-1, maps[-1].shape[-1])
        tokens = jnp.concatenate([self.token[None], tokens])
        tokens = jax.vmap(self.mix)(tokens)
        tokens = tokens * jax.lax.rsqrt(jnp.square(tokens).mean(-1, keepdims=True) + 1e-6)
        padded = jnp.pad(jnp.tanh(tokens), ((0, 1), (0, 0)))
        return {"best": padded.max(0), "kept": jnp.where(padded[0] > 0, padded[0], -1.0)}, state


@pytest.mark.parametrize("batch", [2, None])
def test_a_module_of_a_user(batch, make, randomise, drawn, key, in_onnx_runtime, error, tmp_path):
    backbone, state = randomise(*make())
    custom = Custom(
        backbone, jax.random.normal(key, (24,), jnp.float32), eqx.nn.Linear(24, 6, dtype=jnp.float32, key=key)
    )
    predict = levitax.fuse(custom, state)
    images = drawn(levitax.fuse(backbone, state), 2)
    path = export.to_onnx(predict, tmp_path / "custom.onnx", batch=batch, image_size=16)
    best, kept = jax.jit(lambda x: tuple(jax.vmap(predict)(x).values()))(images)
    results = in_onnx_runtime(path, images)
    assert error(results, {"output_0": best, "output_1": kept}) < TOLERANCE


def test_an_operation_that_cannot_be_written(make, randomise, tmp_path, unchecked):
    class Sorting(eqx.Module):
        backbone: levitax.LeViT

        def __call__(self, image, state):
            logits, state = self.backbone(image, state)
            assert isinstance(logits, jax.Array)
            return jnp.sort(logits), state

    backbone, state = randomise(*make())
    predict = levitax.fuse(Sorting(backbone), state)
    with pytest.raises(NotImplementedError, match=r"`sort`.*to_stablehlo"):
        export.to_onnx(predict, tmp_path / "custom.onnx", image_size=16)
    assert list(tmp_path.iterdir()) == []


class Returning(eqx.Module):
    outputs: Any = eqx.field(static=True)

    def __call__(self, image, state):
        return (jax.lax.complex(image, image) if self.outputs == "complex" else self.outputs), state


@pytest.mark.parametrize(
    ("outputs", "named"), ((None, "nothing"), ({}, "nothing"), ("complex", "complex64"), ((1.0, "a"), "float, str"))
)
def test_a_module_that_returns_no_real_arrays(outputs, named, tmp_path, unchecked):
    predict = levitax.Predictor(*eqx.nn.make_with_state(Returning)(outputs))
    for write in (export.to_onnx, export.to_stablehlo):
        with pytest.raises(TypeError, match=f"The module returned {named} for an image; expected one or more arrays"):
            write(predict, tmp_path / "custom", image_size=4)
    assert list(tmp_path.iterdir()) == []


# The others have the layers of LeViT-256, with other numbers of channels and heads.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "image_size"), [("levit_128s", (288, 192)), ("levit_256", 224)])
def test_the_published_variants(
    name, image_size, randomise, drawn, key, expected, in_onnx_runtime, in_openvino, error, tmp_path
):
    predict = levitax.fuse(*randomise(*levitax.create_model(name, image_size=image_size, key=key)))
    for batch in (1, 16):
        images = drawn(predict, batch)
        logits = {"logits": expected(predict, images)}
        path = export.to_onnx(predict, tmp_path / "levit.onnx", batch=batch)
        assert error(in_onnx_runtime(path, images), logits) < ACROSS_RUNTIMES
        path = export.to_openvino(predict, tmp_path / "levit.xml", batch=batch)
        assert error(in_openvino(path, images), logits) < ACROSS_RUNTIMES


# Bad input.


def test_a_model_that_is_not_fused(make, unchecked, tmp_path):
    model, state = make()
    with pytest.raises(TypeError, match=r"`LeViT`.*levitax.fuse\(model, state\)"):
        export.to_onnx(model, tmp_path / "levit.onnx")
    with pytest.raises(ValueError, match=r"not fused: 20.*levitax.fuse\(model, state\)"):
        export.to_onnx(levitax.Predictor(model, state), tmp_path / "levit.onnx")


def test_a_model_in_bfloat16(fused, unchecked, tmp_path):
    with pytest.raises(ValueError, match=r'computes in bfloat16.*dtype="float32"'):
        export.to_onnx(fused(dtype="bfloat16"), tmp_path / "levit.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, r"`opset` is 17; expected one from 18 to \d+"),
        ({"opset": 1000}, r"`opset` is 1000; expected one from 18 to \d+"),
        ({"batch": 0}, r"`batch` is 0; expected an integer of at least 1"),
        ({"preprocessing": preprocessing(class_names=["one"])}, r"`class_names` 1 and the model 5"),
        ({"preprocessing": preprocessing(image_size=32)}, r"`image_size` \(32, 32\) and the model \(16, 16\)"),
        ({"preprocessing": preprocessing(mean=(0.1,), std=(0.1,))}, r"`channels` 1 and the model 3"),
        ({"image_size": 32}, r"`image_size` and `channels` are 32 and None.*16x16"),
        ({"unit8": True}, r"There is no `unit8`. Did you mean 'uint8'"),
        ({"mean": 0.5}, r"There is no `mean`. Expected `image_size`"),
        (
            {"uint8": True},
            r"`uint8` is True, but `preprocessing`, which .*, is missing.*levitax.load_preprocessing",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options, message, fused, unchecked, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        export.to_onnx(fused(), tmp_path / "levit.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_options_that_need_a_classifier(fused, make, unchecked, tmp_path):
    with pytest.raises(ValueError, match="no classes"):
        export.to_onnx(fused(num_classes=0), tmp_path / "levit.onnx", probabilities=True)
    model, state = make()
    custom = levitax.fuse(eqx.nn.Sequential([model]), state)
    with pytest.raises(ValueError, match=r"`image_size` is missing.*`Sequential`"):
        export.to_onnx(custom, tmp_path / "levit.onnx")
    with pytest.raises(ValueError, match="`features` is True, which needs"):
        export.to_onnx(custom, tmp_path / "levit.onnx", image_size=16, features=True)


def test_a_path_that_cannot_be_written(fused, tmp_path):
    path = tmp_path / "nowhere" / "levit.onnx"
    with pytest.raises(OSError, match=re.escape(f"`{path}` could not be written: there is no folder")):
        export.to_onnx(fused(), path)


def test_the_old_file_stays_if_writing_fails(fused, tmp_path, monkeypatch):
    path = tmp_path / "levit.onnx"
    path.write_bytes(b"before")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        export.to_onnx(fused(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["levit.onnx"] and path.read_bytes() == b"before"


def test_without_the_extra(fused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnx.helper", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs onnx: run `pip install "levitax\[export\]"`'):
        export.to_onnx(fused(), tmp_path / "levit.onnx")
