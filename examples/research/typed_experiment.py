"""A typed experiment: how little has to change for a LeViT to take a digit for another one.

    python examples/research/typed_experiment.py
    python examples/research/typed_experiment.py --weights runs/digits/model.safetensors

The attack is the fast gradient sign method of Goodfellow et al. 2015 (arXiv 1412.6572): a step of one size for every
pixel, in the direction that raises the loss. Shapes are written in the signatures in jaxtyping's words and checked at
each call by beartype, within a call by name: an `image` and what comes of it have the same height and width.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import optax
from beartype import beartype
from jaxtyping import Array, Float, Int, jaxtyped

import levitax
from digits_levit import add_weights_argument, load_or_train
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
    """The image one step of `size`, in units of its pixels, towards a larger loss, within `bounds`."""

    def loss(image: Float[Array, "height width channels"]) -> Float[Array, ""]:
        return optax.softmax_cross_entropy_with_integer_labels(predict(image), label)

    # Clipped: a pixel that is blacker than black is in no picture.
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
    add_weights_argument(parser)
    arguments = parser.parse_args()
    predict = levitax.fuse(*load_or_train(arguments.weights))
    digits = data.digits()
    images, labels = jnp.asarray(digits.test_images[::4]), jnp.asarray(digits.test_labels[::4])

    # Pixels are in units of their standard deviation, and black and white 3.2 of them apart.
    sizes = jnp.asarray([0.0, 0.05, 0.1, 0.2, 0.4])
    bounds = float(images.min()), float(images.max())
    found = jax.jit(partial(accuracy_under_attack, predict, bounds=bounds))(images, labels, sizes)
    for size, value in zip(sizes, found, strict=True):
        print(f"pixels changed by {size:.2f}: {value:.1%} right")

    try:
        attack(predict, images, labels[0], 0.1, bounds)
    except TypeError as error:
        # The rest lists the arguments.
        told = str(error).split("\n---")[0]
        print(f"\nA batch where one image belongs:\n{told}")


if __name__ == "__main__":
    main()
