"""The shared parts of training and fine-tuning."""

import dataclasses
import os
import shlex
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
from .._progress import say
from ..data import DataSet, Preprocessing, Subset
from ..train import fit, load_teacher, predict_split, Recipe, start_distributed
from ..weights._locate import locate
from ._errors import UsageError
from ._options import DataOptions, RunOptions, sizes_of
from ._split import write_split


def start_hosts(options: RunOptions) -> None:
    """Connects the processes of the run, if there are several and they are not connected yet."""
    if jax.distributed.is_initialized():
        return
    start_distributed(options.coordinator, options.processes, options.process)


def can_be_fetched(weights: str) -> bool:
    """Fetches published weights, or says why that is not possible."""
    try:
        locate(weights, revision=None)
    except (OSError, ModuleNotFoundError) as error:
        say(f"{weights} cannot be fetched: {type(error).__name__}; training from scratch")
        return False
    return True


def needs_new_head(data: DataSet, num_classes: int, preprocessing: Preprocessing) -> bool:
    """Whether the classes of the weights and of the data differ."""
    if num_classes != len(data.classes):
        say(f"the weights are for {num_classes} classes, the data for {len(data.classes)}: making a new classifier")
        return True
    names = preprocessing.class_names
    if not names:
        say(
            f"the weights do not name their {num_classes} classes; assuming the classes of the data, in the same "
            "order. --new-head makes a new classifier"
        )
    elif set(names) != set(data.classes):
        say("data and weights have different classes: making a new classifier")
        return True
    return False


def name_of_run(data: str) -> str:
    """A name for the run folder, after the data."""
    path = Path(data).expanduser()
    return path.resolve().name if path.exists() else path.name


def model_keywords(recipe: Recipe, data: DataSet, options: RunOptions) -> dict[str, Any]:
    """The keywords of the model that recipe, data and options give."""
    return {**recipe.model_overrides(), "num_classes": len(data.classes), **sizes_of(options.image_size)}


def run(
    model: LeViT,
    state: eqx.nn.State,
    data: DataSet,
    recipe: Recipe,
    out: Path,
    options: RunOptions,
    *,
    where: str,
    reading: DataOptions,
    weights: str | None = None,
) -> None:
    """Trains a model, or resumes the run in the folder `out`, and draws how it went."""
    # `fit` expands `~`, and the figures belong to the same folder.
    out = as_path("out", out)
    if Path(where).is_dir() and out.resolve().is_relative_to(Path(where).resolve()):
        raise UsageError(f"The run folder `{out}` is inside the data, `{where}`: pass another --out.")
    log, is_written = tensorboard(out), False

    def on_epoch(metrics: dict[str, float]) -> None:
        log(metrics)
        # Not before the first epoch: only `fit` knows whether the folder is this run's.
        nonlocal is_written
        if not is_written:
            write_split(out, where, data, reading)
            is_written = True

    fitted = fit(
        model,
        state,
        data,
        recipe,
        out=out,
        teacher=None if options.teacher is None else load_teacher(options.teacher, data.preprocessing),
        seed=options.seed,
        workers=reading.workers,
        checkpoint_every=options.checkpoint_every,
        origin={"weights": weights, "teacher": options.teacher},
        on_epoch=on_epoch,
    )
    if jax.process_index() > 0:
        return
    plot.training_curves(fitted.history).savefig(out / "curves.png", dpi=120)
    every = max(1, len(data.validation.labels) // 1000)
    some = Subset(data.validation, np.arange(0, len(data.validation.labels), every))
    preprocessing = dataclasses.replace(data.preprocessing, image_size=model.config.image_size)
    classified = predict_split(fuse(fitted.model, fitted.state), some, preprocessing)
    plot.predictions(classified, class_names=data.classes).savefig(out / "predictions.png", dpi=120)
    run_folder, images, file = (shlex.quote(str(path)) for path in (out, where, f"{out.name}.onnx"))
    say(
        f"next: levitax evaluate {run_folder} {images}, levitax predict IMAGES --weights {run_folder}, levitax export "
        f"{run_folder} --out {file}"
    )


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
