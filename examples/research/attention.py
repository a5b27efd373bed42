"""Draws the attention maps of every head for one image, and the attention biases.

    python examples/train.py
    python examples/research/attention.py --image 640 --out figures

The first command writes the weights that the second one reads by default.

Writes `biases.png`, and one figure per block: `stage1_block1.png` and so on. Each shows the mean attention of all
tokens or, with `--at ROW COLUMN`, the attention of the token at that pixel.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

import levitax
from levitax import data, plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        default="runs/digits/model.safetensors",
        help="of a model of the digits, such as `examples/train.py` writes",
    )
    parser.add_argument("--image", type=int, default=0, help="index of a test digit")
    parser.add_argument("--at", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="a pixel; by default the mean")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="a folder")
    arguments = parser.parse_args()
    model, state = levitax.load(arguments.weights)
    height, width = model.config.image_size
    row, column = arguments.at or (0, 0)
    if not (0 <= row < height and 0 <= column < width):
        parser.error(f"--at is {row} {column}; expected a pixel of an image of {height}x{width}")
    image = jnp.asarray(data.digits().test_images[arguments.image])
    arguments.out.mkdir(parents=True, exist_ok=True)

    plot.attention_biases(model).savefig(arguments.out / "biases.png", dpi=120)

    shown = (image - image.min()) / jnp.ptp(image)
    for stage, blocks in enumerate(model.attention_maps(image, state)):
        query = None if arguments.at is None else token_at(arguments.at, model.config, stage)
        for block, weights in enumerate(blocks):
            # A downsampling block attends to the tokens of the stage before.
            grid = model.config.grid(stage - 1 if stage > 0 and block == 0 else stage)
            figure = plot.attention_maps(shown, weights, grid=grid, query=query)
            figure.savefig(arguments.out / f"stage{stage + 1}_block{block + 1}.png", dpi=120)
            entropy = jax.scipy.special.entr(weights).sum(-1)
            effective = ", ".join(f"{number:.1f}" for number in jnp.exp(entropy).mean(-1))
            print(f"stage {stage + 1}, block {block + 1}: tokens that a query attends to, by head: {effective}")


def token_at(pixel: tuple[int, int], config: levitax.LeViTConfig, stage: int) -> int:
    """Returns the index of the token that covers a pixel."""
    (row, column), (rows, columns), (height, width) = pixel, config.grid(stage), config.image_size
    return row * rows // height * columns + column * columns // width


if __name__ == "__main__":
    main()
