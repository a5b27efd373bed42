"""Fine-tunes a trained LeViT on other images and classes, or trains a new head on it.

    levitax finetune --weights timm/levit_256.fb_dist_in1k --data flowers --out runs/flowers
    levitax finetune --weights runs/digits/model.safetensors --data digits --preset probe --out runs/probe

A new classifier is made if the number of classes differs, or with `--new-head`. The attention biases are interpolated
if `--image-size` differs.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from ..data import DataSet, Preprocessing
from ..train import start_distributed
from ..weights import adapt, load
from ._arguments import make_parser, preprocessing_of
from ._recipe import fit_batch, given_fields, make_recipe
from ._runs import add_run_arguments, FOLDER, model_keywords, open_images, prepared_for, run


def main(given: Sequence[str]) -> None:
    parser = make_parser("finetune", f"{__doc__}\n{FOLDER}")
    parser.add_argument("--weights", required=True, help="a file, a folder, or the name of a repository on the hub")
    parser.add_argument(
        "--new-head", action="store_true", help="make a new classifier, even if the number of classes is the same"
    )
    add_run_arguments(parser)
    arguments = parser.parse_args(given)
    start_distributed(arguments.coordinator, arguments.processes, arguments.process)
    recipe = make_recipe(arguments, arguments.preset or "finetune")
    model, state = load(arguments.weights)
    # The weights expect images as their own training prepared them.
    preprocessing = preprocessing_of(arguments.weights, model.config.image_size, arguments)
    data = open_images(arguments, model.config.in_channels)
    recipe = fit_batch(recipe, given_fields(arguments), len(data.train.labels))
    if arguments.new_head or needs_new_head(data, model.config.num_classes, preprocessing):
        model, state = adapt(model, state, num_classes=0)
        preprocessing = dataclasses.replace(preprocessing, class_names=())
    data = prepared_for(data, preprocessing)
    keywords = model_keywords(arguments, recipe, data)
    model, state = adapt(model, state, **keywords, key=jax.random.key(arguments.seed))
    # Not the folder of `levitax train` on the same data.
    out = arguments.out or Path("runs", f"{Path(arguments.data).name}-finetuned")
    run(data, model, state, recipe, out, arguments, weights=arguments.weights)


def needs_new_head(data: DataSet, num_classes: int, preprocessing: Preprocessing) -> bool:
    """Whether the classes of the weights and of the data differ."""
    if num_classes != len(data.classes):
        return True
    names = preprocessing.class_names
    if not names:
        print(
            f"the weights do not name their {num_classes} classes; assuming the classes of the data, in the same "
            "order. --new-head makes a new classifier"
        )
    elif set(names) != set(data.classes):
        print("data and weights have different classes: making a new classifier")
        return True
    return False
