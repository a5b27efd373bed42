import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._checks import as_integers
from .._config import LeViTConfig
from . import _tree
from ._entries import entries, Entry, Shape
from ._files import Archive, from_mapping, open_archive
from ._format import read_header
from ._layouts import LayoutName, LAYOUTS
from ._locate import locate
from ._recognise import recognise


Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]

# What PyTorch keeps beside weights and statistics, and follows from the sizes.
IGNORED = ("num_batches_tracked", "attention_bias_idxs", "pos_indices")


class Weights:
    """The arrays of a LeViT in an open source, by our paths; checked to be all there, and nothing else."""

    def __init__(
        self, archive: Archive, config: LeViTConfig, kept: Mapping[str, Entry], *, fused: bool, has_header: bool
    ):
        self.where = archive.where
        self.config = config
        self.fused = fused
        # Without, activation and drop path are what the published model of these sizes has.
        self.has_header = has_header
        self._archive = archive
        self._kept = kept
        self._nonfinite: list[str] = []

    def read(self, path: str) -> np.ndarray:
        """One of our arrays."""
        entry = self._kept[path]
        pieces = []
        for name, shape in zip(entry.names, entry.shapes, strict=True):
            piece = self._archive.read(name).reshape(shape)
            if not np.isfinite(piece).all():
                self._nonfinite.append(name)
            pieces.append(piece)
        return entry.read(pieces)

    def check_finite(self) -> None:
        """Raises if something that was read is NaN or infinite."""
        if self._nonfinite:
            raise ValueError(
                f"{self.where} has weights that are NaN or infinite, in {', '.join(self._nonfinite)}. If they shall be "
                "loaded all the same, pass `allow_nonfinite=True`."
            )


@contextlib.contextmanager
def open_weights(source: Source, revision: str | None, image_size: Any = None) -> Iterator[Weights]:
    """Opens a file, folder, repository on the hub or mapping, tells what it is, and checks it as a whole.

    `image_size` helps where the shapes leave open which images the weights are for. Errors are those of `load`.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, Mapping):
            archive, beside = from_mapping(source, "The mapping"), {}
        else:
            path, beside = locate(source, revision)
            archive = stack.enter_context(open_archive(path))
        header = read_header(archive.metadata, archive.where)
        if header is not None:
            shapes = _tree.shapes(_tree.skeleton(header.config, fused=header.fused)[0])
            kept = {path: Entry(shape, (path,), (shape,)) for path, shape in shapes.items()}
            _check_arrays(archive, "levitax", header.config, kept)
            yield Weights(archive, header.config, kept, fused=header.fused, has_header=True)
            return
        name, config = recognise(_relevant(archive.shapes), _image_sizes(image_size, beside))
        if "drop_path_rate" in beside:
            config = LeViTConfig(**{**config.to_dict(), "drop_path": beside["drop_path_rate"]})
        shapes = _tree.shapes(_tree.skeleton(config)[0])
        kept = entries(LAYOUTS[name], config, shapes)
        _check_arrays(archive, name, config, kept)
        yield Weights(archive, config, kept, fused=False, has_header=False)


def _relevant(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if not name.endswith(IGNORED)}


def _image_sizes(asked: Any, config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """What the images might be: what is asked for, and what a `config.json` of transformers or timm says."""
    model, pretrained = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    found = [asked, config.get("image_size"), model.get("img_size"), pretrained.get("input_size", ())[-2:] or None]
    return [as_integers("image_size", size, 2, "height and width") for size in found if size is not None]


def _check_arrays(archive: Archive, name: LayoutName, config: LeViTConfig, kept: Mapping[str, Entry]) -> None:
    expected = dict(pair for entry in kept.values() for pair in zip(entry.names, entry.shapes, strict=True))
    there = _relevant(archive.shapes)
    # A map of tokens may be kept as a 1x1 convolution.
    fits = lambda here, shape: here == shape or (len(shape) == 2 and here == (*shape, 1, 1))
    missing = [key for key in expected if key not in there]
    unexpected = [key for key in there if key not in expected]
    wrong = [
        f"{key} {there[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in there and not fits(there[key], shape)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of a wrong shape": wrong}
    if any(faults.values()):
        lists = [f"{len(names)} {fault}: {', '.join(names)}." for fault, names in faults.items() if names]
        raise ValueError(
            f"The arrays of {archive.where} are not those of a LeViT of `dim` {config.dim}, `depth` {config.depth} and "
            f"`heads` {config.heads}, which most of them make. {' '.join([*lists, *_strangers(unexpected, name)])} "
            "Nothing was loaded."
        )


def _strangers(unexpected: Sequence[str], layout: LayoutName) -> Iterator[str]:
    """Says if names are those of another layout, whatever their numbers."""
    kind = lambda name: re.sub(r"\d+", "0", name)
    for other in LAYOUTS.keys() - {layout}:
        config = LeViTConfig(network="vit_pytorch" if other == "vit_pytorch" else "paper", distillation=True)
        shapes = _tree.shapes(_tree.skeleton(config)[0])
        known = {kind(name) for entry in entries(LAYOUTS[other], config, shapes).values() for name in entry.names}
        found = [name for name in unexpected if kind(name) in known]
        if found:
            yield f"{len(found)} of the unexpected are named as in the layout {other!r}: a file holds one layout."
            return
