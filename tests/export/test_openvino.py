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


def test_eight_bits(fused, drawn, expected, in_openvino, error, tmp_path):
    predict = fused()
    images = drawn(predict, 64)
    path = export.to_openvino_int8(predict, tmp_path / "levit.xml", images, batch=16)
    results = in_openvino(path, images[:16])["logits"]
    # A model as small as this one, with random weights, is some hundredths to a tenth off in 8 bits.
    assert 1e-4 < error(results, expected(predict, images[:16])) < 0.2
    kinds = {node.get_type_name() for node in openvino.Core().read_model(path).get_ops()}
    assert "FakeQuantize" in kinds


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((64, 8, 8, 3), np.float32), r"`images` has shape \(64, 8, 8, 3\).*expected \(images, 16, 16, 3\)"),
        (np.zeros((64, 16, 16, 3), np.uint8), r"`images` has shape .* and dtype uint8; expected .* in float32"),
        (np.zeros((31, 16, 16, 3), np.float32), r"`images` are 31; expected 32 or more"),
        (np.zeros((40, 16, 16, 3), np.float32), r"`images` are 40; expected 64 or more"),
    ],
    ids=("shape", "dtype", "few", "less than a batch"),
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
    with pytest.raises(OSError, match=rf"`{path}` could not be written: .*levit.bin` is new already"):
        export.to_openvino(fused(), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["levit.bin", "levit.xml"]


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_without_the_extra(missing, fused, drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    predict = fused()
    with pytest.raises(ModuleNotFoundError, match=rf'needs {missing}: run `pip install "levitax\[export\]"`'):
        export.to_openvino_int8(predict, tmp_path / "levit.xml", drawn(predict, 32))


# In a process of its own, as the telemetry is switched off in this one.
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
def test_no_process_is_forked_beside_the_threads_of_jax(tmp_path):
    subprocess.run([sys.executable, "-c", QUIET], cwd=tmp_path, check=True, capture_output=True)
