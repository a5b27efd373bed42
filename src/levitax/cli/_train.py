"""Trains a LeViT from scratch: by default a small one on 4,000 real handwritten digits.

    levitax train
    levitax train --data imagenet --model levit_256 --teacher timm:regnety_160.deit_in1k --workers 16

`--preset` chooses a recipe, and `--set` changes its fields.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from .._model import LeViT
from .._variants import VARIANTS
from ..train import start_distributed
from ._arguments import make_parser, with_options
from ._recipe import fit_batch, given_fields, make_recipe
from ._runs import add_run_arguments, FOLDER, model_keywords, open_images, run


# Sizes for images of digits. Expect 98 % of the test digits: 97.9 % with jax 0.12 and seed 0.
_OF_DIGITS = {"image_size": 28, "patch_size": 4, "key_dim": 16, "distillation": False}
SIZES: dict[str, dict[str, Any]] = {
    "digits": {**_OF_DIGITS, "dim": (96, 128, 160), "depth": 1, "heads": (3, 4, 5)},
    "digits_large": {**_OF_DIGITS, "dim": (160, 224, 288), "depth": 2, "heads": (5, 7, 9)},
}


def main(given: Sequence[str]) -> None:
    parser = make_parser("train", f"{__doc__}\n{FOLDER}")
    parser.add_argument(
        "--model", choices=(*SIZES, *VARIANTS), help="by default levit_256, or digits for the data set digits"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 reads images as grey")
    add_run_arguments(parser)
    arguments = parser.parse_args(given)
    start_distributed(arguments.coordinator, arguments.processes, arguments.process)
    is_digits = arguments.data == "digits"
    recipe = make_recipe(arguments, arguments.preset or ("digits" if is_digits else "paper"))
    if recipe.freeze_norms:
        raise ValueError(
            "The recipe has `freeze_norms` True, for models that are trained already: use `levitax finetune`, or "
            "`--set freeze_norms=false trained=all`."
        )
    data = open_images(arguments, arguments.channels)
    data = data._replace(preprocessing=with_options(data.preprocessing, arguments))
    recipe = fit_batch(recipe, given_fields(arguments), len(data.train.labels))
    sizes = {**SIZES, **VARIANTS}[arguments.model or ("digits" if is_digits else "levit_256")]
    keywords = {**sizes, **model_keywords(arguments, recipe, data), "in_channels": data.preprocessing.channels}
    model, state = eqx.nn.make_with_state(LeViT)(**keywords, key=jax.random.key(arguments.seed))
    run(data, model, state, recipe, arguments.out or Path("runs", Path(arguments.data).name), arguments)
