"""Pictures of what attention does. Needs `pip install "levitax[plot]"`."""

from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float

from ._checks import as_integers
from ._extras import extra, require
from ._model import check_levit, LeViT


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_biases(model: LeViT, *, block: int = 0) -> "Figure":
    """The attention biases of one block of each stage, as the paper shows them: for each stage a row, for each head the
    bias by where a token lies as seen from the query, which is in the middle.

    **Arguments:**

    - `model`: a [`levitax.LeViT`][], not fused.
    - `block`: which of the blocks that do not shrink, from 0; negative ones count from the last.

    **Returns:** a Matplotlib figure, on a transparent ground.

    **Raises:** `TypeError` for what is no LeViT; `ValueError` for a fused one, which has no table any more;
    `ModuleNotFoundError` without Matplotlib.
    """
    check_levit(model)
    tables = []
    for stage in model.stages:
        layers = [layer.attention for layer in stage.blocks if layer.attention.stride == 1]
        bias = layers[block].bias
        if not hasattr(bias, "table"):
            raise ValueError("`model` is fused, and its biases are gathered: pass the model that was fused.")
        tables.append(np.asarray(bias.scale * bias.table))
    figure, panels = _panels(len(tables), max(map(len, tables)))
    for row, (table, stage_panels) in enumerate(zip(tables, panels, strict=True)):
        reach = np.abs(table).max() or 1.0
        for head, panel in enumerate(stage_panels):
            if head < len(table):
                # The table has absolute offsets: mirrored, it is seen from the middle.
                half = np.concatenate([table[head, :0:-1], table[head]])
                whole = np.concatenate([half[:, :0:-1], half], axis=1)
                panel.imshow(whole, cmap="RdBu_r", vmin=-reach, vmax=reach)
                panel.set_title(f"head {head + 1}" if row == 0 else "", fontsize=8)
    for row, stage_panels in enumerate(panels):
        stage_panels[0].set_ylabel(f"stage {row + 1}", fontsize=8)
    return figure


def attention(
    image: Float[np.ndarray | Array, "height width channels"],
    weights: Float[np.ndarray | Array, "heads queries tokens"],
    *,
    grid: tuple[int, int],
    query: int,
) -> "Figure":
    """What a token attends to, over the image: a panel for each head.

    **Arguments:**

    - `image`: as it is to be shown, with values in [0, 1] and one or three channels.
    - `weights`: of one block, from [`levitax.LeViT.attention_maps`][].
    - `grid`: rows and columns of the tokens: `model.config.grid(stage)`.
    - `query`: its number, in row-major order on the grid of the queries.

    **Returns:** a Matplotlib figure, on a transparent ground.

    **Raises:** `ValueError` if the grid has another number of tokens or there is no such query; `ModuleNotFoundError`
    without Matplotlib.
    """
    heads, queries, tokens = weights.shape
    rows, columns = as_integers("grid", grid, 2, "rows and columns")
    if rows * columns != tokens:
        raise ValueError(f"`grid` is {rows}x{columns}, and `weights` have {tokens} tokens; pass the grid of the keys.")
    if not 0 <= query < queries:
        raise ValueError(f"`query` is {query}; expected one from 0 to {queries - 1}.")
    height, width = image.shape[:2]
    figure, panels = _panels(1, heads)
    for head, panel in enumerate(panels[0]):
        panel.imshow(np.asarray(image).squeeze(), cmap="gray", extent=(0, width, height, 0))
        map_ = np.asarray(weights[head, query]).reshape(rows, columns)
        panel.imshow(map_, cmap="inferno", alpha=0.6, extent=(0, width, height, 0), interpolation="bilinear", vmin=0)
        panel.set_title(f"head {head + 1}", fontsize=8)
    return figure


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    # Not `pyplot`, which keeps figures and wants a screen.
    figures = require("matplotlib.figure", "`levitax.plot`", extra("plot"))
    figure = figures.Figure(figsize=(1.5 * columns, 1.6 * rows), layout="constrained", facecolor="none")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.set_facecolor("none")
        for spine in panel.spines.values():
            spine.set_visible(False)
    return figure, panels
