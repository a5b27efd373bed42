import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from .._checks import as_integer
from .._extras import extra, require
from .._files import as_path
from .._fuse import check_levit, fuse, Predictor
from .._model import LeViT
from .._parameters import count_parameters
from .._progress import progress_bar, say
from ..data import DataSet, Shard, steps_per_epoch, train_batches, TrainTransform
from ..weights import save
from ._checkpoint import Checkpoints
from ._inputs import make_inputs
from ._mesh import make_mesh, replicate
from ._optimizer import freeze_norms
from ._preemption import Preemption
from ._recipe import Recipe
from ._reporting import Clock, Losses
from ._run_folder import History, only_run_in
from ._splits import evaluate_split
from ._state import TrainState
from ._step import make_step
from ._teacher import Teacher
from ._teacher_logits import fingerprint, TeacherLogits


class Fitted(NamedTuple):
    """A trained model and the metrics of its training.

    **Attributes:**

    - `model`, `state`: the model and its state after the last epoch.
    - `history`: the metrics of each epoch, as in `metrics.jsonl`.
    """

    model: LeViT
    state: eqx.nn.State
    history: list[dict[str, float]]


def fit(
    model: LeViT,
    state: eqx.nn.State,
    data: DataSet,
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    teacher: Teacher | TeacherLogits | None = None,
    seed: int = 0,
    workers: int = 0,
    checkpoint_every: int | None = None,
    origin: Mapping[str, Any] | None = None,
    on_epoch: Callable[[dict[str, float]], object] = lambda metrics: None,
) -> Fitted:
    """Trains a model with a recipe, on all devices of all processes. To resume a run, repeat the call with the same
    `out`. On SIGTERM, `fit` saves a checkpoint and exits. To train a run that has ended for more epochs, repeat the
    call with more `epochs` in the recipe: the learning rate rises again, to its value in the longer schedule.

    The run folder `out` contains `checkpoints/` and `metrics.jsonl`, with a line for each epoch. At the end, `fit` adds
    up to three weight files. `model.safetensors` is from the last epoch, and `best.safetensors` from the epoch with the
    highest validation accuracy. `ema.safetensors` is the moving average, if the recipe keeps one.

    **Arguments:**

    - `model`, `state`: new or from [`levitax.load`][], with the classes of `data` in the same order.
    - `data`: a [`levitax.data.DataSet`][], whose preprocessing is saved with the weights.
    - `recipe`: a [`levitax.train.Recipe`][].
    - `out`: the run folder.
    - `teacher`: for distillation: a [`levitax.train.Teacher`][], which sees the same images as the student, or
        [`levitax.train.TeacherLogits`][].
    - `seed`: the seed of the image order, augmentation, dropout and drop path.
    - `workers`: as in [`levitax.data.train_batches`][].
    - `checkpoint_every`: steps between checkpoints, in addition to one at the end of each epoch.
    - `origin`: other values that identify the run, in JSON, such as the names of weights and teacher. A checkpoint with
        another origin is refused.
    - `on_epoch`: called with the metrics of each epoch.

    **Returns:** a [`levitax.train.Fitted`][].

    **Raises:** `FloatingPointError` if a loss or gradient is not finite, naming the last good checkpoint; `OSError` if
    another run writes to `out`; `ValueError` if model, data, recipe and teacher do not fit together, or if `out` holds
    another run, with the differences; `ModuleNotFoundError` without the extras `data` and `weights`; and the errors of
    the functions that it calls.
    """
    if checkpoint_every is not None:
        as_integer("checkpoint_every", checkpoint_every)
    _check_data(data)
    _check_together(model, data, recipe, teacher)
    # Needed at the end, and missed before the work starts.
    require("safetensors", "`levitax.train.fit`", extra("weights"))
    data = data._replace(preprocessing=dataclasses.replace(data.preprocessing, image_size=model.config.image_size))
    teacher = teacher.for_data(data) if isinstance(teacher, TeacherLogits) else teacher
    folder, mesh = as_path("out", out), make_mesh()
    steps = steps_per_epoch(data.train, recipe.batch_size)
    step_key, inputs_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    train_state = replicate(_start(model, state, recipe, steps, key=step_key), mesh)
    step = make_step(recipe.loss(), accumulate=recipe.accumulate, group_size=recipe.group_size, mesh=mesh)
    inputs = make_inputs(data, recipe, teacher, mesh, key=inputs_key)
    evaluate = partial(evaluate_split, split=data.validation, preprocessing=data.preprocessing, workers=workers)
    say(
        f"{count_parameters(model):,} parameters, {len(data.train.labels):,} training images, {recipe.epochs} epochs "
        f"of {steps} steps, {jax.device_count()} device(s)"
    )
    description = _describe(model, data, recipe, seed=seed, origin=origin)
    length = {"epochs": recipe.epochs, "warmup_epochs": recipe.warmup_epochs}
    with (
        only_run_in(folder),
        Preemption() as preemption,
        Checkpoints(folder / "checkpoints", description=description) as checkpoints,
    ):
        progress: dict[str, Any] = {"history": [], "losses": []}
        if restored := checkpoints.restore(train_state):
            train_state, progress = restored
            _check_length(recipe, progress["length"], int(train_state.step), steps, folder)
        history = History(folder, progress["history"], recipe.epochs)
        losses = Losses(progress["losses"], checkpoints)
        done, last = int(train_state.step), recipe.epochs * steps
        reading = train_batches(
            data.train,
            _transform(model, recipe),
            batch_size=recipe.batch_size,
            steps=last,
            seed=seed,
            repeats=recipe.repeats,
            start=done,
            shard=Shard(jax.process_index(), jax.process_count()),
            workers=workers,
        )
        with reading as batches, progress_bar(last * recipe.batch_size, done * recipe.batch_size) as bar:
            clock = Clock(batches)
            for number, batch in enumerate(clock, done + 1):
                train_state, metrics = step(train_state, *inputs(batch, number - 1))
                losses.add(number, metrics)
                bar.update(recipe.batch_size)
                ends_epoch, stops = number % steps == 0, preemption.reached(number)
                is_due = checkpoint_every is not None and number % checkpoint_every == 0
                if not (ends_epoch or stops or is_due):
                    continue
                losses.read()
                score = None
                if ends_epoch:
                    result = evaluate(Predictor(train_state.model, train_state.state))
                    score = result.accuracy
                    history.add(
                        {
                            "epoch": number // steps,
                            "learning_rate": _learning_rate(recipe, steps, number - 1),
                            "train_loss": float(np.mean(losses.values)),
                            "validation_loss": result.loss,
                            "validation_accuracy": result.accuracy,
                            "validation_top5": result.top5,
                            **clock.lap(),
                        }
                    )
                    losses.values = []
                    on_epoch(history.epochs[-1])
                progress = {"history": history.epochs, "losses": losses.values, "length": length}
                checkpoints.save(train_state, progress, score=score)
                if stops:
                    # `latest` waits until it is written.
                    say(f"stopped after step {number}; repeat the call to resume from `{checkpoints.latest}`")
                    sys.exit(128 + signal.SIGTERM)
        trained = {"model": (train_state.model, train_state.state)}
        if checkpoints.best and (best := checkpoints.restore(train_state, step=checkpoints.best.step)):
            trained["best"] = (best.train_state.model, best.train_state.state)
        if recipe.ema_decay is not None:
            trained["ema"] = train_state.averaged()
        for name, (model, state) in trained.items():
            accuracy, fused = (evaluate(predict).accuracy for predict in (Predictor(model, state), fuse(model, state)))
            path = folder / f"{name}.safetensors"
            if jax.process_index() == 0:
                save(path, model, state, preprocessing=data.preprocessing)
            say(f"validation accuracy of {path}: {accuracy:.2%}, fused {fused:.2%}")
    model, state = jax.device_get(trained["model"])
    return Fitted(model, state, history.epochs)


def _start(model: LeViT, state: eqx.nn.State, recipe: Recipe, steps: int, *, key: PRNGKeyArray) -> TrainState:
    return TrainState(
        freeze_norms(model) if recipe.freeze_norms else model,
        state,
        recipe.optimizer(steps),
        parameters=recipe.parameters,
        ema_decay=recipe.ema_decay,
        key=key,
    )


def _transform(model: LeViT, recipe: Recipe) -> TrainTransform:
    return TrainTransform(
        image_size=model.config.image_size,
        crop_scale=recipe.crop_scale,
        flip_probability=recipe.flip_probability,
        rand_augment=recipe.rand_augment,
    )


def _check_length(recipe: Recipe, before: Mapping[str, int], done: int, steps: int, folder: Path) -> None:
    """Raises if the run in `folder` had another length, unless it has ended and is to go on. Says what happens."""
    has_ended = done == before["epochs"] * steps
    if recipe.epochs == before["epochs"] and (has_ended or recipe.warmup_epochs == before["warmup_epochs"]):
        if has_ended:
            say(f"the run in `{folder}` has ended; to go on, repeat the call with more than {recipe.epochs} `epochs`")
        return
    if not has_ended or recipe.epochs < before["epochs"]:
        raise ValueError(
            f"The run in `{folder}` is at step {done} of {before['epochs']} epochs, {before['warmup_epochs']} of them "
            f"warm-up, and the recipe has {recipe.epochs} and {recipe.warmup_epochs}. Only a run that has ended can go "
            "on, with more epochs. End it as it was begun, or pass another `out`."
        )
    ended = _learning_rate(dataclasses.replace(recipe, **before), steps, done - 1)
    say(
        f"the run in `{folder}` ended after {before['epochs']} epoch(s), and goes on to {recipe.epochs}, with the "
        f"learning rate of a run of that length: {_learning_rate(recipe, steps, done):.2g}, after {ended:.2g} at its "
        "end"
    )


def _learning_rate(recipe: Recipe, steps: int, step: int) -> float:
    return float(np.asarray(recipe.schedule(steps)(step)))


def _describe(model: LeViT, data: DataSet, recipe: Recipe, **rest: Any) -> dict[str, Any]:
    """The description that identifies the checkpoints of this run. A run that has ended may become longer."""
    fields = {name: value for name, value in recipe.to_dict().items() if name not in ("epochs", "warmup_epochs")}
    return {
        "model": model.config.to_dict(),
        "recipe": fields,
        "data": {"classes": data.classes, **fingerprint(data.train)},
        "preprocessing": data.preprocessing.to_dict(),
        **rest,
    }


def _check_data(data: DataSet) -> None:
    if len(data.classes) < 2:
        raise ValueError(
            f"`data` has the classes {list(data.classes)}; a classifier needs at least two. If you opened a "
            "folder, move the folders of its classes directly into it or into its `train/`."
        )
    if not len(data.validation.labels):
        raise ValueError(
            "`data` has no validation images, because no class has two images, one to train on and one to validate "
            "with. Add images."
        )


def _check_together(model: LeViT, data: DataSet, recipe: Recipe, teacher: Any) -> None:
    if (teacher is None) != (recipe.distillation == "none"):
        raise ValueError(
            f"The recipe has `distillation` {recipe.distillation!r}, and there is {'no' if teacher is None else 'a'} "
            "teacher: pass `teacher`, or set `distillation` to 'none'."
        )
    check_levit(model)
    given = model.config.num_classes, model.config.in_channels
    wanted = len(data.classes), data.preprocessing.channels
    if given != wanted:
        raise ValueError(
            f"`model` is for {given[0]} classes and {given[1]} channels, and `data` has {wanted[0]} and {wanted[1]}. "
            "Adapt the model with `levitax.weights.adapt`, or open the data with other `channels`."
        )
    overrides = recipe.model_overrides()
    for name in ("dtype", "remat", "drop_path"):
        has = getattr(model.config, name)
        if overrides.get(name, has) != has:
            raise ValueError(
                f"`recipe` has `{name}` {overrides[name]!r}, and `model` has {has!r}. Make the model with the keywords "
                "`recipe.model_overrides()`, adapt it with `levitax.weights.adapt`, or change the recipe."
            )
