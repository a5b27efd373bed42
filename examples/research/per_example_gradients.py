"""The gradient of each example's loss alone, by one `jax.vmap` of `jax.grad`, and what their norms tell.

    python examples/research/per_example_gradients.py
    python examples/research/per_example_gradients.py --weights runs/digits/model.safetensors

With running statistics an example's loss depends on that example alone, so its gradient is well defined; with those of
the batch it would not be. The norm of a mean gradient and the mean of the norms give the noise scale of McCandlish et
al. 2018 (arXiv 1812.06162): about how large a batch may be before larger ones stop helping.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from digits_levit import load_or_train
from levitax import data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="of a model of the digits; by default a small one is trained first")
    parser.add_argument("--examples", type=int, default=128)
    arguments = parser.parse_args()
    model, state = load_or_train(arguments.weights)
    digits = data.digits()
    images = jnp.asarray(digits.train_images[:: len(digits.train_images) // arguments.examples][: arguments.examples])
    labels = jnp.asarray(digits.train_labels[:: len(digits.train_labels) // arguments.examples][: arguments.examples])

    weights, rest = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)

    def loss(weights, image, label):
        logits, _ = eqx.combine(weights, rest)(image, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    @jax.jit
    def squared_norms(weights, images, labels):
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(weights, images, labels)
        squares = lambda gradient: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))
        mean = jax.tree.map(lambda leaf: leaf.mean(0), gradients)
        return jax.vmap(squares)(gradients), squares(mean)

    each, of_mean = squared_norms(weights, images, labels)
    norms = jnp.sqrt(each)
    order = norms.argsort()
    print(f"norms of {len(images)} gradients: median {jnp.median(norms):.3f}, largest {norms.max():.3f}")
    print(f"most ordinary digits: {labels[order[:5]].tolist()}, most surprising ones: {labels[order[-5:]].tolist()}")
    # Both from batches of 1 and of all: the mean's square has the noise divided by their number in it.
    count = len(images)
    signal = (count * of_mean - each.mean()) / (count - 1)
    noise = (each.mean() - of_mean) / (1 - 1 / count)
    print(f"noise scale: {noise / signal:.0f} examples")


if __name__ == "__main__":
    main()
