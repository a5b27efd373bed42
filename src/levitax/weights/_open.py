import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from .._checks import as_integers
from .._config import LeViTConfig
from ..data import Preprocessing
from . import _tree
from ._companions import CONFIG, read_preprocessing
from ._entries import entries, Entry, Shape
from ._files import Archive, from_mapping, open_archive
from ._format import Header, read_header
from ._hints import read_hints
from ._layouts import LayoutName, LAYOUTS
from ._locate import locate
from ._recognise import recognise


Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""Where weights come from: a file, a folder, a repository on the hub, or arrays by name; see [`levitax.load`][]."""

# What PyTorch keeps beside weights and statistics, and follows from the sizes.
IGNORED = ("num_batches_tracked", "attention_bias_idxs", "pos_indices")


class Weights:
    """The arrays of a LeViT in an open source, by our paths; checked to be all there, and nothing else."""

    def __init__(
        self,
        archive: Archive,
        config: LeViTConfig,
        kept: Mapping[str, Entry],
        *,
        layout: LayoutName,
        fused: bool,
        header: Header | None,
        companions: Mapping[str, Mapping[str, Any]],
    ):
        self.where = archive.where
        self.config = config
        self.layout: LayoutName = layout
        self.fused = fused
        # Without, activation and drop path are guessed.
        self.has_header = header is not None
        self._header = header
        self._companions = companions
        self._archive = archive
        self._kept = kept
        self._nonfinite: list[str] = []

    def read(self, path: str) -> np.ndarray:
        """One of our arrays, in float32."""
        entry = self._kept[path]
        pieces = []
        for name, shape in zip(entry.names, entry.shapes, strict=True):
            piece = self._archive.read(name)
            if not jnp.issubdtype(piece.dtype, jnp.floating):
                raise ValueError(f"`{name}` in {self.where} has dtype {piece.dtype}; expected floating-point numbers.")
            with np.errstate(over="ignore"):
                piece = piece.astype(np.float32).reshape(shape)
            if not np.isfinite(piece).all():
                self._nonfinite.append(name)
            pieces.append(piece)
        return entry.read(pieces)

    def preprocessing(self) -> Preprocessing | None:
        """How the images of the model are prepared, if the source says so."""
        if self._header is not None and self._header.preprocessing is not None:
            return self._header.preprocessing
        return read_preprocessing(self._companions, self.where)

    def check_finite(self) -> None:
        """Raises if something that was read is NaN or infinite."""
        if self._nonfinite:
            raise ValueError(
                f"{self.where} has weights that are NaN or infinite, in {', '.join(self._nonfinite)}. If they shall be "
                "loaded all the same, pass `allow_nonfinite=True`."
            )


@contextlib.contextmanager
def open_weights(
    source: Source, revision: str | None, image_size: Any = None, *, allow_nonfinite: bool = False
) -> Iterator[Weights]:
    """Opens a file, folder, repository on the hub or mapping, tells what it is, and checks it as a whole.

    `image_size` helps where the shapes leave open which images the weights are for. Errors are those of `load`; that
    numbers are not finite is told at the end, of all that was read.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, Mapping):
            archive, beside = from_mapping(source, "what was given"), {}
        else:
            path, beside = locate(source, revision)
            archive = stack.enter_context(open_archive(path))
        archive = _without_wrappers(archive)
        header = read_header(archive.metadata, archive.where)
        if header is not None:
            if sum(header.config.depth) > len(archive.shapes):
                raise ValueError(f"The header of {archive.where} tells of more blocks than there are arrays.")
            name, config, fused = header.layout, header.config, header.fused
        else:
            told = read_hints(beside.get(CONFIG, {}), f"the `config.json` beside {archive.where}")
            try:
                name, config = recognise(_relevant(archive.shapes), told.image_sizes, _asked(image_size))
            except ValueError as error:
                raise ValueError(f"In {archive.where}: {error}") from None
            config = told.applied(config)
            fused = False
        shapes = _tree.shapes(_tree.skeleton(config, fused=fused)[0])
        if fused:
            kept = {path: Entry(shape, (path,), (shape,)) for path, shape in shapes.items()}
        else:
            kept = entries(LAYOUTS[name], config, shapes)
        _check_arrays(archive, name, config, kept)
        weights = Weights(archive, config, kept, layout=name, fused=fused, header=header, companions=beside)
        yield weights
        if not allow_nonfinite:
            weights.check_finite()


def _without_wrappers(archive: Archive) -> Archive:
    """Takes off what `DistributedDataParallel`, Lightning and `torch.compile` put before every name."""
    prefixes = {re.sub(r"^((?:(?:module|model|_orig_mod)\.)*).*", r"\1", name) for name in archive.shapes}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    shapes = {name.removeprefix(prefix): shape for name, shape in archive.shapes.items()}
    return archive._replace(shapes=shapes, read=lambda name: archive.read(prefix + name))


def _asked(image_size: Any) -> tuple[int, ...] | None:
    return None if image_size is None else as_integers("image_size", image_size, 2, "height and width")


def _relevant(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if not name.endswith(IGNORED)}


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
            f"The arrays in {archive.where} are not those of a LeViT of `dim` {config.dim}, `depth` {config.depth} and "
            f"`heads` {config.heads}, as header or most of them tell. "
            f"{' '.join([*lists, *_strangers(unexpected, name)])} Nothing was loaded."
        )


def _strangers(unexpected: Sequence[str], layout: LayoutName) -> Iterator[str]:
    """Says if names are those of another layout and not of this one, whatever their numbers."""
    own = _kinds(layout)
    for other in LAYOUTS:
        found = [name for name in unexpected if _kind(name) in _kinds(other) - own]
        if found:
            yield f"{len(found)} of the unexpected are named as in the layout {other!r}: a file holds one layout."
            return


def _kinds(layout: LayoutName) -> set[str]:
    config = LeViTConfig(network="vit_pytorch" if layout == "vit_pytorch" else "paper", distillation=True)
    shapes = _tree.shapes(_tree.skeleton(config)[0])
    return {_kind(name) for entry in entries(LAYOUTS[layout], config, shapes).values() for name in entry.names}


def _kind(name: str) -> str:
    return re.sub(r"\d+", "0", name)
