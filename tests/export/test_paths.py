from typing import Any

import numpy as np
import pytest

from levitax import export


# The function that writes each format, and the suffix of its files.
WRITERS: dict[str, tuple[Any, str]] = {
    "onnx": (export.to_onnx, "onnx"),
    "openvino": (export.to_openvino, "xml"),
    "stablehlo": (export.to_stablehlo, "stablehlo"),
    "8 bits": (lambda predict, path: export.to_openvino_int8(predict, path, np.zeros((32, 16, 16, 3))), "xml"),
}


@pytest.mark.parametrize("name", ("onnx", "openvino", "stablehlo"))
def test_a_tilde_is_the_users_home(fused, tmp_path, monkeypatch, name):
    write, ending = WRITERS[name]
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / f"levit.{ending}"
    assert write(fused(), f"~/levit.{ending}") == path
    assert path.stat().st_size > 0


@pytest.mark.parametrize(("write", "ending"), WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("scheme", ("gs://bucket", "s3://bucket", "http://host", "file:///tmp"))
def test_a_url_is_refused_before_the_work(write, ending, scheme, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"`path` is '{scheme}/levit\.{ending}', a URL; expected a path on this"):
        write(None, f"{scheme}/levit.{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("write", "ending"), WRITERS.values(), ids=WRITERS)
def test_values_that_are_not_paths(write, ending, unchecked):
    with pytest.raises(TypeError, match="`path` is of type `NoneType`; expected a path"):
        write(None, None)
