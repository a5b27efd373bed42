import io
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast, Unpack

from .._extras import extra, require
from .._files import as_path, replacing
from .._fuse import Predictor
from ._endpoint import Endpoint, endpoint, Options
from ._onnx import onnx_model


def to_openvino(
    predict: Predictor[Any],
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    **options: Unpack[Options],
) -> Path:
    """Writes a fused model for OpenVINO: an `.xml` file, and next to it a `.bin` file with float32 weights.

    You choose the precision of the computation when you compile the model. On processors with bfloat16, OpenVINO
    computes in bfloat16 unless you pass `{"INFERENCE_PRECISION_HINT": "f32"}`.

    **Arguments:** as in [`levitax.export.to_onnx`][], without `opset`. `path` ends in `.xml`.

    **Returns:** the path of the `.xml` file.

    **Raises:** the errors of [`levitax.export.to_onnx`][] for models, options, operations and files; `ValueError` for
    another suffix; `ModuleNotFoundError` without `openvino`.
    """
    path = check_xml(path)
    openvino = require_quiet("openvino", "`levitax.export.to_openvino`")
    model = openvino_model(openvino, endpoint(predict, options), batch)
    save(openvino, model, path)
    return path


def require_quiet(module: str, user: str) -> ModuleType:
    """Imports an OpenVINO package without its telemetry, which forks a process in every call. A fork may deadlock with
    the threads of JAX."""
    telemetry = "openvino_telemetry"
    if telemetry in sys.modules:
        return require(module, user, extra("export"))
    sys.modules[telemetry] = cast(Any, None)
    try:
        return require(module, user, extra("export"))
    finally:
        del sys.modules[telemetry]


def check_xml(path: str | os.PathLike[str]) -> Path:
    """Converts `path` to a path that ends in `.xml`, or raises an error."""
    path = as_path("path", path)
    if path.suffix.lower() != ".xml":
        raise ValueError(
            f"`path` is `{path}`; expected a name that ends in .xml. The weights go into a .bin next to it."
        )
    return path


def openvino_model(openvino: Any, served: Endpoint, batch: int | None) -> Any:
    """The `openvino.Model` of an endpoint."""
    graph = onnx_model(served, batch, pointwise=False)
    model = openvino.Core().read_model(io.BytesIO(graph.SerializeToString()))
    for name, value in served.metadata.items():
        model.set_rt_info(value, ["levitax", name] if name != "levitax" else ["levitax", "version"])
    return model


def save(openvino: Any, model: Any, path: Path) -> None:
    # The `.xml` last: until then, readers find the old one.
    with replacing(path.with_suffix(".bin"), path, errors=(OSError, RuntimeError)) as (_, temporary):
        openvino.save_model(model, temporary, compress_to_fp16=False)
