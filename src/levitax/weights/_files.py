import contextlib
import os
import pickle
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._extras import require
from ._entries import Shape


SAFETENSORS = (".safetensors",)
PICKLES = (".pth", ".pt", ".bin", ".tar")

_FLOATS = ("F64", "F32", "F16", "BF16")


class Archive(NamedTuple):
    """Named arrays. Each can be read once, and is then let go: never is a whole file in memory beside the model."""

    where: str
    shapes: dict[str, Shape]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, str]


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a file of weights; no code in it is run.

    **Raises:** `ValueError` if it is damaged, or something else. `ModuleNotFoundError` if what reads it is missing.
    """
    if path.suffix in SAFETENSORS:
        with _open_safetensors(path) as archive:
            yield archive
    elif path.suffix in PICKLES:
        yield from_mapping(_load_pickle(path), f"`{path}`")
    else:
        raise ValueError(
            f"`{path}` is no file of weights by its name; expected one that ends in "
            f"{', '.join((*SAFETENSORS, *PICKLES))}."
        )


def from_mapping(tensors: Mapping[str, Any], where: str) -> Archive:
    """Arrays of NumPy, JAX or PyTorch by name, also one level down as training scripts save them."""
    for wrapper in ("model", "state_dict"):
        if isinstance(tensors.get(wrapper), Mapping):
            tensors = tensors[wrapper]
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not hasattr(tensor, "shape"):
            raise ValueError(
                f"{where} has an entry {name!r} of type `{type(tensor).__name__}`; expected arrays by name."
            )
    # PyTorch's `DistributedDataParallel` puts it before every name.
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    left = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in left.items()}
    return Archive(where, shapes, lambda name: _to_numpy(left.pop(name)), {})


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file that whoever reads it sees whole: the one that was there before, or the new one.

    **Raises:** `OSError` if it cannot be written; what was there stays.
    """
    safetensors = require("safetensors", "Writing weights", _INSTALL)
    numpy = require("safetensors.numpy", "Writing weights", _INSTALL)
    # A name of its own, so that two that write at once do not write into one file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            numpy.save_file(dict(arrays), temporary, dict(metadata))
        except safetensors.SafetensorError as error:
            raise OSError(f"`{path}` could not be written: {error}. What was there before is untouched.") from error
        # The library makes a file that nobody else may read.
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


_INSTALL = 'run `pip install "levitax[weights]"`'


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Archive]:
    safetensors = require("safetensors", f"Reading `{path}`", _INSTALL)
    try:
        # Not mapped to memory, where pages that were read stay for as long as the file is open.
        with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}

            def read(name):
                dtype = slices[name].get_dtype()
                if dtype not in _FLOATS:
                    raise ValueError(f"`{name}` in `{path}` has dtype {dtype}; expected one of {', '.join(_FLOATS)}.")
                return file.get_tensor(name)

            shapes = {name: tuple(slice.get_shape()) for name, slice in slices.items()}
            yield Archive(f"`{path}`", shapes, read, file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`{path}` is no whole safetensors file ({error}). It may have been cut off on its way: fetch it again."
        ) from error


def _load_pickle(path: Path) -> Mapping[str, Any]:
    torch = require("torch", f"Reading `{path}`", "install it, or convert the file to safetensors where it is there")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`{path}` was refused: a file of weights holds arrays, this one asks for code to be run. If you trust it, "
            "load it with PyTorch yourself and pass the dictionary of its arrays."
        ) from error
    except (EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"`{path}` is no whole file of PyTorch ({error}). It may have been cut off on its way: fetch it again."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"`{path}` holds one `{type(content).__name__}`; expected a dictionary of arrays.")
    return content


def _to_numpy(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16; float32 holds it exactly.
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(tensor)
