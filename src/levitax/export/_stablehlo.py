import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
from jax import export as jax_export

from .._checks import as_choice
from .._extras import extra, require
from .._files import as_path, replacing
from .._fuse import Predictor
from ._endpoint import endpoint, Options


# The platforms of JAX itself. Plugins add others, which StableHLO also supports.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def to_stablehlo(
    predict: Predictor[Any],
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    **options: Unpack[Options],
) -> Path:
    """Writes a fused model as StableHLO, for JAX without this library and for other compilers.

    Read it with `run = jax.export.deserialize(Path("levit.stablehlo").read_bytes()).call`. `run(images)` returns the
    outputs by name, bit for bit as the model computes them under `jax.jit`. JAX keeps such files readable for half a
    year.

    **Arguments:** as in [`levitax.export.to_onnx`][], without `opset`, and

    - `platforms`: the platforms of the file: some of "cpu", "cuda", "rocm" and "tpu".

    **Returns:** the path.

    **Raises:** `TypeError` or `ValueError` for a model that is not fused or not float32, options that do not fit it,
    and another platform; `OSError` if the file cannot be written; the old file then stays; `ModuleNotFoundError`
    without `flatbuffers`, which JAX needs to write and read such files.
    """
    require("flatbuffers", "`levitax.export.to_stablehlo`", extra("export"))
    path = as_path("path", path)
    if isinstance(platforms, str):
        raise TypeError(f'`platforms` is "{platforms}"; expected a sequence of names: `("{platforms}",)`.')
    if not isinstance(platforms, Sequence) or not platforms:
        raise TypeError(f"`platforms` is {platforms!r}; expected a sequence of names, such as `('cpu', 'cuda')`.")
    for platform in platforms:
        as_choice("platform", platform, PLATFORMS)
    served = endpoint(predict, options)
    run = jax.jit(lambda images: served(predict, images))
    exported = jax_export.export(run, platforms=tuple(platforms))(served.images(batch))
    with replacing(path) as (temporary,):
        temporary.write_bytes(exported.serialize())
    return path
