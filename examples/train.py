"""Trains a LeViT: by default a small one on 4,000 real handwritten digits, in two and a half minutes on two cores.

    python examples/train.py
    python examples/train.py --data imagenet --model levit_256 --teacher timm:regnety_160.deit_in1k --workers 16

`--data` is a folder with `train/` and `val/`, each with a folder of pictures for each class, or the id of a data set on
the Hugging Face hub. The same command, given again, goes on where it was stopped. The output folder has

    metrics.jsonl, tensorboard/   one line an epoch
    checkpoints/                  the last two and the best, from which training goes on
    model.safetensors             the weights of the last epoch, and the preprocessing of their images
    best.safetensors              those of the epoch with the highest validation accuracy
    ema.safetensors               their moving average, if the recipe keeps one
    curves.png, predictions.png

On several hosts run the same command on each, under `srun` or `mpirun`, or with `--coordinator`, `--processes` and
`--process`.
"""

import argparse
import ast
import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

import levitax
from command_line import (
    add_image_size_argument,
    add_preprocessing_arguments,
    mistakes_in_a_line,
    needs_examples,
    seed,
    size_of,
    with_options,
)
from levitax.data import (
    Batch,
    DataSet,
    eval_batches,
    ImageFiles,
    match_classes,
    open_data,
    Preprocessing,
    Shard,
    Split,
    steps_per_epoch,
    train_batches,
    TrainTransform,
)
from report import Log, only_run_in, plot_curves, plot_predictions, progress_bar, Timed
from teacher_logits import check_logits, read_logits


with needs_examples():
    from levitax.train import (
        Checkpoints,
        EvalBatch,
        evaluate_batches,
        Evaluation,
        freeze_norms,
        make_mesh,
        make_step,
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
        if recipe.freeze_norms:
            raise ValueError(
                "The recipe has `freeze_norms` True, for models that are trained already: use `finetune.py`, or "
                "`--set freeze_norms=false trained=all`."
            )
        data = open_images(arguments, arguments.channels)
        data = data._replace(preprocessing=with_options(data.preprocessing, arguments))
        recipe = fitted(recipe, arguments, data)
        sizes = {**SIZES, **levitax.VARIANTS}[arguments.model or ("digits" if is_digits else "levit_256")]
        sizes = {**sizes, **overrides(arguments, recipe, data), "in_channels": data.preprocessing.channels}
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
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--out", type=Path, help="a folder, by default in `runs` and named after the data")
    parser.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="beside once an epoch")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of the first of several processes")
    parser.add_argument("--processes", type=int, metavar="NUMBER")
    parser.add_argument("--process", type=int, metavar="NUMBER", help="which of them this is, from 0")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What evaluation has as well."""
    parser.add_argument("--data", default="digits", help="'digits', a folder, or a data set on the hub")
    add_preprocessing_arguments(parser, "that of the weights, or of the data if trained from scratch")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images; 0 reads in this one")


def open_images(arguments: argparse.Namespace, channels: int) -> DataSet:
    """The data set that the command line asks for."""
    if arguments.data != "digits" and not Path(arguments.data).expanduser().exists() and jax.process_index() == 0:
        print(
            f"there is no folder {arguments.data} here; looking for a data set of that name on the hub", file=sys.stderr
        )
    return open_data(arguments.data, channels=channels)


def prepared_for(data: DataSet, preprocessing: Preprocessing) -> DataSet:
    """The data set, with labels and preprocessing of the weights that it is for.

    **Raises:** `ValueError` for other classes than those of the weights.
    """
    if preprocessing.class_names:
        data = data.in_order_of(preprocessing.class_names)
    return data._replace(preprocessing=dataclasses.replace(preprocessing, class_names=data.classes))


def make_recipe(arguments: argparse.Namespace, preset: str) -> Recipe:
    """The preset, with what the command line changes in it."""
    given = given_fields(arguments)
    try:
        return Recipe.from_dict(RECIPES[preset].to_dict() | given)
    except (TypeError, ValueError) as error:
        way_out = "On the command line, `--set` sets a field, as in `--set warmup_epochs=0`."
        raise type(error)(f"{error} {way_out}") from None


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the recipe that the command line sets, each once."""
    given = [(name, getattr(arguments, name)) for name in ("epochs", "batch_size")]
    given = [(name, value) for name, value in given if value is not None]
    for assignment in arguments.set:
        name, _, value = assignment.partition("=")
        if not value:
            raise ValueError(f"`--set {assignment}` has no value; expected `--set FIELD=VALUE`.")
        given.append((name, parsed(value)))
    fields: dict[str, Any] = {}
    for name, value in given:
        if name in fields:
            raise ValueError(f"`{name}` is set twice, to {fields[name]!r} and to {value!r}; set it once.")
        fields[name] = value
    return fields


def parsed(text: str) -> Any:
    """A value in JSON or Python, or else the text."""
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return parse(text)
    return text


def fitted(recipe: Recipe, arguments: argparse.Namespace, data: DataSet) -> Recipe:
    """The recipe, with a smaller batch if an epoch of few images would have fewer than eight steps, and the command
    line sets none."""
    given, pictures = given_fields(arguments), len(data.train.labels)
    if "batch_size" in given:
        return recipe
    # Only batches of whole parts and groups, if the command line sets these.
    unit = recipe.accumulate * (given.get("group_size") or 1)
    batch_size = unit * 2 ** max(math.ceil(math.log2(8 / unit)), (pictures // (8 * unit)).bit_length() - 1, 0)
    if batch_size >= recipe.batch_size:
        return recipe
    group_size = recipe.group_size
    if group_size is not None and batch_size // recipe.accumulate % group_size:
        group_size = None
    if jax.process_index() == 0:
        print(
            f"{pictures} pictures: batches of {batch_size}, not {recipe.batch_size}, and the learning rate goes down "
            "with them; `--batch-size` and `--set learning_rate=...` set both"
        )
        if group_size != recipe.group_size:
            print(f"a batch is one group, not groups of {recipe.group_size}; `--set group_size=...` sets it")
    changes: dict[str, Any] = {"batch_size": batch_size, "group_size": group_size}
    # Below it, the cosine would go up.
    if "min_learning_rate" not in given and recipe.learning_rate * batch_size / 512 < recipe.min_learning_rate:
        changes["min_learning_rate"] = recipe.min_learning_rate * batch_size / recipe.batch_size
        if jax.process_index() == 0:
            print(f"so does the learning rate at the end, to {changes['min_learning_rate']:.2g}")
    return dataclasses.replace(recipe, **changes)


def overrides(arguments: argparse.Namespace, recipe: Recipe, data: DataSet) -> dict[str, Any]:
    """What command line, recipe and data want of the model."""
    return {**recipe.model_overrides(), "num_classes": len(data.classes), **size_of(arguments)}


def make_teacher(source: str | None, student: Preprocessing) -> Callable[[Any], Any] | np.ndarray | None:
    """A function of images, normalised for the student, to logits in the order of its classes; or the logits of all
    training images."""
    if source is None:
        return None
    if source.endswith(".npy"):
        return read_logits(source)
    if source.startswith("timm:"):
        import timm  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]

        module = timm.create_model(source.removeprefix("timm:"), pretrained=True)
        teach = torch_teacher(module, device="cuda" if torch.cuda.is_available() else None)
        expected = Preprocessing(mean=module.pretrained_cfg["mean"], std=module.pretrained_cfg["std"])
        return lambda images: teach(renormalised(images, student, expected))
    predict, preprocessing = levitax.fuse(*levitax.load(source)), levitax.load_preprocessing(source)
    names = preprocessing.class_names
    if not names:
        warnings.warn(
            "The teacher's weights name no classes, so they are taken in the order of the data's. Save them with "
            "`preprocessing=` to have them matched by name.",
            stacklevel=2,
        )
    columns = match_classes(student.class_names, names) if names else slice(None)
    teach = eqx.filter_jit(lambda images: jax.vmap(predict)(renormalised(images, student, preprocessing))[:, columns])
    return teach


def renormalised(images: Any, old: Preprocessing, new: Preprocessing) -> Any:
    """Images that were normalised by one preprocessing as another normalises them."""
    if (old.mean, old.std) == (new.mean, new.std):
        return images
    of = lambda values: np.asarray(values, np.float32)[None, None, None]
    return (images * of(old.std) + (of(old.mean) - of(new.mean))) / of(new.std)


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
    if arguments.checkpoint_every is not None and arguments.checkpoint_every < 1:
        raise ValueError(f"`--checkpoint-every` is {arguments.checkpoint_every}; expected at least 1 step.")
    preprocessing = dataclasses.replace(data.preprocessing, image_size=model.config.image_size)
    data = data._replace(preprocessing=preprocessing)
    teacher = make_teacher(arguments.teacher, preprocessing)
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
        ema_decay=recipe.ema_decay,
        key=step_key,
    )
    train_state = replicate(train_state, mesh)
    step = make_step(recipe.loss(), accumulate=recipe.accumulate, group_size=recipe.group_size, mesh=mesh)

    @jax.jit
    def on_device(images, labels, teacher_logits, key):
        targets: Any = one_hot(labels, len(data.classes))
        if teacher_logits is not None:
            targets = TeacherTargets(targets, teacher_logits)
        return prepare(images, targets, recipe, preprocessing=preprocessing, key=key)

    def ready(batch: Batch, number: int) -> tuple[Any, Any]:
        """Images as the model takes them, with what the loss wants to know of them."""
        stored = teacher[batch.indices].astype(np.float32) if isinstance(teacher, np.ndarray) else None
        rows = shard_batch((batch.images, batch.labels, stored), mesh)
        images, targets = on_device(*rows, jax.random.fold_in(prepare_key, number))
        return images, TeacherTargets(targets, teacher(images)) if callable(teacher) else targets

    validate = partial(validation, data, arguments.workers)
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
            # The names in a table are as slow to read as its images.
            "names_crc32": zlib.crc32(b"\0".join(data.train.paths)) if isinstance(data.train, ImageFiles) else None,
        },
        "preprocessing": data.preprocessing.to_dict(),
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
            levitax.save(path, model, state, preprocessing=data.preprocessing)
            print(f"test accuracy of {path}: {as_trained:.2%}, fused {fused:.2%}")
    if jax.process_index() == 0:
        model, state = jax.device_get(trained["model"])
        every = max(1, len(data.validation.labels) // 1000)
        sample = Subset(data.validation, range(0, len(data.validation.labels), every))
        classified = classify(sample, data.preprocessing, levitax.fuse(model, state))
        plot_predictions(out / "predictions.png", classified, data.classes)


def validation(data: DataSet, workers: int, predict: levitax.Predictor) -> Evaluation:
    """Evaluates a model on the images for validation, over all devices of all processes."""
    mesh, shard = make_mesh(), Shard(jax.process_index(), jax.process_count())
    transform, normalise = data.preprocessing.resize, data.preprocessing.normalise
    batch_size = mesh.size * min(128, -(-len(data.validation.labels) // mesh.size))
    batches = eval_batches(data.validation, transform, batch_size=batch_size, shard=shard, workers=workers)
    with batches as batches:
        spread_out = (shard_batch((batch.images, batch.labels, batch.weights), mesh) for batch in batches)
        ready = (EvalBatch(normalise(images), labels, weights) for images, labels, weights in spread_out)
        return evaluate_batches(predict, ready)


def classify(
    split: Split, preprocessing: Preprocessing, predict: levitax.Predictor, workers: int = 0
) -> Iterator[tuple[Batch, np.ndarray]]:
    """The images of a split in batches, with what a model says of them, on one device."""
    run = eqx.filter_jit(lambda predict, images: jax.vmap(predict)(preprocessing.normalise(images)))
    with eval_batches(split, preprocessing.resize, batch_size=128, workers=workers) as batches:
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
