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
_PICKLE_KIND = "file of arrays that PyTorch reads"
# By how a file begins: what it is, and the way out. A download or a clone that went wrong leaves the first ones.
_NO_WEIGHTS = (
    (rb"\Z", "it is empty", "It may have been cut off on its way: fetch it again."),
    (
        rb"version https://git-lfs",
        "it is a Git LFS pointer, a text that stands for the file",
        "Run `git lfs pull` in its repository.",
    ),
    (
        rb"(?i)\s*<(!doctype|html|\?xml)",
        "it is a web page under that name",
        "Fetch the file itself; on the Hugging Face hub its address has `/resolve/` in place of `/blob/`.",
    ),
)
_OTHER_KIND = {
    _SAFETENSORS_KIND: (
        rb"(?s)PK\x03\x04|\x80[\x02-\x05](?!..\0{4})",
        "it is a file of PyTorch",
        "Rename it to end in .pth.",
    ),
    _PICKLE_KIND: (rb"(?s).{8}\{", "it is a safetensors file", "Rename it to end in .safetensors."),
}

_INSTALL = extra("weights")
# Of those before, `weights_only=True` does not keep what it promises.
_SAFE_TORCH = (2, 10)


class Archive(NamedTuple):
    """Named arrays. Each can be read once, and is then let go: never is a whole file in memory beside the model."""

    where: str
    shapes: dict[str, Shape]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, str]
    # By name, the type of what is no array.
    others: Mapping[str, str] = {}
    # What precedes the names of the weights in the checkpoint of a training script.
    inside: str = ""


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a file of weights; no code in it is run.

    **Raises:** `ValueError` if it is corrupt, or something else. `ModuleNotFoundError` if what reads it is missing.
    """
    is_safetensors = path.suffix.lower() in SAFETENSORS
    if not is_safetensors and path.suffix.lower() not in PICKLES:
        raise ValueError(
            f"`{path}` is no file of weights by its name; expected one that ends in "
            f"{', '.join((*SAFETENSORS, *PICKLES))}."
        )
    if _looks_like(path, _NO_WEIGHTS):
        raise _not_whole(path, _SAFETENSORS_KIND if is_safetensors else _PICKLE_KIND)
    if is_safetensors:
        with _open_safetensors(path) as archive:
            yield archive
    else:
        yield from_mapping(_load_pickle(path), f"`{path}`")


def from_mapping(tensors: Mapping[Any, Any], where: str) -> Archive:
    """Arrays of NumPy, JAX or PyTorch by name. Those of dictionaries in it have a name of both keys with a dot
    between."""
    found = dict(_flattened(tensors, ""))
    left = {name: value for name, value in found.items() if hasattr(value, "shape")}
    others = {name: type(value).__name__ for name, value in found.items() if name not in left}
    inside = ""
    for wrapper in ("model", "state_dict"):
        if isinstance(tensors.get(wrapper), Mapping):
            inside, tensors = f"{inside}{wrapper}.", tensors[wrapper]
    shapes = {name: tuple(array.shape) for name, array in left.items()}

    def read(name: str) -> np.ndarray:
        try:
            return _to_numpy(left.pop(name))
        except Exception as error:
            # PyTorch has tensors without values, sparse and quantised ones, and an error of its own for each.
            raise ValueError(
                f"`{name}` in {where} cannot be read as an array ({type(error).__name__}: {error}). Pass dense tensors "
                "with values, of floating-point numbers."
            ) from error

    return Archive(where, shapes, read, {}, others, inside)


def _flattened(tensors: Mapping[Any, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


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
        raise _not_whole(path, _SAFETENSORS_KIND, error) from error


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
            raise _not_whole(path, _PICKLE_KIND, type(error).__name__) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"`{path}` holds one `{type(content).__name__}`; expected a dictionary of arrays.")
    return content


def _looks_like(path: Path, others: Sequence[tuple[bytes, str, str]]) -> tuple[str, str] | None:
    """What a file is and the way out, if it begins as one of `others`."""
    with path.open("rb") as file:
        start = file.read(64)
    return next((other[1:] for other in others if re.match(other[0], start)), None)


def _not_whole(path: Path, kind: str, error: object = None) -> ValueError:
    other = _looks_like(path, (*_NO_WEIGHTS, _OTHER_KIND[kind]))
    fault, way_out = other or (error, "It may have been cut off on its way: fetch it again.")
    return ValueError(f"`{path}` is no whole {kind} ({fault}). {way_out}")


def _to_numpy(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # NumPy has no bfloat16; float32 holds it exactly.
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(tensor)
