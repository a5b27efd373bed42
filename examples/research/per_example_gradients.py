"""Computes the gradient of each image's loss, by one `jax.vmap` of `jax.grad`, and the gradient noise scale.

    python examples/train.py
    python examples/research/per_example_gradients.py

The first command writes the weights that the second one reads by default.

With running statistics, the loss of an image depends on that image alone, so its gradient is well defined. With batch
statistics it is not. The squared norm of the mean gradient and the mean of the squared norms give the noise scale of
McCandlish et al. 2018 (arXiv 1812.06162). It estimates the largest batch that is worth its cost.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import levitax
from levitax import data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        default="runs/digits/model.safetensors",
        help="of a model of the digits, such as `examples/train.py` writes",
    )
    parser.add_argument("--batch", type=int, default=100, help="number of gradients in memory at once")
    arguments = parser.parse_args()
    model, state = levitax.load(arguments.weights)
    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)

    weights, rest = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)

    def loss(weights, image, label):
        logits, _ = eqx.combine(weights, rest)(image, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    @jax.jit
    def squared_norms_and_sum(weights, images, labels):
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(weights, images, labels)
        squared_norms = jax.vmap(lambda gradient: optax.tree.norm(gradient, squared=True))(gradients)
        return squared_norms, jax.tree.map(lambda leaf: leaf.sum(0), gradients)

    each, total = [], optax.tree.zeros_like(weights)
    for start in range(0, len(images), arguments.batch):
        chosen = slice(start, start + arguments.batch)
        squared_norms, part = squared_norms_and_sum(weights, images[chosen], labels[chosen])
        each.append(squared_norms)
        total = optax.tree.add(total, part)
    each, count = jnp.concatenate(each), len(images)
    of_mean = optax.tree.norm(optax.tree.scale(1 / count, total), squared=True)

    print(f"norms of {count} gradients: median {jnp.median(jnp.sqrt(each)):.3f}, largest {jnp.sqrt(each.max()):.3f}")
    order = each.argsort()
    print(f"most ordinary digits: {labels[order[:5]].tolist()}, most surprising ones: {labels[order[-5:]].tolist()}")
    # The squared norm of the mean gradient includes the noise of one example, divided by `count`.
    signal = (count * of_mean - each.mean()) / (count - 1)
    noise = (each.mean() - of_mean) * count / (count - 1)
    print(f"squared norm of the gradient: {signal:.3g}, of the noise of one example: {noise:.3g}")
    print(f"noise scale: {noise / signal:.0f} examples" if signal > 0 else "the gradient is lost in the noise")


if __name__ == "__main__":
    main()
