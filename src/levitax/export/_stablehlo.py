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


# Those of JAX itself; others come with plugins, and StableHLO for them too.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def to_stablehlo(
    predict: Predictor[Any],
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    **options: Unpack[Options],
) -> Path:
    """Writes a fused model as StableHLO, for JAX without this library, and for what else takes it.

    To read it: `run = jax.export.deserialize(Path("levit.stablehlo").read_bytes()).call`, of which `run(images)` gives
    outputs by name, to the bit those of the model under `jax.jit`. JAX keeps what is written readable for half a year.

    **Arguments:** those of [`levitax.export.to_onnx`][] but `opset`, and

    - `platforms`: what it is to run on, of "cpu", "cuda", "rocm" and "tpu".

    **Returns:** the path.

    **Raises:** `TypeError` or `ValueError` for a model that is not fused or not float32, options that do not fit it,
    and another platform; `OSError` if the file cannot be written, and what was there stays; `ModuleNotFoundError`
    without `flatbuffers`, with which JAX writes and reads such files.
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
