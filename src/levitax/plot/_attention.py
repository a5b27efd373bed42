from typing import Any, TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_integer, as_integers
from .._fuse import check_levit
from .._model import LeViT
from ..nn import AttentionBias, Stage
from ._figures import GREY, make_panels, matplotlib


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Width and height of a panel, in inches.
_PANEL = (1.4, 1.6)


def attention_biases(model: LeViT, *, block: int = 0) -> "Figure":
    """Draws the attention biases of one block in each stage, like the maps in the paper's appendix B.

    Each row is a stage, and each panel a head. A panel shows the bias by the position of a token relative to the query
    in the middle. Offsets are absolute, so the maps are mirrored. Red means more attention, blue less, white no bias.
    The strongest colour is the largest magnitude in the stage. Needs `pip install "levitax[plot]"`.

    **Arguments:**

    - `model`: a [`levitax.LeViT`][], not fused.
    - `block`: index among the blocks of each stage that keep the grid, from 0; -1 is the last.

    **Returns:** a Matplotlib figure with a transparent background, readable on light and dark pages.

    **Raises:** `TypeError` if `model` is not a LeViT; `ValueError` for a fused model, which has no tables of biases,
    and if a stage has no such block; `ModuleNotFoundError` without Matplotlib.
    """
    check_levit(model)
    tables = [_bias_table(number, stage, block) for number, stage in enumerate(model.stages, 1)]
    figure, panels = make_panels(len(tables), max(map(len, tables)), *_PANEL)
    for row, (table, stage_panels) in enumerate(zip(tables, panels, strict=True), 1):
        reach = np.abs(table).max() or 1.0
        # A stage with fewer heads than others leaves the rest of its row empty.
        for head, (panel, offsets) in enumerate(zip(stage_panels, table, strict=False), 1):
            # Mirrored, since the table is indexed by absolute offsets.
            half = np.concatenate([offsets[:0:-1], offsets])
            panel.imshow(np.concatenate([half[:, :0:-1], half], axis=1), cmap="RdBu_r", vmin=-reach, vmax=reach)
            panel.set_title(f"stage {row}, head {head}", color=GREY, fontsize=8)
    return figure


def attention_maps(
    image: Float[np.ndarray | Array, "height width channels"],
    weights: Float[np.ndarray | Array, "heads queries tokens"],
    *,
    grid: tuple[int, int],
    query: int | None = None,
) -> "Figure":
    """Draws the attention of each head of a block over the image. Needs `pip install "levitax[plot]"`.

    ```python
    from levitax import plot

    weights = model.attention_maps(image, state)[0][-1]  # the last block of the first stage
    figure = plot.attention_maps(pixels, weights, grid=model.config.grid(0), query=90)
    ```

    **Arguments:**

    - `image`: `(height, width, channels)`, as displayed: one or three channels with values in [0, 1].
    - `weights`: `(heads, queries, tokens)`, of one block, from [`levitax.LeViT.attention_maps`][].
    - `grid`: rows and columns of the tokens: `model.config.grid(stage)` for the block's stage. The first block of a
        later stage has the tokens of the stage before.
    - `query`: the token that attends, by its number in row-major order; the figure frames it. By default the mean over
        all queries, since a LeViT classifies the mean of its tokens.

    **Returns:** a Matplotlib figure with a transparent background, readable on light and dark pages. The brightest
    colour is the largest weight in the panel.

    **Raises:** `TypeError` for arguments that are not arrays; `ValueError` if the image has other channels or values,
    the grid has another number of tokens, a weight is not finite, or there is no such query; `ModuleNotFoundError`
    without Matplotlib.
    """
    _check_rank("image", image, ("height", "width", "channels"))
    _check_rank("weights", weights, ("heads", "queries", "tokens"))
    pixels, (heads, queries, tokens) = np.asarray(image, np.float32), weights.shape
    height, width, channels = pixels.shape
    if channels not in (1, 3):
        raise ValueError(f"`image` has {channels} channels; expected 1 or 3, as in a grey or a colour image.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"`image` has values from {pixels.min():.3g} to {pixels.max():.3g}; expected values in [0, 1]. Pass "
            "the image from before its normalisation."
        )
    if not np.isfinite(np.asarray(weights, np.float32)).all():
        raise ValueError("`weights` has values that are not finite; expected those of `attention_maps`, from 0 to 1.")
    rows, columns = as_integers("grid", grid, 2, "rows and columns")
    if rows * columns != tokens:
        raise ValueError(
            f"`grid` is {rows}x{columns}, but `weights` has {tokens} tokens; pass `model.config.grid(stage)`, or for "
            "the first block of a later stage the grid of the stage before."
        )
    if query is not None and as_integer("query", query, minimum=0) >= queries:
        raise ValueError(f"`query` is {query}; expected a number from 0 to {queries - 1}.")

    attended = np.asarray(weights, np.float32)
    attended = attended.mean(1) if query is None else attended[:, query]
    figure, panels = make_panels(1, heads, *_PANEL)
    whole = (0, width, height, 0)
    for head, (panel, map_) in enumerate(zip(panels[0], attended.reshape(heads, rows, columns), strict=True), 1):
        panel.imshow(pixels.squeeze(-1) if channels == 1 else pixels, cmap="gray", vmin=0, vmax=1, extent=whole)
        panel.imshow(map_, cmap="inferno", alpha=0.65, vmin=0, extent=whole)
        panel.set_title(f"head {head}", color=GREY, fontsize=8)
        if query is not None:
            # A downsampling block has queries at every second row and column.
            stride = 1 if queries == tokens else 2
            row, column = divmod(query, -(-columns // stride))
            corner = column * stride * width / columns, row * stride * height / rows
            size = width / columns, height / rows
            panel.add_patch(matplotlib("patches").Rectangle(corner, *size, fill=False, color="white"))
    return figure


def _bias_table(number: int, stage: Stage, block: int) -> np.ndarray:
    """The table of biases that a block adds to the scores, for a block that keeps the grid in stage `number`."""
    biases = [layer.attention.bias for layer in stage.blocks if layer.attention.stride == 1]
    as_integer("block", block, minimum=-len(biases))
    if block >= len(biases):
        raise ValueError(
            f"`block` is {block}; expected less than {len(biases)}, the number of blocks in stage {number} that keep "
            "the grid."
        )
    bias = biases[block]
    if not isinstance(bias, AttentionBias):
        raise ValueError("`model` is fused and has no table of biases; pass the model from before fusing.")
    return bias.scale * np.asarray(bias.table)


def _check_rank(name: str, array: Any, axes: tuple[str, ...]) -> None:
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(
            f"`{name}` is of type `{type(array).__name__}`; expected an array ({', '.join(axes)}). From nested tuples, "
            "take one, such as `model.attention_maps(image, state)[stage][block]`."
        )
    if array.ndim != len(axes) or 0 in array.shape:
        raise ValueError(f"`{name}` has shape {array.shape}; expected the axes {', '.join(axes)}, of one image.")
