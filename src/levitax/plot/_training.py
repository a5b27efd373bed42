from collections.abc import Iterable, Sequence
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from ..data import Batch
from ._figures import GREY, make_figure, make_grey, make_panels


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(history: Sequence[dict[str, float]]) -> "Figure":
    """Draws the losses and the validation error by epoch. Needs `pip install "levitax[plot]"`.

    **Arguments:**

    - `history`: the metrics of each epoch, from [`levitax.train.Fitted`][] or the lines of `metrics.jsonl`.

    **Returns:** a Matplotlib figure with a transparent background, readable on light and dark pages.

    **Raises:** `ValueError` for an empty history; `ModuleNotFoundError` without Matplotlib.
    """
    if not history:
        raise ValueError("`history` is empty; expected the metrics of at least one epoch.")
    of = lambda name: np.array([line[name] for line in history])
    figure = make_figure(9, 3.2)
    losses, errors = figure.subplots(1, 2)
    losses.plot(of("epoch"), of("train_loss"), label="training, augmented and smoothed")
    losses.plot(of("epoch"), of("validation_loss"), label="validation")
    losses.set(xlabel="epoch", ylabel="cross-entropy", ylim=0)
    losses.legend(frameon=False, labelcolor=GREY)
    errors.plot(of("epoch"), 100 * (1 - of("validation_accuracy")), color="C1")
    # Logarithmic, but linear below 1 %, so that it shows an error of 0.
    errors.set_yscale("symlog", linthresh=1, linscale=0.2)
    ticks = [0, 1, 2, 5, 10, 20, 50, 100]
    errors.set_yticks(ticks, labels=map(str, ticks))
    errors.minorticks_off()
    errors.set(xlabel="epoch", ylabel="validation error, %")
    make_grey(losses, errors)
    return figure


def predictions(
    classified: Iterable[tuple[Batch, Float[np.ndarray, "batch classes"]]], *, class_names: Sequence[str]
) -> "Figure":
    """Draws forty images with their most likely class, the errors first. Needs `pip install "levitax[plot]"`.

    ```python
    classified = levitax.train.predict_split(predict, data.validation, data.preprocessing)
    figure = plot.predictions(classified, class_names=data.classes)
    ```

    **Arguments:**

    - `classified`: pairs of a [`levitax.data.Batch`][] and the logits `(batch, classes)` of its images. Images with a
        weight of 0 do not count.
    - `class_names`: the names of the classes.

    **Returns:** a Matplotlib figure with a transparent background, readable on light and dark pages.

    **Raises:** `ValueError` without images; `ModuleNotFoundError` without Matplotlib.
    """
    rows = [
        (image, int(label), int(guess))
        for batch, logits in classified
        for image, label, guess, weight in zip(
            batch.images, batch.labels, logits.argmax(-1), batch.weights, strict=True
        )
        if weight > 0
    ]
    if not rows:
        raise ValueError("`classified` has no images; expected at least one with a weight above 0.")
    wrong = [row for row in rows if row[1] != row[2]]
    right = [row for row in rows if row[1] == row[2]]
    shown = [*wrong, *right[:: max(1, len(right) // 24)]]
    figure, panels = make_panels(4, 10, 0.9, 1.05)
    for panel, (image, label, guess) in zip(panels.flat, shown, strict=False):
        panel.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        title = class_names[guess] if guess == label else f"{class_names[guess]}, not {class_names[label]}"
        panel.set_title(title, color="C2" if guess == label else "C3", fontsize=9, parse_math=False)
    title = f"{len(right) / len(rows):.1%} of {len(rows):,} images are right; the errors first"
    figure.suptitle(title, fontsize=10, color=GREY)
    return figure


def confusion(counts: Int[np.ndarray, "classes classes"], *, class_names: Sequence[str]) -> "Figure":
    """Draws a confusion matrix: for each class, the share of its images that was classified as each class. Numbers and
    names appear if there is room. Needs `pip install "levitax[plot]"`.

    **Arguments:**

    - `counts`: `(classes, classes)`, from [`levitax.train.Evaluation`][].
    - `class_names`: the names of the classes.

    **Returns:** a Matplotlib figure with a transparent background, readable on light and dark pages.

    **Raises:** `ValueError` if there is not one name for each class; `ModuleNotFoundError` without Matplotlib.
    """
    if counts.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"`counts` has shape {counts.shape}, and there are {len(class_names)} `class_names`; expected a row and a "
            "column for each class."
        )
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(2.5 + 0.3 * len(class_names), 12)
    figure = make_figure(size + 0.8, size)
    axis: Any = figure.subplots()
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    if len(class_names) <= 40:
        rotation = 90 if max(map(len, class_names)) > 2 else 0
        axis.set_xticks(range(len(class_names)), labels=class_names, rotation=rotation)
        axis.set_yticks(range(len(class_names)), labels=class_names)
    if len(class_names) <= 12:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "black" if shares[row, column] > 0.5 else "white"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    axis.set(xlabel="classified as", ylabel="class", title=f"top-1 {np.trace(counts) / max(counts.sum(), 1):.1%}")
    bar = figure.colorbar(image, shrink=0.8, label="share of the class")
    make_grey(axis, bar.ax)
    return figure
