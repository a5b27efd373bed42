"""Writes a LeViT, published or your own, as a file for another runtime, and checks the file.

    levitax export timm/levit_256.fb_dist_in1k --out levit_256.onnx --batch 16
    levitax export runs/digits/model.safetensors --out digits.xml --data digits
    levitax export runs/digits/model.safetensors --out digits.xml --data digits --int8
    levitax export runs/digits/model.safetensors --out digits.stablehlo --data digits --uint8

The suffix of `--out` determines the format: .onnx for ONNX Runtime and others, .xml (and a .bin) for OpenVINO,
.stablehlo for JAX without levitax. Then the command runs images through the model, and through the file in each
installed runtime that reads it. The images are random, except with `--int8`. With `--data` (a data set as in
`levitax train`), the command also runs up to 1,000 real images, in full batches.

The table shows the error (the largest difference over the largest result), how often the most likely class is the same,
how often it is right, and the images per second. The rows of OpenVINO name the precision of its computation, except for
the parts in 8 bits.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from .. import data, export
from .._fuse import fuse
from ..weights import load
from ._arguments import add_image_size_argument, add_preprocessing_arguments, make_parser, preprocessing_of, size_of


# OpenVINO's telemetry forks a process at each call, which may deadlock with the threads of JAX.
sys.modules["openvino_telemetry"] = cast(Any, None)

try:
    import openvino
except ModuleNotFoundError:
    openvino = None

# Images of a set: to calibrate 8 bits, and to compare on.
CALIBRATION, REAL = 300, 1000


def main(given: Sequence[str]) -> None:
    parser = make_parser("export", __doc__)
    parser.add_argument("weights", help="a file, a folder, or the name of a repository on the hub")
    parser.add_argument("--out", type=Path, required=True, help="ends in .onnx, .xml or .stablehlo")
    add_image_size_argument(parser)
    add_preprocessing_arguments(parser, "from the weights")
    parser.add_argument("--batch", type=int, help="the batch size of the file; by default any")
    parser.add_argument("--uint8", action="store_true", help="take pixels from 0 to 255, and normalise in the graph")
    parser.add_argument("--channels-first", action="store_true", help="take (batch, channels, height, width)")
    parser.add_argument("--probabilities", action="store_true", help="return probabilities instead of logits")
    parser.add_argument("--data", help="a data set of real images: a folder, an id on the hub, or digits")
    parser.add_argument("--int8", action="store_true", help="write the .xml in 8 bits, calibrated on images of --data")
    run(parser.parse_args(given))


WRITE: dict[str, Callable[..., Path]] = {
    ".onnx": export.to_onnx,
    ".xml": export.to_openvino,
    ".stablehlo": export.to_stablehlo,
}


def run(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix not in WRITE:
        raise ValueError(f"`--out` is {arguments.out}; it must end in {', '.join(WRITE)}.")
    if arguments.int8 and (arguments.out.suffix != ".xml" or arguments.data is None):
        raise ValueError("`--int8` needs an `--out` that ends in .xml, and `--data` to calibrate on.")
    model, state = load(arguments.weights, **size_of(arguments))
    predict = fuse(model, state)
    config = model.config
    preprocessing = preprocessing_of(arguments.weights, config.image_size, arguments)
    found = data.open_data(arguments.data, channels=config.in_channels) if arguments.data else None
    if found and preprocessing.class_names:
        found = found.in_order_of(preprocessing.class_names)
    elif found and len(found.classes) != config.num_classes:
        raise ValueError(f"The weights are for {config.num_classes} classes, and `--data` has {len(found.classes)}.")
    elif found:
        print("the weights do not name their classes; assuming the classes of the data, in the same order")

    options: dict[str, Any] = {"batch": arguments.batch, "channels_first": arguments.channels_first}
    options |= {"probabilities": arguments.probabilities, "uint8": arguments.uint8, "preprocessing": preprocessing}

    def as_taken(pixels: np.ndarray) -> np.ndarray:
        """Converts pixels, channels last, to the input of the file."""
        images = pixels if arguments.uint8 else preprocessing.normalise(pixels)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if arguments.channels_first else images

    start = time.perf_counter()
    if arguments.int8 and found is not None:
        images, _ = pixels_of(found.train, CALIBRATION, preprocessing)
        export.to_openvino_int8(predict, arguments.out, as_taken(images), **options)
    else:
        WRITE[arguments.out.suffix](predict, arguments.out, **options)
    seconds = time.perf_counter() - start
    files = {arguments.out, arguments.out.with_suffix(".bin")} if arguments.out.suffix == ".xml" else {arguments.out}
    print(f"{arguments.out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB in {seconds:.1f} s\n")

    batch = arguments.batch or 16
    shape = (batch, *config.image_size, config.in_channels)
    random = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    # Not in 8 bits, whose ranges are calibrated on real images.
    sets: dict[str, tuple[np.ndarray, np.ndarray | None]] = {} if arguments.int8 else {"random": (random, None)}
    if found is not None:
        count = min(REAL, len(found.validation.labels)) // batch * batch
        if count:
            sets["real"] = pixels_of(found.validation, count, preprocessing)
        else:
            print(f"--data has fewer validation images than a batch of {batch}, so the file is not compared on them")
    last = jax.nn.softmax if arguments.probabilities else lambda logits: logits
    here = jax.jit(lambda images: last(jax.vmap(predict)(images)))
    ways = [("levitax", lambda images: np.asarray(here(images)), preprocessing.normalise)]
    ways += [(name, call, as_taken) for name, call in runtimes(arguments.out)]
    print(f"{'':20}{'images':>12}{'error':>10}{'same class':>12}{'right':>8}{'images/s':>10}")
    for kind, (pixels, labels) in sets.items():
        expected = None
        for name, call, prepare in ways:
            parts = [prepare(pixels[start : start + batch]) for start in range(0, len(pixels) - batch + 1, batch)]
            results = np.concatenate([call(part) for part in parts])
            expected = results if expected is None else expected
            error = np.abs(results - expected).max() / np.abs(expected).max()
            same = np.mean(results.argmax(-1) == expected.argmax(-1))
            right = "" if labels is None else f"{np.mean(results.argmax(-1) == labels[: len(results)]):.1%}"
            speed = batch / seconds_of(lambda call=call, images=parts[0]: call(images))
            print(f"{name:20}{f'{len(results)} {kind}':>12}{error:>10.1e}{same:>12.1%}{right:>8}{speed:>10.1f}")


def runtimes(path: Path) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """The installed runtimes that read the file: a name, and a function from images to the first output."""
    if path.suffix == ".stablehlo":
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
    if openvino is None:
        print("openvino is not installed")
    else:
        for precision in ("f32", "bf16"):
            compiled: Any = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})
            if (used := openvino_precision(compiled)) == precision:
                yield f"OpenVINO, {precision}", lambda images, compiled=compiled: np.asarray(compiled(images)[0])
            else:
                print(f"OpenVINO computes in {used} on this processor, not in {precision}")


def pixels_of(split: data.Split, count: int, preprocessing: data.Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Random images of a split, resized and cropped, and their classes."""
    chosen = np.random.default_rng(0).permutation(len(split.labels))[:count]
    return np.stack([preprocessing.resize(split.read(int(index))) for index in chosen]), split.labels[chosen]


def seconds_of(call: Callable[[], Any]) -> float:
    """The median over a second of calls, and at least five."""
    times, stop = [], time.perf_counter() + 1.0
    while len(times) < 5 or time.perf_counter() < stop:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def openvino_precision(compiled: Any) -> str:
    """The precision that OpenVINO computes in, except for the parts in 8 bits: f32, bf16 or f16. The hint is only a
    request: on a processor without bfloat16, OpenVINO computes in f32."""
    used = {node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    return next((half for half in ("bf16", "f16") if half in used), "f32")
