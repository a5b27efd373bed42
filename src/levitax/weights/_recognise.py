import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from .._config import LeViTConfig
from .._variants import VARIANTS
from ._entries import bias_name, inside, Shape
from ._layouts import folded, Layer, Layout, LayoutName, LAYOUTS, Place


Shapes = Mapping[str, Shape]
Size = tuple[int, int]

# The image size of all published weights.
_PUBLISHED = (224, 224)

# The keywords that must be the same in a model and in the weights for it.
ARCHITECTURE = (
    "network",
    "patch_size",
    "stages",
    "dim",
    "depth",
    "heads",
    "mlp_mult",
    "key_dim",
    "value_dim",
    "subsample_heads",
    "subsample_value_ratio",
    "subsample_mlp_mult",
)


class Recognised(NamedTuple):
    """The layout and configuration of weights, inferred from names and shapes."""

    name: LayoutName
    # As in the file: without normalisations if the model is folded.
    layout: Layout
    folded: bool
    config: LeViTConfig
    # All image sizes that fit. If there are several, the one in `config` is a guess.
    image_sizes: Sequence[Size]


def differences(one: LeViTConfig, other: LeViTConfig) -> list[str]:
    """The architecture keywords in which two models differ."""
    return [name for name in ARCHITECTURE if getattr(one, name) != getattr(other, name)]


def recognise(shapes: Shapes, image_sizes: Sequence[Size] = (), asked: Size | None = None) -> Recognised:
    """Infers the layout from the names, and the model from the shapes.

    A flat table of attention biases shows neither height nor width, and no table distinguishes 224 pixels from 210,
    which also make 14 tokens. So the image size is the first of `image_sizes` that fits. If none fits, it is `asked`,
    the size that the caller wants in the end, if that fits. Otherwise images are square, of whole tokens.

    **Raises:** `ValueError` if the names belong to no layout, or the shapes to no LeViT.
    """
    name, layout, is_folded = max(_layouts(shapes), key=lambda found: len(_first_names(found[1]) & shapes.keys()))
    if not _first_names(layout) & shapes.keys():
        some = ", ".join(f"`{name}`" for name in sorted(shapes)[:3])
        raise ValueError(
            f"these are not the weights of a LeViT: none of {len(shapes)} names{some and f' ({some}, ...)'} belongs to "
            f"the first layers in a known layout: {', '.join(LAYOUTS)}."
        )
    sizes, found = _sizes(layout, shapes, image_sizes, asked)
    if _is_vit_pytorch(name, shapes):
        return Recognised(name, layout, is_folded, LeViTConfig(network="vit_pytorch", **sizes), found)
    config = LeViTConfig(**sizes)
    for variant in VARIANTS.values():
        published = LeViTConfig(**variant)
        if not differences(published, config):
            # The shapes show neither activation nor drop path.
            config = LeViTConfig(**sizes, activation=published.activation, drop_path=published.drop_path)
            found = [config.image_size] if config.image_size == _PUBLISHED else found
            break
    return Recognised(name, layout, is_folded, config, found)


def prefixes(shapes: Shapes) -> list[str]:
    """The prefix of each LeViT among other arrays, such as "encoder."; the shortest one if several fit."""
    tables = [bias_name(layout, Place(0, ())) for layout in LAYOUTS.values()]
    found = [[name.removesuffix(table) for table in tables if f".{name}".endswith(f".{table}")] for name in shapes]
    return sorted({min(of_one, key=len) for of_one in found if of_one} - {""})


def _layouts(shapes: Shapes) -> Iterator[tuple[LayoutName, Layout, bool]]:
    """Yields every layout, then the folded forms of those whose first attention bias is among `shapes`."""
    for name, layout in LAYOUTS.items():
        yield name, layout, False
    for name, layout in LAYOUTS.items():
        if name not in ("levitax", "vit_pytorch") and bias_name(layout, Place(0, ())) in shapes:
            for renamed in (True, False):
                yield name, folded(layout, renamed=renamed), True


def _is_vit_pytorch(name: LayoutName, shapes: Shapes) -> bool:
    """Whether this is the vit-pytorch network, whose convolutions have biases instead of normalisations."""
    return name == "vit_pytorch" or (name == "levitax" and f"{LAYOUTS[name].convolution(0).linear}.bias" in shapes)


def _first_names(layout: Layout) -> set[str]:
    first = Place(0, ())
    layers = [layout.convolution(0), *inside(layout.attention(first), layout.query_key_value)]
    norms = {f"{layer.norm or layer.linear}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    return {bias_name(layout, first), *_weights(layers), *norms}


def _sizes(
    layout: Layout, shapes: Shapes, image_sizes: Sequence[Size], asked: Size | None
) -> tuple[dict[str, Any], Sequence[Size]]:
    """The keywords of a LeViT, and all image sizes that fit."""
    # Count up to the last one, since an earlier one may be missing.
    numbers = [n for n in range(4) if any(name in shapes for name in _arrays(layout.convolution(n)))]
    convolutions = max(numbers, default=-1) + 1
    if convolutions < 2:
        raise ValueError(f"the stem has {convolutions} convolutions; a LeViT has 4, 3 or 2.")
    depths: list[int] = []
    while _exists(layout, shapes, Place(0, tuple(depths))):
        before, depth = tuple(depths), 0
        while _exists(layout, shapes, Place(depth + (len(before) > 0), before)):
            depth += 1
        depths.append(depth)
    if 0 in depths or not depths:
        raise ValueError(f"the names give stages of {depths} blocks; every stage of a LeViT has at least one.")
    regular, downsampling = [], []
    for stage, depth in enumerate(depths):
        before = tuple(depths[:stage])
        regular.append(_block(layout, shapes, [Place(block + (stage > 0), before) for block in range(depth)]))
        if stage > 0:
            downsampling.append(_block(layout, shapes, [Place(0, before)]))
    stem = shapes.get(_weights([layout.convolution(0)])[0], ())
    heads = _weights([layout.classification, layout.distillation, layout.head])
    patch_size = 2**convolutions
    image_size, found = _image_size([block.grid for block in regular], patch_size, image_sizes, asked)
    sizes = {
        "image_size": image_size,
        "num_classes": _most_common([shapes[name][0] for name in heads if shapes.get(name)] or [0], heads),
        "in_channels": stem[1] if len(stem) == 4 else 3,
        "patch_size": patch_size,
        "stages": len(depths),
        "dim": [block.out_dim for block in regular],
        "depth": depths,
        "heads": [block.heads for block in regular],
        "mlp_mult": [_ratio(block.hidden_dim, block.out_dim) for block in regular],
        "key_dim": [block.key_dim for block in regular],
        "value_dim": [block.value_dim for block in regular],
        "subsample_heads": [block.heads for block in downsampling],
        "subsample_value_ratio": [_ratio(block.value_dim, block.key_dim) for block in downsampling],
        "subsample_mlp_mult": [_ratio(block.hidden_dim, block.out_dim) for block in downsampling],
        "distillation": any(name in shapes for name in _arrays(layout.distillation)),
    }
    return sizes, found


class _Block(NamedTuple):
    """The sizes that blocks of one kind share. `grid` is only a number of tokens if the file has flat tables."""

    grid: Shape
    heads: int
    key_dim: int
    value_dim: int
    out_dim: int
    hidden_dim: int


def _block(layout: Layout, shapes: Shapes, places: Sequence[Place]) -> _Block:
    """Takes each size from the majority of blocks, so that a wrong array is reported and not the right ones."""

    def size(*where: tuple[int, str]) -> int:
        found = [shapes[name][axis] for axis, name in where if len(shapes.get(name, ())) > axis]
        return _most_common(found, [name for _, name in where])

    def axis(number: int, layer: Layer, owner: Callable[[Place], str] = layout.attention) -> list[tuple[int, str]]:
        return [(number, name) for place in places for name in _weights(inside(owner(place), [layer]))]

    expand = partial(axis, layer=layout.expand, owner=layout.mlp)
    contract = partial(axis, layer=layout.contract, owner=layout.mlp)
    out_dim = size(*axis(0, layout.project_out), *expand(1), *contract(0))
    hidden_dim = size(*expand(0), *contract(1))
    names = [bias_name(layout, place) for place in places]
    tables = [shapes[name] for name in names if len(shapes.get(name, ())) > 1]
    table = _most_common([table[::-1] if layout.bias_table == "embedding" else table for table in tables], names)
    heads, grid = table[0], table[1:]
    value_dim = _ratio(size(*axis(1, layout.project_out)), heads)
    if places[0].downsamples:
        key_dim = _ratio(size(*axis(0, layout.query[0])), heads)
    else:
        key_dim = _ratio(_ratio(sum(size(*axis(0, layer)) for layer in layout.query_key_value), heads) - value_dim, 2)
    return _Block(grid, heads, key_dim, value_dim, out_dim, hidden_dim)


def _image_size(
    grids: Sequence[Shape], patch_size: int, image_sizes: Sequence[Size], asked: Size | None
) -> tuple[Size, Sequence[Size]]:
    """The image size for tables of these `grids`, and all sizes that fit, which are several if it is a guess."""

    def fits(rows: int, columns: int) -> bool:
        halved = [(-(-rows // 2**stage), -(-columns // 2**stage)) for stage in range(len(grids))]
        return all(grid in (size, (math.prod(size),)) for grid, size in zip(grids, halved, strict=True))

    for height, width in (*image_sizes, *(() if asked is None else (asked,))):
        if fits(-(-height // patch_size), -(-width // patch_size)):
            return (height, width), [(height, width)]
    tokens = math.prod(grids[0])
    found = [
        (rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0 and fits(rows, tokens // rows)
    ]
    if not found:
        raise ValueError(
            f"the tables of attention biases have {', '.join(map(str, map(math.prod, grids)))} tokens; no grid gives "
            "these numbers when it is halved from stage to stage."
        )
    squares = [(rows, columns) for rows, columns in found if rows == columns]
    if len(found) > 1 and not squares:
        grids_found = " or ".join(f"{rows}x{columns}" for rows, columns in found)
        raise ValueError(
            f"the tables of attention biases have {tokens} tokens: {grids_found}. Pass the `image_size` that the "
            f"weights are for, {patch_size} pixels per token. To change the size of the model, use "
            "`levitax.weights.adapt` afterwards."
        )
    image_sizes = [(rows * patch_size, columns * patch_size) for rows, columns in found]
    rows, columns = (squares or found)[0]
    guess = rows * patch_size, columns * patch_size
    return guess, image_sizes


def _exists(layout: Layout, shapes: Shapes, place: Place) -> bool:
    kinds = (layout.key_value, layout.query) if place.downsamples else (layout.query_key_value,)
    layers = [*(layer for kind in kinds for layer in kind), layout.project_out]
    names = _weights(inside(layout.attention(place), layers))
    return any(name in shapes for name in (*names, bias_name(layout, place)))


def _weights(layers: Iterable[Layer]) -> list[str]:
    return [f"{layer.linear}.weight" for layer in layers]


def _arrays(layer: Layer) -> list[str]:
    return [f"{name}.{leaf}" for name in layer if name for leaf in ("weight", "bias")]


def _most_common(values: Sequence[Any], names: Sequence[str]) -> Any:
    if not values:
        raise ValueError(f"the sizes of the model are unknown: {', '.join(names)} are missing or have too few axes.")
    return Counter(values).most_common(1)[0][0]


def _ratio(total: int, part: int) -> int:
    if part == 0 or total % part:
        raise ValueError(f"the shapes are not those of a LeViT: {total} channels do not divide into {part}.")
    return total // part
