"""Measures how accurate a model stays when it is resized without further training.

    python examples/train.py && python examples/other_sizes.py runs/digits/model.safetensors

For each size, it resizes the test digits and the model. The last column is the accuracy of the original model on the
digits resized back: what the smaller or larger images still show.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import levitax
from levitax.data import digits
from levitax.train import evaluate


SIZES = (20, 24, 28, 32, 36, 40, 48, 56)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    arguments = parser.parse_args()
    model, state = levitax.load(arguments.weights)
    data = digits()
    trained_size, _ = model.config.image_size
    print("pixels  tokens  resized model  digits resized back")
    for size in arguments.sizes:
        images = resize(data.test_images, size)
        adapted, adapted_state = levitax.weights.adapt(model, state, image_size=size)
        accuracy = evaluate(levitax.Predictor(adapted, adapted_state), images, data.test_labels).accuracy
        back = resize(images, trained_size)
        limit = evaluate(levitax.Predictor(model, state), back, data.test_labels).accuracy
        rows, columns = adapted.config.grid(0)
        print(f"{size:6d}  {f'{rows}x{columns}':>6}  {accuracy:13.1%}  {limit:19.1%}")


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """A batch of grey images at another size."""
    resized = [Image.fromarray(image[..., 0]).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image)[..., None] for image in resized])


if __name__ == "__main__":
    main()
