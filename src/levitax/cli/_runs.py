"""The shared parts of training and fine-tuning."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .. import plot
from .._files import as_path
from .._fuse import fuse
from .._model import LeViT
from ..data import DataSet, open_data, Preprocessing, Subset
from ..train import fit, load_teacher, predict_split, Recipe, RECIPES
from ._arguments import add_image_size_argument, add_preprocessing_arguments, seed, size_of


# The end of the description of both commands.
FOLDER = """`--data` is a folder with `train/` and `val/`, each with a folder of images for each class, or the id of a
data set on the Hugging Face hub. To resume a run that was stopped, give the same command again. The run folder contains

    metrics.jsonl, tensorboard/   the metrics of each epoch
    checkpoints/                  the last two and the best, from which training resumes
    model.safetensors             the weights of the last epoch, with the preprocessing
    best.safetensors              the weights of the epoch with the highest validation accuracy
    ema.safetensors               the moving average of the weights, if the recipe keeps one
    curves.png, predictions.png   figures

On several hosts run the same command on each, under `srun` or `mpirun`, or with `--coordinator`, `--processes` and
`--process`.
"""


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `open_images` and the loader read."""
    parser.add_argument("--data", default="digits", help="'digits', a folder, or a data set on the hub")
    add_preprocessing_arguments(parser, "from the weights, or from the data if trained from scratch")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images; 0 reads in this process")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `run` and the recipe read."""
    add_data_arguments(parser)
    add_image_size_argument(parser)
    parser.add_argument("--preset", choices=RECIPES, help="the recipe")
    parser.add_argument("--epochs", type=int, help="number of epochs")
    parser.add_argument(
        "--batch-size",
        type=int,
        help="images per step over all devices; by default few enough for eight steps per epoch",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="other fields of the recipe"
    )
    parser.add_argument("--teacher", help="weights for `levitax.load`, timm:MODEL, or logits from `evaluate --logits`")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the run, by default 0")
    parser.add_argument("--out", type=Path, help="the run folder; by default in `runs`, named after the data")
    parser.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="in addition to once an epoch")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="the address of the first of several processes")
    parser.add_argument("--processes", type=int, metavar="NUMBER", help="the number of processes")
    parser.add_argument("--process", type=int, metavar="NUMBER", help="the number of this process, from 0")


def open_images(arguments: argparse.Namespace, channels: int) -> DataSet:
    """The data set that the options give."""
    if arguments.data != "digits" and not Path(arguments.data).expanduser().exists() and jax.process_index() == 0:
        print(
            f"there is no folder {arguments.data} here; looking for a data set of that name on the hub", file=sys.stderr
        )
    return open_data(arguments.data, channels=channels)


def prepared_for(data: DataSet, preprocessing: Preprocessing) -> DataSet:
    """The data set, with the class order and the preprocessing of the weights.

    **Raises:** `ValueError` if data and weights have different classes.
    """
    if preprocessing.class_names:
        data = data.in_order_of(preprocessing.class_names)
    return data._replace(preprocessing=dataclasses.replace(preprocessing, class_names=data.classes))


def model_keywords(arguments: argparse.Namespace, recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """The keywords of the model that options, recipe and data give."""
    return {**recipe.model_overrides(), "num_classes": len(data.classes), **size_of(arguments)}


def run(
    data: DataSet,
    model: LeViT,
    state: eqx.nn.State,
    recipe: Recipe,
    out: Path,
    arguments: argparse.Namespace,
    *,
    weights: str | None = None,
) -> None:
    """Trains a model, or resumes the run in the folder `out`, and draws how it went."""
    # `fit` expands `~`, and the figures belong to the same folder.
    out = as_path("out", out)
    fitted = fit(
        model,
        state,
        data,
        recipe,
        out=out,
        teacher=None if arguments.teacher is None else load_teacher(arguments.teacher, data.preprocessing),
        seed=arguments.seed,
        workers=arguments.workers,
        checkpoint_every=arguments.checkpoint_every,
        origin={"weights": weights, "teacher": arguments.teacher},
        on_epoch=tensorboard(out),
    )
    if jax.process_index() > 0:
        return
    plot.training_curves(fitted.history).savefig(out / "curves.png", dpi=120)
    every = max(1, len(data.validation.labels) // 1000)
    some = Subset(data.validation, np.arange(0, len(data.validation.labels), every))
    preprocessing = dataclasses.replace(data.preprocessing, image_size=model.config.image_size)
    classified = predict_split(fuse(fitted.model, fitted.state), some, preprocessing)
    plot.predictions(classified, class_names=data.classes).savefig(out / "predictions.png", dpi=120)


def tensorboard(folder: Path) -> Callable[[dict[str, float]], None]:
    """Returns a function that logs the metrics of an epoch for TensorBoard, in the first process."""
    if jax.process_index() > 0:
        return lambda metrics: None
    from tensorboardX import SummaryWriter

    writers = []

    def log(metrics: dict[str, float]) -> None:
        epoch = int(metrics["epoch"])
        if not writers:
            # The epochs after the checkpoint that the run resumes from will come again.
            writers.append(SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=epoch))
        for name, value in metrics.items():
            writers[0].add_scalar(name, value, epoch)
        writers[0].flush()

    return log
