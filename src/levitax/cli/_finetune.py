import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import levitax

from ._errors import usage
from ._options import (
    Data,
    DataOptions,
    flat,
    PreprocessingChanges,
    RecipeChanges,
    RunOptions,
    Weights,
)


def finetune(
    data: Data,
    *,
    weights: Weights,
    new_head: Annotated[
        bool, Parameter(help="Make a new classifier, even if the classes are the same.", negative=())
    ] = False,
    reading: Annotated[DataOptions, flat("Data")] = DataOptions(),
    options: Annotated[RunOptions, flat("Run")] = RunOptions(),
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the weights)")] = None,
    recipe: Annotated[RecipeChanges | None, flat("Recipe (by default from the preset)")] = None,
) -> None:
    """Fine-tunes a trained LeViT on other images and classes, or with --preset probe trains a new head on it.

    A new classifier is made if the classes differ. The attention biases are interpolated if --image-size differs. The
    run folder is as in levitax train, by default runs/DATA-finetuned.
    """
    import jax

    from ._data import open_for_weights, prepared_for
    from ._recipe import fit_batch, make_recipe
    from ._runs import model_keywords, name_of_run, needs_new_head, run, start_hosts
    from ._weights import preprocessing_of

    changes = recipe or {}
    chosen = make_recipe(levitax.train.RECIPES[options.preset or "finetune"], changes)
    with usage():
        start_hosts(options)
    model, state = levitax.load(weights)
    # The weights expect images as their own training prepared them.
    prepared = preprocessing_of(weights, model.config.image_size, preprocessing)
    found = open_for_weights(data, model.config.in_channels, reading)
    chosen = fit_batch(chosen, changes, len(found.train.labels))
    if new_head or needs_new_head(found, model.config.num_classes, prepared):
        model, state = levitax.weights.adapt(model, state, num_classes=0)
        prepared = dataclasses.replace(prepared, class_names=())
    found = prepared_for(found, prepared)
    keywords = model_keywords(chosen, found, options)
    adapted = levitax.weights.adapt(model, state, **keywords, key=jax.random.key(options.seed))
    # Not the folder of `levitax train` on the same data.
    out = options.out or Path("runs", f"{name_of_run(data)}-finetuned")
    run(*adapted, found, chosen, out, options, where=data, reading=reading, weights=weights)
