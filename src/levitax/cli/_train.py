import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

import levitax

from .._checks import as_choice
from ._errors import usage, UsageError
from ._finetune import finetune
from ._options import Data, DataOptions, flat, PreprocessingChanges, RecipeChanges, RunOptions


def train(
    data: Data = "digits",
    *,
    model: Annotated[str | None, Parameter(help="A variant such as levit_256, or small or medium.")] = None,
    channels: Annotated[
        Literal[1, 3] | None, Parameter(help="1 reads images as grey. By default 1 if they are all grey.")
    ] = None,
    reading: Annotated[DataOptions, flat("Data")] = DataOptions(),
    options: Annotated[RunOptions, flat("Run")] = RunOptions(),
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the data)")] = None,
    recipe: Annotated[RecipeChanges | None, flat("Recipe (by default from the preset)")] = None,
) -> None:
    """Trains a LeViT on 4,000 real handwritten digits, or on images of your own.

    Without --model and --preset, the number and the size of the images decide. Small images train a small model from
    scratch, photographs fine-tune published weights if these can be fetched, and ImageNet is trained as in the paper.
    The command says what it chose.

    To resume a run that was stopped, give the same command again. The run folder contains the weights of the last and
    of the best epoch, the moving average if the recipe keeps one, metrics, checkpoints and figures.
    """
    import equinox as eqx
    import jax

    from .._progress import say
    from ..train._suggest import sample, small_model, SMALL_MODELS
    from ._data import open_images
    from ._recipe import fit_batch, make_recipe
    from ._runs import can_be_fetched, model_keywords, name_of_run, run, start_hosts

    recipes, changes, out = levitax.train.RECIPES, recipe or {}, options.out or Path("runs", name_of_run(data))
    with usage():
        if model is not None:
            as_choice("--model", model, (*SMALL_MODELS, *levitax.VARIANTS))
        start_hosts(options)
    preset = options.preset or ("digits" if data == "digits" else None)
    if preset is not None:
        # Before the images are read.
        _check(make_recipe(recipes[preset], changes), options.teacher)

    found = open_images(data, channels or 3, reading)
    if channels is None and found.preprocessing.channels == 3 and sample(found.train).are_grey:
        found = open_images(data, 1, reading)
    suggested = levitax.train.suggest(found)
    # Several processes could come to different answers.
    is_left_to_us = model is None and options.preset is None and channels is None and jax.process_count() == 1
    if is_left_to_us and suggested.pretrained is not None and can_be_fetched(suggested.pretrained):
        say(f"{suggested.reason}: fine-tuning {suggested.pretrained}; --model small trains from scratch")
        named = dataclasses.replace(options, out=out)
        finetune(
            data,
            weights=suggested.pretrained,
            reading=reading,
            options=named,
            preprocessing=preprocessing,
            recipe=recipe,
        )
        return
    if model is None:
        model, keywords = suggested.model, suggested.keywords
    elif model in levitax.VARIANTS:
        keywords = levitax.VARIANTS[model]
    else:
        keywords = small_model(model, suggested.keywords.get("image_size", 128))
    base = suggested.recipe if preset is None else recipes[preset]
    if preset is None and options.teacher is None and "distillation" not in changes:
        base = dataclasses.replace(base, distillation="none")
    chosen = make_recipe(base, changes)
    _check(chosen, options.teacher)
    fields = {"crop_ratio": suggested.crop_ratio, **(preprocessing or {})}
    found = found._replace(preprocessing=dataclasses.replace(found.preprocessing, **fields))
    chosen = fit_batch(chosen, changes, len(found.train.labels))
    keywords = {**keywords, **model_keywords(chosen, found, options), "in_channels": found.preprocessing.channels}
    say(
        f"{suggested.reason}: model {model}, recipe {preset or suggested.preset}, epochs {chosen.epochs}, batches of "
        f"{chosen.batch_size}, learning rate {chosen.learning_rate * chosen.batch_size / 512:.2g}; --model, --preset "
        "and the fields of the recipe change this"
    )
    made = eqx.nn.make_with_state(levitax.LeViT)(**keywords, key=jax.random.key(options.seed))
    run(*made, found, chosen, out, options, where=data, reading=reading)


def _check(recipe: "levitax.train.Recipe", teacher: str | None) -> None:
    """Raises for a recipe that does not train from scratch with these options."""
    if recipe.freeze_norms:
        raise UsageError(
            "The recipe has `freeze_norms` True, for models that are trained already: use `levitax finetune`, or "
            "`--no-freeze-norms --trained all`."
        )
    if (teacher is None) != (recipe.distillation == "none"):
        raise UsageError(
            f"The recipe has `distillation` {recipe.distillation!r}, and there is {'no' if teacher is None else 'a'} "
            "teacher: pass --teacher with --distillation hard or soft, or --distillation none without one."
        )
