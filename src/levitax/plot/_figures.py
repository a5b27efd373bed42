from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .._extras import extra, require


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Text in this colour has a contrast of 4 to 1 on white and of 5 to 1 on black.
GREY = "#808080"


def matplotlib(module: str) -> ModuleType:
    """Imports a module of Matplotlib."""
    return require(f"matplotlib.{module}", "`levitax.plot`", extra("plot"))


def make_figure(width: float, height: float) -> "Figure":
    """Makes a figure with a transparent background."""
    matplotlib("figure")  # Says what to install if Matplotlib is missing.
    from ._notebook import Figure

    # Not with `pyplot`, which keeps figures in memory and may need a display.
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def make_panels(rows: int, columns: int, width: float, height: float) -> tuple["Figure", np.ndarray]:
    """Makes a figure of panels for images, `width` by `height` inches each, without axes."""
    figure = make_figure(width * columns, height * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    return figure, panels


def make_grey(*axes: "Axes") -> None:
    """Draws axes in a colour that is readable on light and dark pages."""
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(colors=GREY)
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            text.set_color(GREY)
        for spine in axis.spines.values():
            spine.set_color(GREY)
