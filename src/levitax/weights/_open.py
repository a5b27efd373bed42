import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from ._layouts import folded, Layout, LayoutName, LAYOUTS
from ._locate import locate
from ._recognise import prefixes, recognise
from ._shards import is_index, open_shards


Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A source of weights: a file, a folder, a repository on the hub, or arrays by name; see [`levitax.load`][]."""

# Arrays that PyTorch stores in addition to weights and statistics. A LeViT does not need them.
IGNORED = ("num_batches_tracked", "attention_bias_idxs", "pos_indices")


class Weights:
    """The arrays of a LeViT in an open source, by our paths. None is missing, and there are no others."""

    def __init__(
        self,
        archive: Archive,
        config: LeViTConfig,
        kept: Mapping[str, Entry],
        *,
        layout: LayoutName,
        form: _tree.Form,
        header: Header | None,
        knows_activation: bool,
        companions: Mapping[str, Mapping[str, Any]],
    ):
        self.where = archive.where
        self.config = config
        self.layout: LayoutName = layout
        self.form: _tree.Form = form
        # Otherwise the activation in `config` is a guess.
        self.knows_activation = knows_activation
        self._header = header
        self._companions = companions
        self._archive = archive
        self._kept = kept
        self._nonfinite: list[str] = []

    def read(self, path: str) -> np.ndarray:
        """Reads one of our arrays, in float32."""
        entry = self._kept[path]
        pieces = []
        for name, shape in zip(entry.names, entry.shapes, strict=True):
            piece = self._archive.read(name)
            if not jnp.issubdtype(piece.dtype, jnp.floating):
                raise ValueError(f"`{name}` in {self.where} has dtype {piece.dtype}; expected floating-point numbers.")
            with np.errstate(over="ignore"):
                piece = piece.astype(np.float32).reshape(shape)
            if not np.isfinite(piece).all() or (path.endswith(".var") and (piece < 0).any()):
                self._nonfinite.append(name)
            pieces.append(piece)
        return entry.read(pieces)

    def preprocessing(self) -> Preprocessing | None:
        """The preprocessing of the model's images, if the source describes it. JSON files next to one of our files are
        ignored: they may belong to weights that it has replaced."""
        return read_preprocessing(self._companions, self.where) if self._header is None else self._header.preprocessing

    def check_finite(self) -> None:
        """Raises if any array read so far has NaN or infinite values, or negative variances, which lead to NaN."""
        if self._nonfinite:
            raise ValueError(
                f"{self.where} has weights that are NaN or infinite, or negative variances, in "
                f"{', '.join(self._nonfinite)}. To load them anyway, pass `allow_nonfinite=True`."
            )


@contextlib.contextmanager
def open_weights(
    source: Source,
    revision: str | None,
    image_size: Any = None,
    *,
    prefix: str | None = None,
    allow_nonfinite: bool = False,
    activation: Any = None,
) -> Iterator[Weights]:
    """Opens a file, folder, repository on the hub or mapping, recognises the layout, and checks all names and shapes.

    `image_size` decides which images the weights are for, if the shapes leave that open; `activation` is the function
    of a header that has only its name. Raises what `load` raises. The
    error for non-finite values comes at the end, and names all arrays read with such values.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, Mapping):
            archive, companions = from_mapping(source, "the given arrays"), {}
        else:
            path, companions = locate(source, revision)
            archive = stack.enter_context(open_shards(path) if is_index(path.name) else open_archive(path))
        archive = _selected(archive, prefix)
        wrappers = _wrappers(archive.shapes)
        archive, before = _without_prefix(archive, wrappers), _dotted(prefix or "") + wrappers
        header = read_header(archive.metadata, archive.where, activation)
        form: _tree.Form
        if header is not None:
            if sum(header.config.depth) > len(archive.shapes):
                raise ValueError(f"The header of {archive.where} describes more blocks than there are arrays.")
            name, layout, config = header.layout, LAYOUTS[header.layout], header.config
            form, image_sizes = "fused" if header.fused else "whole", ()
            knows_activation = True
        else:
            hints = read_hints(companions.get(CONFIG, {}), f"The `config.json` next to {archive.where}")
            try:
                found = recognise(_relevant(archive.shapes), hints.image_sizes, _asked(image_size))
            except ValueError as error:
                raise ValueError(f"In {archive.where}: {error}{_suggest_prefix(archive.shapes, before)}") from None
            name, layout, config = found.name, found.layout, hints.applied(found.config)
            form, image_sizes = "folded" if found.folded else "whole", found.image_sizes
            knows_activation = hints.activation is not None
        shapes = _tree.shapes(_tree.skeleton(config, form)[0])
        if form == "fused":
            kept = {path: Entry(shape, (path,), (shape,)) for path, shape in shapes.items()}
        else:
            kept = entries(layout, config, shapes)
        _check_arrays(archive, name, config, kept, before)
        if len(image_sizes) > 1:
            _warn_of_guess(config, image_sizes, archive.where)
        weights = Weights(
            archive,
            config,
            kept,
            layout=name,
            form=form,
            header=header,
            knows_activation=knows_activation,
            companions=companions,
        )
        yield weights
        if not allow_nonfinite:
            weights.check_finite()


def _selected(archive: Archive, prefix: str | None) -> Archive:
    """The arrays whose names begin with `prefix`, without it. By default, those that a training script saves as the
    model."""
    if prefix is None:
        archive = _without_prefix(archive, archive.model_prefix)
        if archive.others:
            name, kind = next(iter(archive.others.items()))
            raise ValueError(
                f"In {archive.where}, {name!r} is of type `{kind}`; expected arrays by name. If they are one level "
                f"down, pass the dictionary that contains them.{_suggest_prefix(archive.shapes)}"
            )
        return archive
    if not isinstance(prefix, str):
        raise TypeError(f"`prefix` is {prefix!r}; expected the beginning of array names, such as 'encoder.'.")
    for start in (archive.model_prefix + _dotted(prefix), _dotted(prefix)):
        selected = _without_prefix(archive, start)
        if selected.shapes:
            return selected._replace(others={})
    raise ValueError(
        f"`prefix` is {prefix!r}, but no name in {archive.where} begins with it.{_suggest_prefix(archive.shapes)}"
    )


def _dotted(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def _without_prefix(archive: Archive, prefix: str) -> Archive:
    """The arrays whose names begin with `prefix`, without it."""
    chosen = lambda found: {name.removeprefix(prefix): of for name, of in found.items() if name.startswith(prefix)}
    read = lambda name: archive.read(prefix + name)
    return archive._replace(shapes=chosen(archive.shapes), others=chosen(archive.others), read=read)


def _suggest_prefix(shapes: Mapping[str, Shape], before: str = "") -> str:
    """Suggests a `prefix` if the names of a LeViT follow one. `before` is the part that was already removed."""
    found = [f'`prefix="{before}{found}"`' for found in prefixes(shapes)]
    return f" The names of a LeViT follow a prefix: pass {' or '.join(found)}." if found else ""


def _warn_of_guess(config: LeViTConfig, image_sizes: Sequence[tuple[int, int]], where: str) -> None:
    size, *sizes = ("x".join(map(str, size)) for size in (config.image_size, *image_sizes))
    warnings.warn(
        f"The tables of attention biases in {where} have {math.prod(config.grid(0))} tokens and fit images of "
        f"{', '.join(sizes)} pixels; assumed {size}. Pass the `image_size=(height, width)` that the weights are for. "
        "To change the size of the model, pass the loaded one to `levitax.weights.adapt`.",
        stacklevel=5,  # The caller of `load`.
    )


def _wrappers(names: Iterable[str]) -> str:
    """The prefix that `DistributedDataParallel`, Lightning and `torch.compile` put before every name."""
    wrappers = {re.sub(r"^((?:(?:module|model|_orig_mod)\.)*).*", r"\1", name) for name in names}
    return wrappers.pop() if len(wrappers) == 1 else ""


def _asked(image_size: Any) -> tuple[int, int] | None:
    if image_size is None:
        return None
    height, width = as_integers("image_size", image_size, 2, "height and width")
    return height, width


def _relevant(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if not name.endswith(IGNORED)}


def _check_arrays(
    archive: Archive, name: LayoutName, config: LeViTConfig, kept: Mapping[str, Entry], before: str
) -> None:
    expected = dict(pair for entry in kept.values() for pair in zip(entry.names, entry.shapes, strict=True))
    there = _relevant(archive.shapes)
    # A linear layer may be stored as a 1x1 convolution.
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
            f"The arrays in {archive.where} do not fit a LeViT of `dim` {config.dim}, `depth` {config.depth} and "
            f"`heads` {config.heads}, the sizes in the header or in most of the arrays. "
            f"{' '.join([*lists, *_explain_unexpected(unexpected, name)])}{_suggest_prefix(archive.shapes, before)} "
            "Nothing was loaded."
        )


def _explain_unexpected(unexpected: Sequence[str], layout: LayoutName) -> Iterator[str]:
    """Says whether the names belong to another layout, ignoring numbers in them."""
    own, kinds = _kinds(layout, LAYOUTS[layout]), [_kind(name) for name in unexpected]
    if not _folded_kinds(layout).isdisjoint(set(kinds) - own):
        yield "Some of the normalisations are folded in: use the checkpoint from before folding."
    for other in LAYOUTS:
        theirs = _kinds(other, LAYOUTS[other]) - own
        if found := sum(kind in theirs for kind in kinds):
            yield f"{found} of the unexpected names are those of the layout {other!r}: a file holds one layout."
            return


def _folded_kinds(layout: LayoutName) -> set[str]:
    return {
        kind
        for renamed in (True, False)
        for kind in _kinds(layout, folded(LAYOUTS[layout], renamed=renamed), form="folded")
    }


def _kinds(name: LayoutName, layout: Layout, *, form: _tree.Form = "whole") -> set[str]:
    network = "vit_pytorch" if name == "vit_pytorch" else "paper"
    config = LeViTConfig(network=network, stages=2, dim=16, depth=1, heads=1, distillation=True)
    shapes = _tree.shapes(_tree.skeleton(config, form)[0])
    return {_kind(name) for entry in entries(layout, config, shapes).values() for name in entry.names}


def _kind(name: str) -> str:
    return re.sub(r"\d+", "0", name)
