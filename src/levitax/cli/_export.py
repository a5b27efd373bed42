import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number

import levitax

from ._errors import UsageError
from ._options import (
    check_new,
    DataOptions,
    flat,
    ImageSize,
    Overwrite,
    PreprocessingChanges,
    SameOrder,
    sizes_of,
    to_write,
    Weights,
)


# Images of a set: to calibrate 8 bits, and to compare on.
CALIBRATION, REAL = 300, 1000

_FOR = {
    ".onnx": "ONNX Runtime and other runtimes of ONNX. For OpenVINO, an .xml is faster",
    ".xml": "OpenVINO, with the .bin next to it",
    ".stablehlo": "JAX without levitax, on CPU, GPU and TPU",
}


def _file(_: object, path: Path) -> None:
    to_write(list(_FOR), path)


def export(
    weights: Weights,
    *,
    out: Annotated[Path, Parameter(help="Ends in .onnx, .xml or .stablehlo.", validator=_file)],
    data: Annotated[str | None, Parameter(help="A data set of real images to check the file with.")] = None,
    image_size: ImageSize = None,
    batch: Annotated[
        int | None, Parameter(help="The batch size of the file; by default any.", validator=Number(gte=1))
    ] = None,
    uint8: Annotated[
        bool, Parameter(help="Take pixels from 0 to 255, and normalise in the graph.", negative=())
    ] = False,
    channels_first: Annotated[bool, Parameter(help="Take (batch, channels, height, width).", negative=())] = False,
    probabilities: Annotated[bool, Parameter(help="Return probabilities instead of logits.", negative=())] = False,
    int8: Annotated[
        bool, Parameter(help="Write the .xml in 8 bits, calibrated on images of --data.", negative=())
    ] = False,
    same_order: SameOrder = False,
    overwrite: Overwrite = False,
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
) -> None:
    """Writes a LeViT, published or your own, as a file for another runtime, and checks the file.

    The suffix of --out determines the format: .onnx for ONNX Runtime and others, .xml (and a .bin) for OpenVINO,
    .stablehlo for JAX without levitax. Then the command runs images through the model, and through the file in each
    installed runtime that reads it. The images are random, except with --int8. With --data, the command also runs up
    to 1,000 real images.

    The table shows the precision of the computation, except for parts in 8 bits; the error (the largest difference over
    the largest result); how often the most likely class is the same, and how often it is right; and images per second.
    levitax evaluate takes an .onnx or .xml too, with any number of images.
    """
    kind = out.suffix.lower()
    if int8 and (kind != ".xml" or data is None):
        raise UsageError("`--int8` needs an `--out` that ends in .xml, and `--data` to calibrate on.")
    check_new(out, out.with_suffix(".bin") if kind == ".xml" else None, overwrite=overwrite)
    import jax

    from ..data import Arrays, Subset
    from ._data import open_to_evaluate
    from ._exported import compare, Exported, open_exported, run_on
    from ._split import copy_split
    from ._weights import preprocessing_of

    write: dict[str, Callable[..., Path]] = {
        ".onnx": levitax.export.to_onnx,
        ".xml": levitax.export.to_openvino,
        ".stablehlo": levitax.export.to_stablehlo,
    }
    model, state = levitax.load(weights, **sizes_of(image_size))
    predict, config = levitax.fuse(model, state), model.config
    prepared = preprocessing_of(weights, config.image_size, preprocessing)
    found = None
    if data is not None:
        classes = config.num_classes
        found = open_to_evaluate(data, weights, DataOptions(), prepared, classes, same_order=same_order)

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
    size, rng = batch or 16, np.random.default_rng(0)
    start = time.perf_counter()
    if int8 and found is not None:
        as_taken = ours._replace(call=lambda images: images, uint8=uint8, channels_first=channels_first)
        some = Subset(found.train, rng.permutation(len(found.train.labels))[:CALIBRATION])
        (images,), _ = run_on([as_taken], some, prepared, batch_size=size)
        levitax.export.to_openvino_int8(predict, out, images, **options)
    else:
        write[kind](predict, out, **options)
    seconds = time.perf_counter() - start
    files = {out, out.with_suffix(".bin")} if kind == ".xml" else {out}
    print(f"wrote {out}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB in {seconds:.1f} s")
    copy_split(weights, out)

    pixels = rng.integers(0, 256, (size, *config.image_size, config.in_channels), np.uint8)
    # Not in 8 bits, whose ranges are calibrated on real images.
    sets: dict[str, levitax.data.Split] = {} if int8 else {"random": Arrays(pixels, np.zeros(size, np.int32))}
    if found is not None:
        sets["real"] = Subset(found.validation, rng.permutation(len(found.validation.labels))[:REAL])
    compare([ours, *open_exported(out)], sets, pixels, prepared)
    print(f"{out} is for {_FOR[kind]}.")
    if kind != ".stablehlo":
        print(f"next: levitax evaluate {shlex.quote(str(out))} {shlex.quote(data or 'DATA')}")
