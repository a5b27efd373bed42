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
    """Writes a fused model for OpenVINO with linear layers and convolutions in 8 bits, calibrated on images.

    NNCF measures the ranges of weights and activations on the images, and corrects biases (post-training quantisation;
    no labels are needed). The ranges of weights are symmetric. The other operations, such as the products inside
    attention and the softmax, stay in float32. OpenVINO computes these in the precision that you choose when you
    compile the file.

    The file gives the same results on every processor. Processors without VNNI add two 8-bit products in 16 bits.
    Weights of full range and the products inside attention would overflow there. The weights therefore use half of the
    range: LeViT-256 is as fast with half the range, and its logits are off by 3.4 % of the largest logit instead of
    1.7 %. Attention in float32 makes LeViT-256 1 to 4 % slower with VNNI, and 3 % faster without.

    **Arguments:** as in [`levitax.export.to_openvino`][], and

    - `images`: `(images, ...)`, similar to the images that the model will see; 300 or more are best. The images have
        the axes and the dtype of the exported model's input (`channels_first`, `uint8`). They are used in batches of
        `batch`, or one by one; an incomplete last batch is dropped.

    After the call, NNCF logs nothing below warnings in the whole process.

    **Returns:** the path of the `.xml` file.

    **Raises:** the errors of [`levitax.export.to_openvino`][]; `ValueError` for images of another shape or dtype, with
    NaN or infinite values, fewer than 32, or fewer than one batch; `ModuleNotFoundError` without `nncf`.
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
    if not np.isfinite(images).all():
        raise ValueError("`images` has values that are not finite; expected finite ones, to measure ranges.")
    size = 1 if batch is None else as_integer("batch", batch)
    if len(images) < (fewest := max(FEWEST, size)):
        raise ValueError(f"`images` has {len(images)} images; expected {fewest} or more, to measure ranges.")
    model = openvino_model(openvino, served, batch)
    _keep_reduced_axes(openvino, model)
    batches = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]
    nncf.set_log_level(logging.WARNING)
    quantised = nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(names=_products_without_weights(model)),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
    save(openvino, quantised, path)
    return path


def _products_without_weights(model: Any) -> list[str]:
    """The names of the products of two activations, as in attention.

    `overflow_fix` halves only the range of weights. In 8 bits, these products would saturate without VNNI, which
    changed the logits of the digits model by 9 %.
    """
    sources = lambda node: [value.get_source_output().get_node().get_type_name() for value in node.inputs()]
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [node.get_friendly_name() for node in products if "Constant" not in sources(node)]


def _keep_reduced_axes(openvino: Any, model: Any) -> None:
    """Makes reductions keep their axes, and removes these axes in separate nodes.

    OpenVINO's CPU plugin (2025.0 and 2026.4 are affected) fuses a multiplication and a quantisation into the reduction
    before them. If the reduction drops its axes, the plugin multiplies by the factors of other channels. NNCF inserts
    such factors before the head, and the logits of the digits model were 29 % off.
    """
    for node in model.get_ordered_ops():
        if node.get_attributes().get("keep_dims") is False:
            reduced = node.output(0)
            uses, names = reduced.get_target_inputs(), reduced.get_names()
            node.set_attribute("keep_dims", True)
            node.validate_and_infer_types()
            squeezed = openvino.opset13.squeeze(node, node.input_value(1)).output(0)
            reduced.set_names(set())
            squeezed.set_names(names)
            for use in uses:
                use.replace_source_output(squeezed)
    model.validate_nodes_and_infer_types()
