"""Opens the data of a command, for its weights."""

import dataclasses
import sys
from pathlib import Path

import jax

from .._progress import say
from ..data import DataSet, open_data, Preprocessing
from ..train._suggest import sample
from ._options import DataOptions
from ._split import to_evaluate


def open_images(data: str, channels: int, reading: DataOptions) -> DataSet:
    """Opens a data set; says so if that means to look for it on the hub."""
    if data != "digits" and not Path(data).expanduser().exists() and jax.process_index() == 0:
        print(f"there is no folder {data} here; looking for a data set of that name on the hub", file=sys.stderr)
    return open_data(data, channels=channels, validation_share=reading.validation_share, seed=reading.split_seed)


def open_for_weights(data: str, channels: int, reading: DataOptions) -> DataSet:
    """Opens a data set as weights take its images; says so if that changes their colours."""
    found = open_images(data, channels, reading)
    if data == "digits":
        return found
    in_colour = found if channels == 3 else open_images(data, 3, reading)
    are_grey = sample(in_colour.train).are_grey
    if channels == 1 and not are_grey:
        say("the images have colours, and the weights take grey images: converting the images to grey")
    if channels == 3 and are_grey:
        say("the images are grey, and the weights take colours: giving the images three equal channels")
    return found


def prepared_for(data: DataSet, preprocessing: Preprocessing) -> DataSet:
    """The data set, with the class order and the preprocessing of the weights.

    **Raises:** `ValueError` if data and weights have different classes.
    """
    if preprocessing.class_names:
        data = data.in_order_of(preprocessing.class_names)
    return data._replace(preprocessing=dataclasses.replace(preprocessing, class_names=data.classes))


def open_to_evaluate(
    data: str,
    weights: str,
    reading: DataOptions,
    preprocessing: Preprocessing,
    num_classes: int,
    *,
    same_order: bool,
    quiet: bool = False,
) -> DataSet:
    """Opens a data set with the images to evaluate weights on, and with their class order and preprocessing. Says which
    images these are, unless `quiet`.

    **Raises:** `ValueError` if data and weights have different classes.
    """
    found, which = to_evaluate(open_images(data, preprocessing.channels, reading), data, weights)
    lines = [which] if which else []
    if num_classes != len(found.classes):
        raise ValueError(f"The weights are for {num_classes} classes, the data for {len(found.classes)}.")
    if same_order:
        preprocessing = dataclasses.replace(preprocessing, class_names=())
    elif not preprocessing.class_names:
        lines.append("the weights do not name their classes; assuming the classes of the data, in the same order")
    for line in lines:
        if not quiet:
            say(line)
    try:
        return prepared_for(found, preprocessing)
    except ValueError as error:
        raise ValueError(f"{error} If they mean the same in the same order, pass --same-order.") from None
