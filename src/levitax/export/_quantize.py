import logging
import os
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Shaped

from .._checks import as_integer
from .._fuse import Predictor
from ._endpoint import endpoint, Options
from ._openvino import check_xml, openvino_model, require_quiet, save


# Below this, the ranges of activations depend more on which images were drawn than on the model.
FEWEST = 32


def to_openvino_int8(
    predict: Predictor[Any],
    path: str | os.PathLike[str],
    images: Shaped[np.ndarray, "images ..."],
    *,
    batch: int | None = None,
    **options: Unpack[Options],
) -> Path:
    """Writes a fused model for OpenVINO with products and convolutions in 8 bits, calibrated on images.

    NNCF measures the ranges of weights and activations on the images, symmetric for weights, and corrects biases
    (post-training quantisation; no labels are needed). What is left in float32, softmax and normalising among it,
    OpenVINO computes in the precision that it is told when it compiles.

    **Arguments:** those of [`levitax.export.to_openvino`][], and

    - `images`: `(images, ...)`, like those that the model will see, 300 or more are best; in the order of axes and the
        dtype that the exported model takes (`channels_first`, `uint8`). They go through it in batches of `batch`, or
        one by one; what is left over behind the last whole batch is not used.

    NNCF's messages are silenced, but for warnings, for the whole process.

    **Returns:** the path of the `.xml` file.

    **Raises:** what [`levitax.export.to_openvino`][] raises; `ValueError` for images of another shape or dtype, fewer
    than 32, or fewer than one batch; `ModuleNotFoundError` without `nncf`.
    """
    path = check_xml(path)
    openvino = require_quiet("openvino", "`levitax.export.to_openvino_int8`")
    nncf = require_quiet("nncf", "`levitax.export.to_openvino_int8`")
    served = endpoint(predict, options)
    images = np.asarray(images)
    if images.shape[1:] != served.shape or images.dtype != served.dtype:
        raise ValueError(
            f"`images` has shape {images.shape} and dtype {images.dtype.name}; expected (images, "
            f"{', '.join(map(str, served.shape))}) in {served.dtype.name}, as the exported model takes them."
        )
    size = 1 if batch is None else as_integer("batch", batch)
    if len(images) < (fewest := max(FEWEST, size)):
        raise ValueError(f"`images` are {len(images)}; expected {fewest} or more to measure the ranges of activations.")
    model = openvino_model(openvino, served, batch)
    batches = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]
    nncf.set_log_level(logging.WARNING)
    quantised = nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        fast_bias_correction=True,
    )
    save(openvino, quantised, path)
    return path
