import contextlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._extras import extra, require
from .._files import replacing
from ._entries import Shape


SAFETENSORS = (".safetensors",)
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")

_INSTALL = extra("weights")
# Of those before, `weights_only=True` does not keep what it promises.
_SAFE_TORCH = (2, 10)


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
    if path.suffix.lower() in SAFETENSORS:
        with _open_safetensors(path) as archive:
            yield archive
    elif path.suffix.lower() in PICKLES:
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
                f"In {where}, {name!r} is of type `{type(tensor).__name__}`; expected arrays by name. If they are one "
                "level down, pass the dictionary that has them."
            )
    left = dict(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in left.items()}
    return Archive(where, shapes, lambda name: _to_numpy(left.pop(name)), {})


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], companions: Mapping[Path, str]
) -> None:
    """Writes a file of arrays, and the texts that belong next to it. Whoever reads one of them sees it whole: the one
    that was there before, or the new one.

    **Raises:** `OSError` if it cannot be written; what was there stays.
    """
    safetensors = require("safetensors", "Writing weights", _INSTALL)
    numpy = require("safetensors.numpy", "Writing weights", _INSTALL)
    with replacing(*companions, path, errors=(OSError, safetensors.SafetensorError)) as (*beside, temporary):
        for file, text in zip(beside, companions.values(), strict=True):
            file.write_text(text, "utf-8")
        numpy.save_file(dict(arrays), temporary, dict(metadata))


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Archive]:
    safetensors = require("safetensors", f"Reading `{path}`", _INSTALL)
    try:
        # Not mapped to memory, where pages that were read stay for as long as the file is open.
        with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            shapes = {name: tuple(slice.get_shape()) for name, slice in slices.items()}
            yield Archive(f"`{path}`", shapes, file.get_tensor, file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`{path}` is no whole safetensors file ({error}). It may have been cut off on its way: fetch it again."
        ) from error


def _load_pickle(path: Path) -> Mapping[str, Any]:
    torch = require("torch", f"Reading `{path}`", "install it, or convert the file to safetensors where it is there")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        raise ModuleNotFoundError(
            f"Reading `{path}` safely needs PyTorch {'.'.join(map(str, _SAFE_TORCH))} or newer; {torch.__version__} is "
            "here. In older ones a file can run code (CVE-2025-32434, CVE-2026-24747). Update it, or convert the "
            "file to safetensors where a newer one is."
        )
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # Of which there are many kinds, none of them promised.
            if isinstance(error, pickle.UnpicklingError) and re.search(
                "not an allowed global|Unsupported (global|class)", str(error)
            ):
                raise ValueError(
                    f"`{path}` was refused: a file of weights holds arrays, this one asks for code to be run. If you "
                    "trust it: `levitax.load(torch.load(path, weights_only=False)[...])`, with the entry that has them."
                ) from None
            raise ValueError(
                f"`{path}` is no whole file of arrays that PyTorch reads ({type(error).__name__}). It may have been "
                "cut off on its way: fetch it again."
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
