"""Exported files, in the runtimes that read them."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, NamedTuple

import jax
import numpy as np

from .._extras import extra
from ..data import eval_batches, Preprocessing, Split
from ._timing import median_seconds


_PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class Exported(NamedTuple):
    """A file that `levitax export` wrote, in one runtime.

    **Attributes:**

    - `runtime`, `precision`: their names. The precision is that of the computation, except for parts in 8 bits.
    - `call`: from images, as the file takes them, to the first output.
    - `batch`: the batch size of the file; `None` for any.
    - `uint8`, `channels_first`: how the file takes images.
    - `probabilities`: whether the output is probabilities rather than logits.
    - `preprocessing`: as stored in the file.
    """

    runtime: str
    precision: str
    call: Callable[[np.ndarray], np.ndarray]
    batch: int | None
    uint8: bool
    channels_first: bool
    probabilities: bool
    preprocessing: Preprocessing | None

    def as_taken(self, pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """Converts resized pixels, `(batch, height, width, channels)`, to the input of the file."""
        images = pixels if self.uint8 else preprocessing.normalise(pixels)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if self.channels_first else images

    def as_logits(self, outputs: np.ndarray) -> np.ndarray:
        """Converts outputs of the file to logits in float32."""
        outputs = outputs.astype(np.float32)
        return np.log(np.maximum(outputs, np.finfo(np.float32).tiny)) if self.probabilities else outputs


def run_on(
    ways: Sequence[Exported], split: Split, preprocessing: Preprocessing, *, batch_size: int, workers: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """The outputs for all images of a split that can be read, in each of several ways, and the classes of the images.

    **Raises:** `OSError` if none of the images can be read.
    """
    outputs, labels = [[] for _ in ways], []
    with eval_batches(split, preprocessing.resize, batch_size=batch_size, workers=workers) as batches:
        for batch in batches:
            counted = batch.weights > 0
            labels.append(batch.labels[counted])
            for way, parts in zip(ways, outputs, strict=True):
                parts.append(way.call(way.as_taken(batch.images, preprocessing))[counted])
    if not sum(map(len, labels)):
        raise OSError(f"None of the {len(split.labels)} images can be read.")
    return [np.concatenate(parts) for parts in outputs], np.concatenate(labels)


def compare(
    ways: Sequence[Exported],
    sets: Mapping[str, Split],
    pixels: np.ndarray,
    preprocessing: Preprocessing,
) -> None:
    """Prints a table of each way to compute the outputs for each set of images, compared with the first way."""
    size = len(pixels)
    batches = [way.as_taken(pixels, preprocessing) for way in ways]
    speeds = [size / median_seconds(partial(way.call, images), 1.0) for way, images in zip(ways, batches, strict=True)]
    print(f"{'runtime':14}{'computes in':>12}{'images':>12}{'error':>10}{'same class':>12}{'right':>8}{'images/s':>10}")
    for kind, split in sets.items():
        (expected, *others), labels = run_on(ways, split, preprocessing, batch_size=size)
        for way, outputs, speed in zip(ways, (expected, *others), speeds, strict=True):
            error = np.abs(outputs - expected).max() / np.abs(expected).max()
            same = np.mean(outputs.argmax(-1) == expected.argmax(-1))
            right = f"{np.mean(outputs.argmax(-1) == labels):.1%}" if kind == "real" else ""
            print(
                f"{way.runtime:14}{way.precision:>12}{f'{len(outputs)} {kind}':>12}{error:>10.1e}{same:>12.1%}"
                f"{right:>8}{speed:>10.1f}"
            )


def open_exported(path: Path) -> Iterator[Exported]:
    """Opens a file in each installed runtime that reads it, and in each precision that OpenVINO computes in here. Says
    what is missing.

    **Raises:** `FileNotFoundError` if there is no such file; `ValueError` if `levitax export` did not write it;
    `ModuleNotFoundError` if no runtime is installed.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no `{path}`.")
    found = 0
    for opens in {".stablehlo": (_in_jax,), ".onnx": (_in_onnx_runtime, _in_openvino), ".xml": (_in_openvino,)}[
        path.suffix.lower()
    ]:
        try:
            for exported in opens(path):
                found += 1
                yield exported
        except ModuleNotFoundError as error:
            print(f"{error.name} is not installed", file=sys.stderr)
    if not found:
        raise ModuleNotFoundError(f"No runtime for `{path}` is installed: {extra('cli')}.")


def _in_jax(path: Path) -> Iterator[Exported]:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    call, (images, *_) = jax.jit(exported.call), exported.in_avals
    (name, *_) = exported.out_tree.unflatten(exported.out_avals)
    batch = images.shape[0] if isinstance(images.shape[0], int) else None
    yield Exported(
        runtime="JAX alone",
        precision="float32",
        call=lambda images: np.asarray(next(iter(call(images).values()))),
        batch=batch,
        uint8=images.dtype == np.uint8,
        channels_first=images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3),
        probabilities=name == "probabilities",
        preprocessing=None,
    )


def _in_onnx_runtime(path: Path) -> Iterator[Exported]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    taken, given = session.get_inputs()[0], session.get_outputs()[0]
    metadata = session.get_modelmeta().custom_metadata_map
    yield Exported(
        runtime="ONNX Runtime",
        precision="float32",
        call=lambda images: np.asarray(session.run(None, {taken.name: images})[0]),
        batch=taken.shape[0] if isinstance(taken.shape[0], int) else None,
        uint8=taken.type == "tensor(uint8)",
        probabilities=given.name == "probabilities",
        **_described(path, metadata),
    )


def _in_openvino(path: Path) -> Iterator[Exported]:
    # OpenVINO's telemetry forks a process at each call, which may deadlock with the threads of JAX.
    sys.modules["openvino_telemetry"] = cast(Any, None)
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    taken = model.inputs[0]
    for hint in ("f32", "bf16"):
        compiled: Any = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        if (used := _openvino_precision(compiled)) != hint:
            said = f"OpenVINO computes in {_PRECISIONS[used]} on this processor, not in {_PRECISIONS[hint]}"
            print(said, file=sys.stderr)
            continue
        batch = taken.partial_shape[0]
        yield Exported(
            runtime="OpenVINO",
            precision=_PRECISIONS[hint],
            call=lambda images, compiled=compiled: np.asarray(compiled(images)[0]),
            batch=batch.get_length() if batch.is_static else None,
            uint8=taken.element_type == openvino.Type.u8,
            probabilities="probabilities" in model.outputs[0].names,
            **_described(path, _openvino_metadata(path, model)),
        )


def _openvino_metadata(path: Path, model: Any) -> dict[str, str]:
    """The metadata of an .xml. OpenVINO does not show that of an .onnx."""
    if path.suffix == ".onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    names = [name for name in ("input", "preprocessing") if model.has_rt_info(["levitax", name])]
    return {name: model.get_rt_info(["levitax", name]).astype(str) for name in names}


def _described(path: Path, metadata: Any) -> dict[str, Any]:
    """What the metadata say of the images."""
    if "input" not in metadata:
        raise ValueError(f"`{path}` does not describe its images; expected a file that `levitax export` wrote.")
    axes = metadata["input"].partition("(")[2].partition(")")[0].split(", ")
    fields = metadata.get("preprocessing")
    preprocessing = None if fields is None else Preprocessing.from_dict(json.loads(fields))
    channels = None if preprocessing is None else str(preprocessing.channels)
    return {
        "channels_first": axes[-1] != channels if channels else axes[1] in ("1", "3"),
        "preprocessing": preprocessing,
    }


def _openvino_precision(compiled: Any) -> str:
    """The precision that OpenVINO computes in, except for the parts in 8 bits: f32, bf16 or f16. The hint is only a
    request: on a processor without bfloat16, OpenVINO computes in f32."""
    used = {node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    return next((half for half in ("bf16", "f16") if half in used), "f32")
