"""Figures of training: curves, predictions and confusion."""

import numpy as np
import pytest

from levitax import plot
from levitax.data import Batch


pytest.importorskip("matplotlib", reason="needs the extra `plot`")
pytestmark = pytest.mark.usefixtures("unchecked")


def test_curves_have_the_numbers_of_the_epochs():
    history = [
        {"epoch": epoch, "train_loss": 2 / epoch, "validation_loss": 1 / epoch, "validation_accuracy": 1 - 0.5 / epoch}
        for epoch in (1, 2, 4)
    ]
    losses, errors = plot.training_curves(history).axes
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in losses.get_lines()}
    np.testing.assert_allclose(lines["validation"], [1, 0.5, 0.25])
    np.testing.assert_allclose(np.asarray(errors.get_lines()[0].get_ydata()), [50, 25, 12.5])
    # An error of 0 is drawn too, without a warning of the logarithmic axis.
    _, errors = (figure := plot.training_curves([line | {"validation_accuracy": 1.0} for line in history])).axes
    figure.canvas.draw()
    assert errors.get_ylim()[0] <= 0 and "0" in [label.get_text() for label in errors.get_yticklabels()]
    with pytest.raises(ValueError, match="`history` is empty"):
        plot.training_curves([])


def test_predictions_show_errors_first_and_no_image_of_weight_0():
    labels, guesses = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 1])
    batch = Batch(np.zeros((4, 6, 6, 1), np.uint8), labels, np.arange(4), np.array([1, 1, 1, 0], np.float32))
    figure = plot.predictions([(batch, np.eye(2, dtype=np.float32)[guesses])], class_names=("a", "b"))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["a, not b", "a", "b"]
    assert "66.7% of 3 images" in figure.get_suptitle()
    with pytest.raises(ValueError, match="no images"):
        plot.predictions([], class_names=("a", "b"))


@pytest.mark.parametrize("classes", (3, 50))
def test_confusion_shows_shares_of_each_class(classes):
    counts = np.zeros((classes, classes), int)
    counts[0, :2] = 3, 1
    figure = plot.confusion(counts, class_names=[str(number) for number in range(classes)])
    shares = np.asarray(figure.axes[0].get_images()[0].get_array())
    np.testing.assert_allclose(shares[0, :2], [0.75, 0.25])
    assert shares[1:].sum() == 0 and figure.axes[0].get_title() == "top-1 75.0%"
    assert [text.get_text() for text in figure.axes[0].texts] == (["3", "1"] if classes == 3 else [])
    with pytest.raises(ValueError, match="a row and a column for each class"):
        plot.confusion(counts, class_names=["one"])
