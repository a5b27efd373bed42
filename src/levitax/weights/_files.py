import contextlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._extras import extra, require
from .._files import replacing
from ._entries import Shape


SAFETENSORS = (".safetensors",)
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")

_SAFETENSORS_KIND = "safetensors file"
_PICKLE_KIND = "PyTorch file"
# By the first bytes of a file: what it is, and what to do. A failed download or clone leaves these.
_NOT_WEIGHTS = (
    (rb"\Z", "it is empty", "The download may have been cut off: fetch it again."),
    (
        rb"version https://git-lfs",
        "it is a Git LFS pointer, a short text in place of the file",
        "Run `git lfs pull` in its repository.",
    ),
    (
        rb"(?i)\s*<(!doctype|html|\?xml)",
        "it is a web page",
        "Fetch the file itself: on the Hugging Face hub, its address has `/resolve/` instead of `/blob/`.",
    ),
)
_OTHER_KIND = {
    _SAFETENSORS_KIND: (
        rb"(?s)PK\x03\x04|\x80[\x02-\x05](?!..\0{4})",
        "it is a PyTorch file",
        "Rename it to end in .pth.",
    ),
    _PICKLE_KIND: (rb"(?s).{8}\{", "it is a safetensors file", "Rename it to end in .safetensors."),
}

_INSTALL = extra("weights")
# In older versions, `weights_only=True` is not safe.
_SAFE_TORCH = (2, 10)


class Archive(NamedTuple):
    """Named arrays. Each can be read once and is then released: a whole file is never in memory next to the model."""

    where: str
    shapes: dict[str, Shape]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, str]
    # The types of the entries that are no arrays, by name.
    others: Mapping[str, str] = {}
    # The prefix of the weights' names in the checkpoint of a training script.
    model_prefix: str = ""


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a weights file without running any code in it.

    **Raises:** `ValueError` if it is corrupt or no weights file; `ModuleNotFoundError` if the package to read it is
    missing.
    """
    is_safetensors = path.suffix.lower() in SAFETENSORS
    if not is_safetensors and path.suffix.lower() not in PICKLES:
        raise ValueError(
            f"`{path}` does not have the name of a weights file; expected one that ends in "
            f"{', '.join((*SAFETENSORS, *PICKLES))}."
        )
    if _looks_like(path, _NOT_WEIGHTS):
        raise _invalid(path, _SAFETENSORS_KIND if is_safetensors else _PICKLE_KIND)
    if is_safetensors:
        with _open_safetensors(path) as archive:
            yield archive
    else:
        yield from_mapping(_load_pickle(path), f"`{path}`")


def from_mapping(tensors: Mapping[Any, Any], where: str) -> Archive:
    """Wraps NumPy, JAX or PyTorch arrays, given by name. Nested dictionaries give names of both keys, with a dot
    between."""
    found = dict(_flattened(tensors, ""))
    left = {name: value for name, value in found.items() if hasattr(value, "shape")}
    others = {name: type(value).__name__ for name, value in found.items() if name not in left}
    model_prefix = ""
    for wrapper in ("model", "state_dict"):
        if isinstance(tensors.get(wrapper), Mapping):
            model_prefix, tensors = f"{model_prefix}{wrapper}.", tensors[wrapper]
    shapes = {name: tuple(array.shape) for name, array in left.items()}

    def read(name: str) -> np.ndarray:
        try:
            return _to_numpy(left.pop(name))
        except Exception as error:
            # PyTorch raises a different error for each of meta, sparse and quantised tensors.
            raise ValueError(
                f"`{name}` in {where} cannot be read as an array ({type(error).__name__}: {error}). Pass dense "
                "floating-point tensors that hold values."
            ) from error

    return Archive(where, shapes, read, {}, others, model_prefix)


def _flattened(tensors: Mapping[Any, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], companions: Mapping[Path, str]
) -> None:
    """Writes a file of arrays, and the text files that belong next to it. A reader of one of them sees the old file or
    the complete new one.

    **Raises:** `OSError` if a file cannot be written; the old files stay.
    """
    safetensors = require("safetensors", "Writing weights", _INSTALL)
    numpy = require("safetensors.numpy", "Writing weights", _INSTALL)
    with replacing(*companions, path, errors=(OSError, safetensors.SafetensorError)) as (*text_files, temporary):
        for file, text in zip(text_files, companions.values(), strict=True):
            file.write_text(text, "utf-8")
        numpy.save_file(dict(arrays), temporary, dict(metadata))


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Archive]:
    safetensors = require("safetensors", f"Reading `{path}`", _INSTALL)
    try:
        # Not memory-mapped: pages that were read would stay in memory while the file is open.
        with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            shapes = {name: tuple(slice.get_shape()) for name, slice in slices.items()}
            yield Archive(f"`{path}`", shapes, file.get_tensor, file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise _invalid(path, _SAFETENSORS_KIND, error) from error


def _load_pickle(path: Path) -> Mapping[str, Any]:
    torch = require("torch", f"Reading `{path}`", "install it, or convert the file to safetensors on a machine with it")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        raise ModuleNotFoundError(
            f"Reading `{path}` safely needs PyTorch {'.'.join(map(str, _SAFE_TORCH))} or newer, and "
            f"{torch.__version__} is installed. In older versions, a file can run code (CVE-2025-32434, "
            "CVE-2026-24747). Update PyTorch, or convert the file to safetensors on a machine with a newer version."
        )
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # `torch.load` raises many kinds of errors, none of them documented.
            if isinstance(error, pickle.UnpicklingError) and re.search(
                "not an allowed global|Unsupported (global|class)", str(error)
            ):
                raise ValueError(
                    f"`{path}` was refused: it asks to run code, and a weights file should only hold arrays. If you "
                    "trust it: `levitax.load(torch.load(path, weights_only=False)[...])`, with the weights' entry."
                ) from None
            raise _invalid(path, _PICKLE_KIND, type(error).__name__) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"`{path}` holds one `{type(content).__name__}`; expected a dictionary of arrays.")
    return content


def _looks_like(path: Path, others: Sequence[tuple[bytes, str, str]]) -> tuple[str, str] | None:
    """If a file begins like one of `others`, what it is and what to do."""
    with path.open("rb") as file:
        start = file.read(64)
    return next((other[1:] for other in others if re.match(other[0], start)), None)


def _invalid(path: Path, kind: str, error: object = None) -> ValueError:
    other = _looks_like(path, (*_NOT_WEIGHTS, _OTHER_KIND[kind]))
    fault, way_out = other or (error, "The download may have been cut off: fetch it again.")
    return ValueError(f"`{path}` is not a valid {kind} ({fault}). {way_out}")


def _to_numpy(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16; float32 holds it exactly.
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(tensor)
