"""A typed experiment: measures how small a change makes a LeViT confuse one digit with another.

    python examples/train.py
    python examples/research/typed_experiment.py

The first command writes the weights that the second one reads by default.

The attack is the fast gradient sign method of Goodfellow et al. 2015 (arXiv 1412.6572). It changes every pixel by the
same amount, in the direction that raises the loss. The signatures state the shapes in jaxtyping's notation, and
beartype checks them at each call. Within a call, each named axis has one size, so the result has the height and width
of `image`.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import optax
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped

import levitax
from levitax import data


typed = jaxtyped(typechecker=beartype)


@typed
def attack(
    predict: levitax.Predictor,
    image: Float[Array, "height width channels"],
    label: Int[Array, ""],
    size: float | Float[Array, ""],
    bounds: tuple[float, float],
) -> Float[Array, "height width channels"]:
    """Moves the image towards a larger loss: each pixel by `size`, and within `bounds`."""

    def loss(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
        return optax.softmax_cross_entropy_with_integer_labels(predict(image), label)

    # Clip, because no real image has a pixel darker than black.
    return (image + size * jnp.sign(jax.grad(loss)(image))).clip(*bounds)


@typed
def accuracy(
    predict: levitax.Predictor,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
) -> Float[Array, ""]:
    return jnp.mean(jax.vmap(predict)(images).argmax(-1) == labels)


@typed
def accuracy_under_attack(
    predict: levitax.Predictor,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    sizes: Float[Array, " sizes"],
    bounds: tuple[float, float],
) -> Float[Array, " sizes"]:
    def at(size):
        attack_each = jax.vmap(attack, in_axes=(None, 0, 0, None, None))
        return accuracy(predict, attack_each(predict, images, labels, size, bounds), labels)

    return jax.vmap(at)(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        default="runs/digits/model.safetensors",
        help="of a model of the digits, such as `examples/train.py` writes",
    )
    arguments = parser.parse_args()
    predict = levitax.fuse(*levitax.load(arguments.weights))
    digits = data.digits()
    images, labels = jnp.asarray(digits.test_images[::4]), jnp.asarray(digits.test_labels[::4])

    # Pixels are in units of their standard deviation. Black and white are 3.2 units apart.
    sizes = jnp.asarray([0.0, 0.05, 0.1, 0.2, 0.4])
    bounds = float(images.min()), float(images.max())
    found = jax.jit(partial(accuracy_under_attack, predict, bounds=bounds))(images, labels, sizes)
    for size, value in zip(sizes, found, strict=True):
        print(f"pixels changed by {size:.2f}: {value:.1%} right")

    try:
        attack(predict, images, labels[0], 0.1, bounds)
    except TypeError as error:
        # Leaves out the list of the arguments.
        message = str(error).split("\n---")[0]
        print(f"\nA batch where one image belongs:\n{message}")


if __name__ == "__main__":
    main()
