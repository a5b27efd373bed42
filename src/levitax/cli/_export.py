import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from cyclopts import Parameter

import levitax

from ._errors import UsageError
from ._options import check_new, flat, ImageSize, Overwrite, preprocessing_of, PreprocessingChanges, sizes_of, Weights
from ._timing import median_seconds


# Images of a set: to calibrate 8 bits, and to compare on.
CALIBRATION, REAL = 300, 1000

_SUFFIXES = (".onnx", ".xml", ".stablehlo")


def export(
    weights: Weights,
    *,
    out: Annotated[Path, Parameter(help="Ends in .onnx, .xml or .stablehlo.")],
    data: Annotated[str | None, Parameter(help="A data set of real images to check the file with.")] = None,
    image_size: ImageSize = None,
    batch: Annotated[int | None, Parameter(help="The batch size of the file; by default any.")] = None,
    uint8: Annotated[
        bool, Parameter(help="Take pixels from 0 to 255, and normalise in the graph.", negative=())
    ] = False,
    channels_first: Annotated[bool, Parameter(help="Take (batch, channels, height, width).", negative=())] = False,
    probabilities: Annotated[bool, Parameter(help="Return probabilities instead of logits.", negative=())] = False,
    int8: Annotated[
        bool, Parameter(help="Write the .xml in 8 bits, calibrated on images of --data.", negative=())
    ] = False,
    overwrite: Overwrite = False,
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
) -> None:
    """Writes a LeViT, published or your own, as a file for another runtime, and checks the file.

    The suffix of --out determines the format: .onnx for ONNX Runtime and others, .xml (and a .bin) for OpenVINO,
    .stablehlo for JAX without levitax. Then the command runs images through the model, and through the file in each
    installed runtime that reads it. The images are random, except with --int8. With --data, the command also runs up
    to 1,000 real images, in full batches.

    The table shows the error (the largest difference over the largest result), how often the most likely class is the
    same, how often it is right, and the images per second. The rows of OpenVINO name the precision of its computation,
    except for the parts in 8 bits.
    """
    # OpenVINO's telemetry forks a process at each call, which may deadlock with the threads of JAX.
    sys.modules["openvino_telemetry"] = cast(Any, None)
    if out.suffix not in _SUFFIXES:
        raise UsageError(f"`--out` is {out}; it must end in {', '.join(_SUFFIXES)}.")
    if int8 and (out.suffix != ".xml" or data is None):
        raise UsageError("`--int8` needs an `--out` that ends in .xml, and `--data` to calibrate on.")
    check_new(out, overwrite=overwrite)
    import jax

    write: dict[str, Callable[..., Path]] = {
        ".onnx": levitax.export.to_onnx,
        ".xml": levitax.export.to_openvino,
        ".stablehlo": levitax.export.to_stablehlo,
    }
    model, state = levitax.load(weights, **sizes_of(image_size))
    predict = levitax.fuse(model, state)
    config = model.config
    prepared = preprocessing_of(weights, config.image_size, preprocessing)
    found = levitax.data.open_data(data, channels=config.in_channels) if data else None
    if found and prepared.class_names:
        found = found.in_order_of(prepared.class_names)
    elif found and len(found.classes) != config.num_classes:
        raise ValueError(f"The weights are for {config.num_classes} classes, and the data has {len(found.classes)}.")
    elif found:
        print("the weights do not name their classes; assuming the classes of the data, in the same order")

    options: dict[str, Any] = {"batch": batch, "channels_first": channels_first}
    options |= {"probabilities": probabilities, "uint8": uint8, "preprocessing": prepared}

    def as_taken(pixels: np.ndarray) -> np.ndarray:
        """Converts pixels, channels last, to the input of the file."""
        images = pixels if uint8 else prepared.normalise(pixels)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if channels_first else images

    start = time.perf_counter()
    if int8 and found is not None:
        images, _ = _pixels_of(found.train, CALIBRATION, prepared)
        levitax.export.to_openvino_int8(predict, out, as_taken(images), **options)
    else:
        write[out.suffix](predict, out, **options)
    seconds = time.perf_counter() - start
    files = {out, out.with_suffix(".bin")} if out.suffix == ".xml" else {out}
    print(f"{out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB in {seconds:.1f} s\n")

    size = batch or 16
    shape = (size, *config.image_size, config.in_channels)
    random = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    # Not in 8 bits, whose ranges are calibrated on real images.
    sets: dict[str, tuple[np.ndarray, np.ndarray | None]] = {} if int8 else {"random": (random, None)}
    if found is not None:
        count = min(REAL, len(found.validation.labels)) // size * size
        if count:
            sets["real"] = _pixels_of(found.validation, count, prepared)
        else:
            print(f"the data has fewer validation images than a batch of {size}, so the file is not compared on them")
    last = jax.nn.softmax if probabilities else lambda logits: logits
    here = jax.jit(lambda images: last(jax.vmap(predict)(images)))
    ways = [("levitax", lambda images: np.asarray(here(images)), prepared.normalise)]
    ways += [(name, call, as_taken) for name, call in _runtimes(out)]
    print(f"{'':20}{'images':>12}{'error':>10}{'same class':>12}{'right':>8}{'images/s':>10}")
    for kind, (pixels, labels) in sets.items():
        expected = None
        for name, call, prepare in ways:
            parts = [prepare(pixels[start : start + size]) for start in range(0, len(pixels) - size + 1, size)]
            results = np.concatenate([call(part) for part in parts])
            expected = results if expected is None else expected
            error = np.abs(results - expected).max() / np.abs(expected).max()
            same = np.mean(results.argmax(-1) == expected.argmax(-1))
            right = "" if labels is None else f"{np.mean(results.argmax(-1) == labels[: len(results)]):.1%}"
            speed = size / median_seconds(lambda call=call, images=parts[0]: call(images), 1.0)
            print(f"{name:20}{f'{len(results)} {kind}':>12}{error:>10.1e}{same:>12.1%}{right:>8}{speed:>10.1f}")


def _runtimes(path: Path) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """The installed runtimes that read the file: a name, and a function from images to the first output."""
    if path.suffix == ".stablehlo":
        import jax

        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        call = jax.jit(exported.call)
        yield "JAX alone", lambda images: np.asarray(next(iter(call(images).values())))
        return
    if path.suffix == ".onnx":
        try:
            import onnxruntime
        except ModuleNotFoundError:
            print("onnxruntime is not installed")
        else:
            session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
            yield "ONNX Runtime", lambda images: np.asarray(session.run(None, {"images": images})[0])
    try:
        import openvino
    except ModuleNotFoundError:
        print("openvino is not installed")
    else:
        for precision in ("f32", "bf16"):
            compiled: Any = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})
            if (used := openvino_precision(compiled)) == precision:
                yield f"OpenVINO, {precision}", lambda images, compiled=compiled: np.asarray(compiled(images)[0])
            else:
                print(f"OpenVINO computes in {used} on this processor, not in {precision}")


def _pixels_of(
    split: "levitax.data.Split", count: int, preprocessing: "levitax.data.Preprocessing"
) -> tuple[np.ndarray, np.ndarray]:
    """Random images of a split, resized and cropped, and their classes."""
    chosen = np.random.default_rng(0).permutation(len(split.labels))[:count]
    return np.stack([preprocessing.resize(split.read(int(index))) for index in chosen]), split.labels[chosen]


def openvino_precision(compiled: Any) -> str:
    """The precision that OpenVINO computes in, except for the parts in 8 bits: f32, bf16 or f16. The hint is only a
    request: on a processor without bfloat16, OpenVINO computes in f32."""
    used = {node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    return next((half for half in ("bf16", "f16") if half in used), "f32")
