"""A LeViT in a few lines of text."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax

from . import nn
from ._config import LeViTConfig
from ._parameters import count_parameters


# The most lines of a table.
_LINES = 40


class Part(NamedTuple):
    """A part of a LeViT: its name, the part itself, and its class with its sizes."""

    name: str
    module: Any
    layers: str


def outline(model: Any) -> str:
    """The `repr` of a LeViT: its parts, the shapes of their outputs as configured, and the number of parameters.

    Traces nothing. A tree with the structure of a model may have other leaves, or `None` for whole parts. If its parts
    cannot be counted, returns the whole tree.
    """
    try:
        shapes = _configured_shapes(model.config)
        rows = [
            (part.name, part.layers, str(shapes.get(part.name, "")), f"{count_parameters(part.module):,}")
            for part in parts(model)
        ]
        total = ("total", "", "", f"{count_parameters(model):,}")
        return table(title(model), ("part", "layers", "output", "parameters"), [*rows, total])
    except Exception:
        # A debugger or a failing test calls `repr` on anything, and must not fail on it.
        return eqx.tree_pformat(model)


def title(model: Any) -> str:
    """One line: the class, images and classes, dtype and mode, and whether the model is fused."""
    config = model.config
    images = "x".join(map(str, (*config.image_size, config.in_channels)))
    classes = f"{config.num_classes:,} classes" if config.num_classes else "no classes"
    fused = "fused" if is_fused(model) else "not fused"
    return f"{type(model).__name__}: {images} images, {classes}, {config.dtype}, {_mode(model)}, {fused}"


def parts(model: Any) -> Iterator[Part]:
    """Yields the stem, each stage and the head."""
    yield Part("stem", model.stem, _described(model.stem))
    for number, stage in enumerate(model.stages, 1):
        yield Part(f"stage {number}", stage, _described(stage))
    yield Part("head", model.head, _described(model.head))


def table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """At most 40 lines: a heading, then columns. From the fourth column on, they are aligned to the right."""
    most = _LINES - 2
    if len(rows) > most:
        left_out, first = len(rows) - most + 1, most // 2
        shortened = (f"({left_out} more)", *[""] * (len(columns) - 1))
        rows = [*rows[:first], shortened, *rows[first + left_out :]]
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pads = [str.ljust] * 3 + [str.rjust] * (len(columns) - 3)
    aligned = [[pad(text, width) for pad, text, width in zip(pads, line, widths, strict=True)] for line in lines]
    return "\n".join([heading, *("  ".join(line).rstrip() for line in aligned)])


def _configured_shapes(config: LeViTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each part's output, by the name of the part."""
    maps = [(*config.grid(stage), dim) for stage, dim in enumerate(config.dim)]
    rows, columns, dim = maps[-1]
    last = (config.num_classes or dim,) if config.pooling == "mean" else (rows * columns, config.num_classes or dim)
    return {"stem": maps[0], "head": last} | {f"stage {number}": shape for number, shape in enumerate(maps, 1)}


def _described(part: Any) -> str:
    match part:
        case None:
            return "none"
        case nn.Stem():
            return f"{_name_of(part)}: {_counted(len(part.convolutions), 'convolution')}"
        case nn.Stage():
            others = sorted({_name_of(block) for block in part.blocks if type(block) is not nn.Block})
            among = f" (among them {', '.join(others)})" if others else ""
            return f"{_name_of(part)}: {', '.join([_counted(len(part.blocks), 'block') + among, *_heads(part)])}"
    return _name_of(part)


def _heads(stage: nn.Stage) -> list[str]:
    """Heads and their channels, if they are the same in every block that keeps the grid."""
    is_projection = lambda node: isinstance(node, nn.QueryKeyValue)
    found = filter(is_projection, jax.tree.leaves(stage, is_leaf=is_projection))
    sizes = {f"{_counted(each.heads, 'head')}, key_dim {each.key_dim}" for each in found}
    return [*sizes] if len(sizes) == 1 else []


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _name_of(part: Any) -> str:
    """The name of a function, or the class of anything else."""
    return getattr(part, "__name__", type(part).__name__)


def _mode(model: Any) -> str:
    flags = {
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
        if isinstance(leaf, bool) and getattr(path[-1], "name", None) == "inference"
    }
    if len(flags) == 2:
        return "partly in inference mode"
    return "inference mode" if flags == {True} else "training mode"


def is_fused(model: Any) -> bool:
    """Whether a model is the result of `fuse`, which expands attention biases and folds in the scale of queries."""
    projections = nn.QueryKeyValue, nn.SubsampledQueryKeyValue
    is_part = lambda node: isinstance(node, (nn.GatheredAttentionBias, *projections))
    found = filter(is_part, jax.tree.leaves(model, is_leaf=is_part))
    return any(not isinstance(node, projections) or (node.scale == 1 and node.key_dim > 1) for node in found)
