"""Trains a LeViT: by default a small one on 4,000 real handwritten digits, in two and a half minutes on two cores.

    python examples/train.py
    python examples/train.py --data imagenet --model levit_256 --teacher timm:regnety_160.deit_in1k --workers 16

`--data` is a folder with `train/` and `val/`, each with a folder of pictures for each class, or the id of a data set on
the Hugging Face hub. The same command, given again, goes on where it was stopped. The output folder has

    metrics.jsonl, tensorboard/   one line an epoch
    checkpoints/                  the last two and the best, from which training goes on
    model.safetensors             the weights in the end, for `levitax.load`
    best.safetensors              those of the epoch with the highest validation accuracy
    ema.safetensors               their moving average, if the recipe keeps one
    pictures.json                 how pictures are prepared, and the names of the classes
    curves.png, predictions.png

On several hosts run the same command on each, under `srun` or `mpirun`, or with `--coordinator`, `--processes` and
`--process`.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

import levitax
from beside import Pictures
from command_line import add_image_size_argument, mistakes_in_a_line, size_of
from levitax.data import (
    Batch,
    DataSet,
    eval_batches,
    EvalTransform,
    open_data,
    Shard,
    Split,
    steps_per_epoch,
    train_batches,
    TrainTransform,
)
from levitax.train import (
    Checkpoints,
    EvalBatch,
    evaluate_batches,
    Evaluation,
    freeze_norms,
    make_mesh,
    make_step,
    normalise,
    one_hot,
    Preemption,
    prepare,
    Recipe,
    RECIPES,
    replicate,
    shard_batch,
    start_distributed,
    TeacherTargets,
    torch_teacher,
    TrainState,
)
from report import Log, only_run_in, plot_curves, plot_predictions, progress_bar, Timed
from teacher_logits import check_logits, read_logits


# Beside the published ones. Expect 98 % of the test digits: 98.2 % on Python 3.12 with jax 0.12, 98.0 % on 3.11 with
# jax 0.10 (seed 0).
SIZES: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": 28,
        "patch_size": 4,
        "dim": (96, 128, 160),
        "depth": 1,
        "heads": (3, 4, 5),
        "key_dim": 16,
        "distillation": False,
    },
    "digits_large": {
        "image_size": 28,
        "patch_size": 4,
        "dim": (160, 224, 288),
        "depth": 2,
        "heads": (5, 7, 9),
        "key_dim": 16,
        "distillation": False,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=(*SIZES, *levitax.VARIANTS), help="levit_256, but for the digits")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 takes pictures as grey")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    is_digits = arguments.data == "digits"
    with mistakes_in_a_line(parser):
        start_distributed(arguments.coordinator, arguments.processes, arguments.process)
        recipe = make_recipe(arguments, arguments.preset or ("digits" if is_digits else "paper"))
        data = open_pictures(arguments, arguments.channels)
        recipe = fitted(recipe, arguments, data)
        sizes = {**SIZES, **levitax.VARIANTS}[arguments.model or ("digits" if is_digits else "levit_256")]
        sizes = {**sizes, **overrides(arguments, recipe, data), "in_channels": data.channels}
        model, state = eqx.nn.make_with_state(levitax.LeViT)(**sizes, key=jax.random.key(arguments.seed))
        run(data, model, state, recipe, arguments)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What training and fine-tuning have in common."""
    add_data_arguments(parser)
    add_image_size_argument(parser)
    parser.add_argument("--preset", choices=RECIPES, help="the recipe")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, help="over all devices; by default for eight steps an epoch or more")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="other fields of the recipe"
    )
    parser.add_argument("--teacher", help="weights for `levitax.load`, timm:MODEL, or logits of `evaluate.py --logits`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder, by default in `runs` and named after the data")
    parser.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="beside once an epoch")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of the first of several processes")
    parser.add_argument("--processes", type=int, metavar="NUMBER")
    parser.add_argument("--process", type=int, metavar="NUMBER", help="which of them this is, from 0")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What evaluation has as well."""
    parser.add_argument("--data", default="digits", help="'digits', a folder, or a data set on the hub")
    told = "by default as in the training of the weights, else ImageNet's"
    parser.add_argument("--mean", type=float, nargs="+", help=f"of each channel's pixels in [0, 1]; {told}")
    parser.add_argument("--std", type=float, nargs="+", help="likewise")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures; 0 reads in this one")


def open_pictures(arguments: argparse.Namespace, channels: int, told: Pictures | None = None) -> DataSet:
    """The data set that the command line asks for, to be normalised as it says, else as is told, else as the set is."""
    if arguments.data != "digits" and not Path(arguments.data).expanduser().exists() and jax.process_index() == 0:
        print(
            f"there is no folder {arguments.data} here; looking for a data set of that name on the hub", file=sys.stderr
        )
    data = open_data(arguments.data, channels=channels)
    normalised = told or data
    return data._replace(mean=arguments.mean or normalised.mean, std=arguments.std or normalised.std)


def make_recipe(arguments: argparse.Namespace, preset: str) -> Recipe:
    """The preset, with what the command line changes in it."""
    fields = RECIPES[preset].to_dict()
    for name in ("epochs", "batch_size"):
        if getattr(arguments, name) is not None:
            fields[name] = getattr(arguments, name)
    for assignment in arguments.set:
        name, _, value = assignment.partition("=")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return Recipe.from_dict(fields)


def fitted(recipe: Recipe, arguments: argparse.Namespace, data: DataSet) -> Recipe:
    """The recipe, with a smaller batch where a few pictures would make less than eight steps an epoch of it."""
    pictures = len(data.train.labels)
    if arguments.batch_size is not None or pictures >= 8 * recipe.batch_size:
        return recipe
    batch_size = 2 ** max(3, (pictures // 8).bit_length() - 1)
    if jax.process_index() == 0:
        print(
            f"{pictures} pictures: batches of {batch_size}, not {recipe.batch_size}, and the learning rate goes down "
            "with them; `--batch-size` and `--set learning_rate=...` set both"
        )
    return dataclasses.replace(recipe, batch_size=batch_size)


def overrides(arguments: argparse.Namespace, recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """What command line, recipe and data want of the model."""
    return {**recipe.model_overrides(), "num_classes": len(data.classes), **size_of(arguments)}


def make_teacher(source: str | None) -> Callable[[Any], Any] | np.ndarray | None:
    """A function of images to logits, or the logits of all training images."""
    if source is None:
        return None
    if source.endswith(".npy"):
        return read_logits(source)
    if source.startswith("timm:"):
        import timm  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]

        module = timm.create_model(source.removeprefix("timm:"), pretrained=True)
        return torch_teacher(module, device="cuda" if torch.cuda.is_available() else None)
    return eqx.filter_jit(eqx.filter_vmap(levitax.fuse(*levitax.load(source))))


def check_teacher(teacher: Callable[[Any], Any] | np.ndarray | None, recipe: Recipe, data: DataSet) -> None:
    """Raises where the teacher is not what recipe and data need."""
    if (teacher is None) != (recipe.distillation == "none"):
        raise ValueError(
            f"The recipe has `distillation` {recipe.distillation!r}, and there is {'no' if teacher is None else 'a'} "
            "teacher: pass `--teacher`, or `--set distillation=none`."
        )
    if isinstance(teacher, np.ndarray):
        check_logits(teacher, data.train, len(data.classes))


def run(
    data: DataSet, model: levitax.LeViT, state: eqx.nn.State, recipe: Recipe, arguments: argparse.Namespace
) -> None:
    """Trains a model, or goes on where the checkpoints in the output folder end."""
    teacher = make_teacher(arguments.teacher)
    check_teacher(teacher, recipe, data)
    out = arguments.out or Path("runs", Path(arguments.data).name)
    mesh, shard, is_first = make_mesh(), Shard(jax.process_index(), jax.process_count()), jax.process_index() == 0
    steps = steps_per_epoch(data.train, recipe.batch_size)
    step_key, prepare_key = jax.random.split(jax.random.fold_in(jax.random.key(arguments.seed), 1))
    optimizer = recipe.optimizer(steps)
    train_state = TrainState(
        freeze_norms(model) if recipe.freeze_norms else model,
        state,
        optimizer,
        parameters=recipe.parameters,
        ema=recipe.ema_decay is not None,
        key=step_key,
    )
    train_state = replicate(train_state, mesh)
    step = make_step(
        optimizer,
        recipe.loss(),
        parameters=recipe.parameters,
        accumulate=recipe.accumulate,
        group_size=recipe.group_size,
        ema_decay=recipe.ema_decay,
        mesh=mesh,
    )

    @jax.jit
    def on_device(images, labels, teacher_logits, key):
        targets: Any = one_hot(labels, len(data.classes))
        if teacher_logits is not None:
            targets = TeacherTargets(targets, teacher_logits)
        return prepare(images, targets, recipe, mean=data.mean, std=data.std, key=key)

    def ready(batch: Batch, number: int) -> tuple[Any, Any]:
        """Images as the model takes them, with what the loss wants to know of them."""
        stored = teacher[batch.indices].astype(np.float32) if isinstance(teacher, np.ndarray) else None
        rows = shard_batch((batch.images, batch.labels, stored), mesh)
        images, targets = on_device(*rows, jax.random.fold_in(prepare_key, number))
        return images, TeacherTargets(targets, teacher(images)) if callable(teacher) else targets

    validate = partial(validation, data, recipe.crop_ratio, arguments.workers)
    if is_first:
        pictures, devices = len(data.train.labels), jax.device_count()
        print(
            f"{levitax.count_parameters(model):,} parameters, {pictures:,} training images, {recipe.epochs} epochs of "
            f"{steps} steps, {devices} device(s)"
        )
    with (
        only_run_in(out) if is_first else contextlib.nullcontext(),
        Preemption() as preemption,
        Checkpoints(out / "checkpoints", description=describe(data, model, recipe, arguments)) as checkpoints,
    ):
        progress: dict[str, Any] = {"history": [], "losses": []}
        if restored := checkpoints.restore(train_state):
            train_state, progress = restored
        log = Log(out, progress["history"], writes=is_first)
        losses, number = progress["losses"], int(train_state.step)
        reading = train_batches(
            data.train,
            TrainTransform(
                image_size=model.config.image_size,
                crop_scale=recipe.crop_scale,
                flip_probability=recipe.flip_probability,
                rand_augment=recipe.rand_augment,
            ),
            batch_size=recipe.batch_size,
            steps=recipe.epochs * steps,
            seed=arguments.seed,
            repeats=recipe.repeats,
            start=number,
            shard=shard,
            workers=arguments.workers,
        )
        bar = progress_bar(recipe.epochs * steps * recipe.batch_size, done=number * recipe.batch_size, shown=is_first)
        with reading as batches, bar:
            batches, start = Timed(batches), time.perf_counter()
            for batch in batches:
                train_state, metrics = step(train_state, *ready(batch, number))
                number += 1
                losses.append(float(metrics.loss))
                bar.update(recipe.batch_size)
                # A gradient that is not finite spoils the weights one step before the loss tells.
                if not math.isfinite(losses[-1]) or not math.isfinite(float(metrics.grad_norm)):
                    sys.exit(
                        f"The loss of step {number} is {losses[-1]}, the norm of its gradient {metrics.grad_norm}. "
                        f"Training stops; the last good checkpoint is `{checkpoints.latest}`. A lower learning rate "
                        "may help, or `--set clipping=0.01`."
                    )
                score = None
                if number % steps == 0:
                    result = validate(levitax.Predictor(train_state.model, train_state.state))
                    seconds = time.perf_counter() - start
                    log.add(
                        epoch=number // steps,
                        learning_rate=float(np.asarray(recipe.schedule(steps)(number - 1))),
                        train_loss=float(np.mean(losses)),
                        test_loss=result.loss,
                        test_accuracy=result.accuracy,
                        test_top5=result.top5,
                        seconds=round(seconds, 2),
                        waiting=round(batches.seconds / seconds, 4),
                    )
                    start, batches.seconds, losses, score = time.perf_counter(), 0.0, [], result.accuracy
                stops = preemption.reached(number)
                is_due = arguments.checkpoint_every is not None and number % arguments.checkpoint_every == 0
                if stops or is_due or score is not None:
                    checkpoints.save(train_state, {"history": log.history, "losses": losses}, score=score)
                if stops:
                    # `latest` waits for it to be written.
                    if is_first:
                        print(f"stopped after step {number}; the same command goes on from `{checkpoints.latest}`")
                    sys.exit(128 + signal.SIGTERM)
        if is_first:
            Pictures(data.mean, data.std, recipe.crop_ratio, data.classes).write(out)
        finish(data, recipe, train_state, checkpoints, validate, out)
    if is_first:
        plot_curves(out / "curves.png", log.history)


def describe(data: DataSet, model: levitax.LeViT, recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """What makes a checkpoint one of this run."""
    return {
        "model": model.config.to_dict(),
        "recipe": recipe.to_dict(),
        "seed": arguments.seed,
        "weights": getattr(arguments, "weights", None),
        "teacher": arguments.teacher,
        "data": {
            "pictures": len(data.train.labels),
            "classes": data.classes,
            "labels_crc32": zlib.crc32(data.train.labels.tobytes()),
            "mean": data.mean,
            "std": data.std,
        },
    }


def finish(
    data: DataSet,
    recipe: Recipe,
    train_state: TrainState,
    checkpoints: Checkpoints,
    validate: Callable[[levitax.Predictor], Evaluation],
    out: Path,
) -> None:
    """Writes the weights, and tells how good they are, fused too."""
    trained = {"model": (train_state.model, train_state.state)}
    if checkpoints.best and (best := checkpoints.restore(train_state, step=checkpoints.best.step)):
        trained["best"] = (best.train_state.model, best.train_state.state)
    if recipe.ema_decay is not None:
        trained["ema"] = train_state.averaged()
    for name, (model, state) in trained.items():
        predictors = levitax.Predictor(model, state), levitax.fuse(model, state)
        as_trained, fused = (validate(predict).accuracy for predict in predictors)
        if jax.process_index() == 0:
            path = out / f"{name}.safetensors"
            levitax.save(path, model, state)
            print(f"test accuracy of {path}: {as_trained:.2%}, fused {fused:.2%}")
    if jax.process_index() == 0:
        model, state = jax.device_get(trained["model"])
        every = max(1, len(data.validation.labels) // 1000)
        sample = Subset(data.validation, range(0, len(data.validation.labels), every))
        classified = classify(sample, data, recipe.crop_ratio, levitax.fuse(model, state))
        plot_predictions(out / "predictions.png", classified, data.classes)


def validation(data: DataSet, crop_ratio: float, workers: int, predict: levitax.Predictor) -> Evaluation:
    """Evaluates a model on the pictures for validation, over all devices of all processes."""
    mesh, shard = make_mesh(), Shard(jax.process_index(), jax.process_count())
    transform = EvalTransform(image_size=predict.model.config.image_size, crop_ratio=crop_ratio)
    batch_size = mesh.size * min(128, -(-len(data.validation.labels) // mesh.size))
    batches = eval_batches(data.validation, transform, batch_size=batch_size, shard=shard, workers=workers)
    with batches as batches:
        spread_out = (shard_batch((batch.images, batch.labels, batch.weights), mesh) for batch in batches)
        ready = (
            EvalBatch(normalise(images, data.mean, data.std), labels, weights) for images, labels, weights in spread_out
        )
        return evaluate_batches(predict, ready)


def classify(
    split: Split, data: DataSet, crop_ratio: float, predict: levitax.Predictor, workers: int = 0
) -> Iterator[tuple[Batch, np.ndarray]]:
    """The pictures of a split in batches, with what a model says of them, on one device."""
    transform = EvalTransform(image_size=predict.model.config.image_size, crop_ratio=crop_ratio)
    run = eqx.filter_jit(lambda predict, images: jax.vmap(predict)(normalise(images, data.mean, data.std)))
    with eval_batches(split, transform, batch_size=128, workers=workers) as batches:
        for batch in batches:
            yield batch, np.asarray(run(predict, batch.images))


class Subset(NamedTuple):
    """Some pictures of a split."""

    split: Split
    chosen: Sequence[int]

    @property
    def labels(self) -> np.ndarray:
        return self.split.labels[np.asarray(self.chosen)]

    def read(self, index: int) -> np.ndarray:
        return self.split.read(self.chosen[index])

    def name(self, index: int) -> str:
        return self.split.name(self.chosen[index])


if __name__ == "__main__":
    main()
