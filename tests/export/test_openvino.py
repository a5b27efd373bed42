import json
import subprocess
import sys

import numpy as np
import openvino
import pytest

from levitax import export
from levitax.data import Preprocessing


TOLERANCE = 1e-5


@pytest.mark.parametrize("batch", [2, None])
def test_openvino_computes_what_jax_does(batch, fused, drawn, expected, in_openvino, error, tmp_path):
    predict = fused(image_size=(20, 13))
    images = drawn(predict, 2)
    preprocessing = Preprocessing(image_size=(20, 13), class_names=("a", "b", "c", "d", "é"))
    path = export.to_openvino(predict, tmp_path / "levit.xml", batch=batch, preprocessing=preprocessing)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["levit.bin", "levit.xml"]
    assert error(in_openvino(path, images), {"logits": expected(predict, images)}) < TOLERANCE
    model = openvino.Core().read_model(path)
    stored = json.loads(model.get_rt_info(["levitax", "preprocessing"]).astype(str))
    assert Preprocessing.from_dict(stored) == preprocessing


@pytest.fixture
def eight_bits(fused, drawn, tmp_path):
    """A small model, 16 images, and the 8-bit file of the model, calibrated on these images and 48 others."""
    predict = fused()
    images = drawn(predict, 64)
    path = export.to_openvino_int8(predict, tmp_path / "levit.xml", images, batch=16)
    return predict, images[:16], path


def test_eight_bits(eight_bits, expected, in_openvino, error):
    predict, images, path = eight_bits
    results = in_openvino(path, images)["logits"]
    assert 1e-4 < error(results, expected(predict, images)) < 0.05
    in_float32 = _in_float32(openvino.Core().read_model(path))
    # The remaining error is from rounding values halfway between two of the 256 levels.
    assert error(results, in_openvino(in_float32, images)["logits"]) < 0.005


def _in_float32(model):
    """Replaces 8-bit operations of OpenVINO with the same arithmetic in float32."""
    operations = openvino.opset13
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "FakeQuantize":
            value, *limits = node.input_values()
            low, high, low_out, high_out = (np.array(limit.get_node().data, ndmin=1) for limit in limits)
            steps = np.float32(node.get_levels() - 1)
            clipped = operations.minimum(operations.maximum(value, low), high)
            level = operations.round((clipped - low) * (steps / (high - low)), "HALF_TO_EVEN")
            replacement = level * ((high_out - low_out) / steps) + low_out
        elif kind == "Convert" and (source := node.input_value(0).get_node()).get_type_name() == "Constant":
            replacement = operations.constant(source.data.astype(np.float32))
        else:
            continue
        node.output(0).replace(replacement.output(0))
    return model


# Operations that move numbers without computing.
_VIEWS = ("Reshape", "Squeeze", "Transpose", "Unsqueeze", "VariadicSplit")


def _is_quantised(value) -> bool:
    node = value.get_node()
    if node.get_type_name() in _VIEWS:
        return _is_quantised(node.input_value(0))
    return node.get_type_name() == "FakeQuantize"


@pytest.mark.slow
def test_products_of_eight_bits_cannot_saturate(eight_bits):
    """Without VNNI, processors add two products of an unsigned and a signed byte in a signed 16-bit integer."""
    with_weights, without_weights = 0, 0
    for node in openvino.Core().read_model(eight_bits[-1]).get_ops():
        if node.get_type_name() not in ("Convolution", "MatMul"):
            continue
        activation, other = node.input_values()
        if other.get_node().get_type_name() == "Multiply":
            weight = other.get_node().input_value(0).get_node().input_value(0).get_node()
            assert 2 * 255 * np.abs(weight.data.astype(np.int32)).max() < 2**15
            assert _is_quantised(activation) and weight.data.dtype == np.int8
            with_weights += 1
        else:
            assert not _is_quantised(activation) and not _is_quantised(other)
            without_weights += 1
    # With weights: stem, two blocks, downsampling and head. Without: two products in each of the three attentions.
    assert (with_weights, without_weights) == (2 + 2 * 4 + 5 + 1, 3 * 2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((64, 8, 8, 3), np.float32), r"`images` has shape \(64, 8, 8, 3\).*expected \(images, 16, 16, 3\)"),
        (np.zeros((64, 16, 16, 3), np.uint8), r"`images` has shape .* and dtype uint8; expected .* in float32"),
        (np.full((64, 16, 16, 3), np.nan, np.float32), r"`images` has values that are not finite"),
        (np.zeros((31, 16, 16, 3), np.float32), r"`images` has 31 images; expected 32 or more"),
        (np.zeros((40, 16, 16, 3), np.float32), r"`images` has 40 images; expected 64 or more"),
    ],
    ids=("shape", "dtype", "not finite", "few", "less than a batch"),
)
def test_calibration_images_that_do_not_fit(images, message, fused, unchecked, tmp_path):
    with pytest.raises(ValueError, match=message):
        export.to_openvino_int8(fused(), tmp_path / "levit.xml", images, batch=64 if len(images) == 40 else 1)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written(fused, unchecked, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.xml"):
        export.to_openvino(fused(), tmp_path / "levit.onnx")
    with pytest.raises(OSError, match="there is no folder"):
        export.to_openvino(fused(), tmp_path / "nowhere" / "levit.xml")


def test_a_folder_in_place_of_the_file(fused, unchecked, tmp_path):
    path = tmp_path / "levit.xml"
    path.mkdir()
    with pytest.raises(OSError, match=rf"`{path}` could not be written: .*levit.bin` is already replaced"):
        export.to_openvino(fused(), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["levit.bin", "levit.xml"]


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_without_the_extra(missing, fused, drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    predict = fused()
    with pytest.raises(ModuleNotFoundError, match=rf'needs {missing}: run `pip install "levitax\[export\]"`'):
        export.to_openvino_int8(predict, tmp_path / "levit.xml", drawn(predict, 32))


# In a separate process, because the telemetry is switched off in this one.
QUIET = """
import sys, warnings
warnings.simplefilter("error", RuntimeWarning)
import jax, levitax, numpy as np
model, state = levitax.levit_128s(image_size=64, num_classes=2, key=jax.random.key(0))
predict = levitax.fuse(model, state)
levitax.export.to_openvino(predict, "levit.xml")
images = np.random.default_rng(0).normal(size=(32, 64, 64, 3)).astype(np.float32)
levitax.export.to_openvino_int8(predict, "eight.xml", images)
assert "openvino_telemetry" not in sys.modules
"""


@pytest.mark.slow
def test_no_process_is_forked_after_jax_has_started_threads(tmp_path):
    subprocess.run([sys.executable, "-c", QUIET], cwd=tmp_path, check=True, capture_output=True)
