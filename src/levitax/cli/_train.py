import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

import levitax

from .._checks import as_choice
from ._errors import usage, UsageError
from ._options import Data, flat, PreprocessingChanges, RecipeChanges, RunOptions


# Sizes for images of digits. Expect 98 % of the test digits: 97.9 % with jax 0.12 and seed 0.
_OF_DIGITS = {"image_size": 28, "patch_size": 4, "key_dim": 16, "distillation": False}
SIZES: dict[str, dict[str, Any]] = {
    "digits": {**_OF_DIGITS, "dim": (96, 128, 160), "depth": 1, "heads": (3, 4, 5)},
    "digits_large": {**_OF_DIGITS, "dim": (160, 224, 288), "depth": 2, "heads": (5, 7, 9)},
}


def train(
    data: Data = "digits",
    *,
    model: Annotated[str | None, Parameter(help="A variant such as levit_256, or digits or digits_large.")] = None,
    channels: Annotated[Literal[1, 3], Parameter(help="1 reads images as grey.")] = 3,
    options: Annotated[RunOptions, flat("Run")] = RunOptions(),
    preprocessing: Annotated[PreprocessingChanges | None, flat("Preprocessing (by default from the data)")] = None,
    recipe: Annotated[RecipeChanges | None, flat("Recipe (by default from the preset)")] = None,
) -> None:
    """Trains a LeViT from scratch: by default a small one on 4,000 real handwritten digits.

    To resume a run that was stopped, give the same command again. The run folder contains the weights of the last and
    of the best epoch, the moving average if the recipe keeps one, metrics, checkpoints and figures.
    """
    import equinox as eqx
    import jax

    from ._recipe import fit_batch, make_recipe
    from ._runs import model_keywords, open_images, run, start_hosts

    changes, is_digits = recipe or {}, data == "digits"
    chosen = make_recipe(options.preset or ("digits" if is_digits else "paper"), changes)
    if chosen.freeze_norms:
        raise UsageError(
            "The recipe has `freeze_norms` True, for models that are trained already: use `levitax finetune`, or "
            "`--no-freeze-norms --trained all`."
        )
    sizes = {**SIZES, **levitax.VARIANTS}
    with usage():
        name = as_choice("--model", model or ("digits" if is_digits else "levit_256"), sizes)
        start_hosts(options)
    found = open_images(data, channels)
    found = found._replace(preprocessing=dataclasses.replace(found.preprocessing, **(preprocessing or {})))
    chosen = fit_batch(chosen, changes, len(found.train.labels))
    keywords = sizes[name] | model_keywords(chosen, found, options) | {"in_channels": found.preprocessing.channels}
    made = eqx.nn.make_with_state(levitax.LeViT)(**keywords, key=jax.random.key(options.seed))
    run(*made, found, chosen, options.out or Path("runs", Path(data).name), options)
