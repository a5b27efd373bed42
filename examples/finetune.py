"""Fine-tunes a trained LeViT on pictures and classes of one's own, or trains a new head on it.

    python examples/finetune.py --weights timm/levit_256.fb_dist_in1k --data flowers --out runs/flowers
    python examples/finetune.py --weights runs/digits/model.safetensors --data digits --preset probe --out runs/probe

`--data` is a folder with `train/` and `val/`, each with a folder of pictures for each class, or the id of a data set on
the Hugging Face hub. The classifier is made anew where there is another number of classes, or with `--new-head`; the
attention biases are resized where `--image-size` is another. The rest is as in `train.py`, and so are the options and
the files in the output folder.
"""

import argparse
import dataclasses
from pathlib import Path

import jax

import levitax
from command_line import mistakes_in_a_line, preprocessing_of
from levitax.data import DataSet, Preprocessing
from train import (
    add_common_arguments,
    fitted,
    make_recipe,
    open_images,
    overrides,
    prepared_for,
    run,
    start_distributed,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="whatever `levitax.load` takes")
    parser.add_argument(
        "--new-head", action="store_true", help="forget the classifier, though there are as many classes"
    )
    add_common_arguments(parser)
    arguments = parser.parse_args()
    with mistakes_in_a_line(parser):
        start_distributed(arguments.coordinator, arguments.processes, arguments.process)
        recipe = make_recipe(arguments, arguments.preset or "finetune")
        model, state = levitax.load(arguments.weights)
        # The weights expect images as their own training prepared them.
        preprocessing = preprocessing_of(arguments.weights, model.config.image_size, arguments)
        data = open_images(arguments, model.config.in_channels)
        recipe = fitted(recipe, arguments, data)
        if arguments.new_head or keeps_no_head(data, model.config.num_classes, preprocessing):
            model, state = levitax.weights.adapt(model, state, num_classes=0)
            preprocessing = dataclasses.replace(preprocessing, class_names=())
        data = prepared_for(data, preprocessing)
        sizes = overrides(arguments, recipe, data)
        model, state = levitax.weights.adapt(model, state, **sizes, key=jax.random.key(arguments.seed))
        # Apart from what `train.py` leaves of the same data.
        arguments.out = arguments.out or Path("runs", f"{Path(arguments.data).name}-finetuned")
        run(data, model, state, recipe, arguments)


def keeps_no_head(data: DataSet, num_classes: int, preprocessing: Preprocessing) -> bool:
    """Whether the classifier of the weights is for other classes than those of the data."""
    if num_classes != len(data.classes):
        return True
    names = preprocessing.class_names
    if not names:
        print(
            f"the weights do not name their {num_classes} classes; taken to be those of the data, in the same order: "
            "--new-head draws a new classifier"
        )
    elif set(names) != set(data.classes):
        print(f"the {num_classes} classes of the data are not those of the weights: a new classifier")
        return True
    return False


if __name__ == "__main__":
    main()
