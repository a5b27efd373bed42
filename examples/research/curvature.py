"""Finds the sharpest direction of the loss, by power iteration on Hessian-vector products.

    python examples/train.py
    python examples/research/curvature.py --steps 20

The first command writes the weights that the second one reads by default.

A Hessian-vector product is the derivative of the gradient along a vector. It costs about two gradients and never stores
the Hessian. Power iteration on it finds the eigenvalue of largest magnitude.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import levitax
from levitax import data
from levitax.train import cross_entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        default="runs/digits/model.safetensors",
        help="of a model of the digits, such as `examples/train.py` writes",
    )
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    model, state = levitax.load(arguments.weights)
    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images[::32]), jnp.asarray(digits.train_labels[::32])

    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    weights, unravel = ravel_pytree(arrays)

    def loss(weights):
        # In training mode, so the curvature includes the batch statistics, as for the optimiser.
        logits, _ = levitax.batched(eqx.combine(unravel(weights), rest))(images, state)
        return cross_entropy(logits, labels)

    @jax.jit
    def times_hessian(vector):
        return jax.jvp(jax.grad(loss), (weights,), (vector,))[1]

    vector = jax.random.normal(jax.random.key(1), weights.shape)
    vector /= jnp.linalg.norm(vector)
    eigenvalue = jnp.nan
    for step in range(arguments.steps):
        product = times_hessian(vector)
        eigenvalue = vector @ product
        residual = jnp.linalg.norm(product - eigenvalue * vector)
        vector = product / jnp.linalg.norm(product)
        if step % 5 == 4:
            print(f"step {step + 1}: {eigenvalue:.3f} (residual {residual:.3f})")
    if eigenvalue > 0:
        print(f"along it, gradient descent is stable below a learning rate of {2 / eigenvalue:.3g}")


if __name__ == "__main__":
    main()
