import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack

import equinox as eqx
import jax
import numpy as np

from .._checks import as_integer
from .._extras import extra, require
from .._files import as_path, replacing
from .._fuse import Predictor
from ._endpoint import Endpoint, endpoint, Options
from ._finish import finish
from ._graph import Constant, Graph, Shape, Tensor
from ._operations import emit


# The first version with all operators that we use. Runtimes from 2023 on support it.
OPSET = 18


def to_onnx(
    predict: Predictor[Any],
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    opset: int = OPSET,
    **options: Unpack[Options],
) -> Path:
    """Writes a fused model as an ONNX file, for ONNX Runtime, OpenVINO, TensorRT and others.

    The graph looks as if written by hand: `Conv`, `MatMul`, `Add`, `HardSwish`, `Softmax`. Weights keep their names in
    the model, with separate ones for queries, keys and values. Linear layers are 1x1 convolutions. The input is
    "images" and the output "logits", both float32 by default.

    **Arguments:**

    - `predict`: the result of [`levitax.fuse`][] for a [`levitax.LeViT`][] or a module of your own.
    - `path`: of the file; `~` is the home folder. URLs are refused.
    - `batch`: number of images. By default each call may have a different number.
    - `opset`: version of ONNX's operators.
    - `options`: any of [`levitax.export.Options`][].

    **Returns:** the path.

    **Raises:** `TypeError` or `ValueError` for a model that is not fused or not float32, options that do not fit it,
    and an unknown opset; `NotImplementedError` for an operation in your own module that levitax cannot export;
    `OSError` if the file cannot be written; the old file then stays; `ModuleNotFoundError` without `onnx`.
    """
    path = as_path("path", path)
    model = onnx_model(endpoint(predict, options), batch, opset, pointwise=True)
    with replacing(path) as (temporary,):
        temporary.write_bytes(model.SerializeToString())
    return path


def onnx_model(served: Endpoint, batch: int | None, opset: int = OPSET, *, pointwise: bool) -> Any:
    """The `onnx.ModelProto` of an endpoint. Linear layers are convolutions if `pointwise`, otherwise products."""
    onnx = require("onnx", "`levitax.export`", extra("export"))
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= as_integer("opset", opset) <= newest:
        raise ValueError(
            f"`opset` is {opset}; expected one from {OPSET} to {newest}, the newest in the installed onnx."
        )
    images = served.images(batch)
    arrays, rest = eqx.partition(served.predict, _is_numeric)
    found, tree = jax.tree.flatten_with_path(arrays)
    names = [_readable(jax.tree_util.keystr(keys)) for keys, _ in found]
    leaves = [np.asarray(leaf) for _, leaf in found]
    # The weights are traced as arguments, so that each keeps its name.
    run = lambda leaves, images: served(eqx.combine(tree.unflatten(leaves), rest), images)
    closed, structure = jax.make_jaxpr(run, return_shape=True)(leaves, images)

    graph = Graph(onnx, opset, pointwise, images.shape[0], structure)
    constants = [Constant(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
    try:
        results = emit(
            graph, closed.jaxpr, closed.consts, [*constants, _images(graph, images.shape, served.channels_first)]
        )
    except NotImplementedError as error:
        raise NotImplementedError(
            f"The model computes {error}, which levitax cannot export to ONNX. Change that part of it, or use "
            "`levitax.export.to_stablehlo`, which exports every operation."
        ) from None
    outputs = []
    for (name, aval), result in zip(structure.items(), results, strict=True):
        graph.nodes.append(onnx.helper.make_node("Identity", [graph.whole(result, aval.shape)], [name], name))
        outputs.append(_value(onnx, name, aval.shape, aval.dtype))
    outputs.sort(key=lambda value: value.name.startswith("features"))
    return finish(graph, [_value(onnx, graph.images, images.shape, images.dtype)], outputs, dict(served.metadata))


def _images(graph: Graph, shape: Shape, channels_first: bool) -> Tensor:
    if channels_first:
        return Tensor.plain(graph.images, shape)
    # Transposed here, where pixels may still be bytes, and not before the first convolution.
    (name,) = graph.node("Transpose", [graph.images], perm=[0, 3, 1, 2])
    return Tensor(name, tuple(shape[axis] for axis in (0, 3, 1, 2)), ((0,), (2,), (3,), (1,)))


def _value(onnx: ModuleType, name: str, shape: Shape, dtype: Any) -> Any:
    sizes = [size if isinstance(size, int) else str(size) for size in shape]
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), sizes)


def _is_numeric(leaf: Any) -> bool:
    return eqx.is_array(leaf) and not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _readable(path: str) -> str:
    """Converts `.model.stem.convolutions[0].weight` to `stem.convolutions.0.weight`."""
    return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).removeprefix(".model").strip(".")
