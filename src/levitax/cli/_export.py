import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

import levitax

from ._errors import UsageError
from ._options import (
    check_new,
    DataOptions,
    flat,
    ImageSize,
    Overwrite,
    preprocessing_of,
    PreprocessingChanges,
    sizes_of,
    Weights,
)
from ._timing import median_seconds


# Images of a set: to calibrate 8 bits, and to compare on.
CALIBRATION, REAL = 300, 1000

_FOR = {
    ".onnx": "ONNX Runtime and other runtimes of ONNX. For OpenVINO, an .xml is faster",
    ".xml": "OpenVINO, with the .bin next to it",
    ".stablehlo": "JAX without levitax, on CPU, GPU and TPU",
}


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

    The table shows the precision of the computation, except for parts in 8 bits; the error (the largest difference over
    the largest result); how often the most likely class is the same, and how often it is right; and images per second.
    levitax evaluate takes an .onnx or .xml too, with any number of images.
    """
    if out.suffix not in _FOR:
        raise UsageError(f"`--out` is {out}; it must end in {', '.join(_FOR)}.")
    if int8 and (out.suffix != ".xml" or data is None):
        raise UsageError("`--int8` needs an `--out` that ends in .xml, and `--data` to calibrate on.")
    check_new(out, out.with_suffix(".bin") if out.suffix == ".xml" else None, overwrite=overwrite)
    import jax

    from ._exported import Exported, open_exported

    write: dict[str, Callable[..., Path]] = {
        ".onnx": levitax.export.to_onnx,
        ".xml": levitax.export.to_openvino,
        ".stablehlo": levitax.export.to_stablehlo,
    }
    model, state = levitax.load(weights, **sizes_of(image_size))
    predict, config = levitax.fuse(model, state), model.config
    prepared = preprocessing_of(weights, config.image_size, preprocessing)
    found = None if data is None else _open(data, weights, config, prepared)

    options: dict[str, Any] = {"batch": batch, "channels_first": channels_first}
    options |= {"probabilities": probabilities, "uint8": uint8, "preprocessing": prepared}
    last = jax.nn.softmax if probabilities else lambda logits: logits
    compiled = jax.jit(lambda images: last(jax.vmap(predict)(images)))
    ours = Exported(
        runtime="levitax",
        precision="float32",
        call=lambda images: np.asarray(compiled(images)),
        batch=None,
        uint8=False,
        channels_first=False,
        probabilities=probabilities,
        preprocessing=prepared,
    )
    start = time.perf_counter()
    if int8 and found is not None:
        images, _ = _pixels_of(found.train, CALIBRATION, prepared)
        taken = ours._replace(uint8=uint8, channels_first=channels_first).as_taken(images, prepared)
        levitax.export.to_openvino_int8(predict, out, taken, **options)
    else:
        write[out.suffix](predict, out, **options)
    seconds = time.perf_counter() - start
    files = {out, out.with_suffix(".bin")} if out.suffix == ".xml" else {out}
    print(f"wrote {out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB in {seconds:.1f} s")

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
    ways = [ours, *open_exported(out)]
    print(f"{'runtime':14}{'computes in':>12}{'images':>12}{'error':>10}{'same class':>12}{'right':>8}{'images/s':>10}")
    for kind, (pixels, labels) in sets.items():
        expected = None
        for way in ways:
            parts = [
                way.as_taken(pixels[start : start + size], prepared) for start in range(0, len(pixels) - size + 1, size)
            ]
            results = np.concatenate([way.call(part) for part in parts])
            expected = results if expected is None else expected
            error = np.abs(results - expected).max() / np.abs(expected).max()
            same = np.mean(results.argmax(-1) == expected.argmax(-1))
            right = "" if labels is None else f"{np.mean(results.argmax(-1) == labels[: len(results)]):.1%}"
            speed = size / median_seconds(lambda way=way, images=parts[0]: way.call(images), 1.0)
            print(
                f"{way.runtime:14}{way.precision:>12}{f'{len(results)} {kind}':>12}{error:>10.1e}{same:>12.1%}"
                f"{right:>8}{speed:>10.1f}"
            )
    print(f"{out} is for {_FOR[out.suffix]}.")
    if out.suffix != ".stablehlo":
        print(f"next: levitax evaluate {out} {data or 'DATA'}")


def _open(
    data: str, weights: str, config: "levitax.LeViTConfig", preprocessing: "levitax.data.Preprocessing"
) -> "levitax.data.DataSet":
    """The data set, with the class order of the weights, and the images that their run validated with."""
    from ._runs import open_images
    from ._split import to_evaluate

    found, said = to_evaluate(open_images(data, config.in_channels, DataOptions()), data, weights)
    if said:
        print(said)
    if preprocessing.class_names:
        return found.in_order_of(preprocessing.class_names)
    if len(found.classes) != config.num_classes:
        raise ValueError(f"The weights are for {config.num_classes} classes, and the data has {len(found.classes)}.")
    print("the weights do not name their classes; assuming the classes of the data, in the same order")
    return found


def _pixels_of(
    split: "levitax.data.Split", count: int, preprocessing: "levitax.data.Preprocessing"
) -> tuple[np.ndarray, np.ndarray]:
    """Random images of a split, resized and cropped, and their classes."""
    chosen = np.random.default_rng(0).permutation(len(split.labels))[:count]
    return np.stack([preprocessing.resize(split.read(int(index))) for index in chosen]), split.labels[chosen]
