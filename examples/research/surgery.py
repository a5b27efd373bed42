"""Surgery on a trained LeViT: another head, frozen weights, another layer.

    python examples/research/probe.py --weights runs/digits/model.safetensors

A model is a PyTree, so what is trained is a filter, and a part is replaced by `eqx.tree_at`. Here the weights learn to
tell even digits from odd ones: with the head alone, with the last stage too, and with all of it.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import levitax
from levitax import data
from per_example_gradients import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="of a model of the digits; by default a small one as it is made")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    model, state = load(arguments.weights)
    # A head for two classes; all else is as it was.
    model, state = levitax.weights.adapt(model, state, num_classes=2, distillation=False, key=jax.random.key(0))

    nothing = jax.tree.map(lambda _: False, model)
    is_weight = jax.tree.map(eqx.is_inexact_array, model)
    trained = {
        "head": eqx.tree_at(lambda tree: tree.head, nothing, is_weight.head),
        "head and last stage": eqx.tree_at(
            lambda tree: (tree.head, tree.stages[-1]), nothing, (is_weight.head, is_weight.stages[-1])
        ),
        "all": is_weight,
    }
    for name, chosen in trained.items():
        right = train(model, state, chosen, arguments.steps)
        count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, chosen)))
        print(f"{name}: {count:,} numbers trained, {right:.1%} right")


def train(model, state, chosen, steps: int) -> float:
    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels % 2)
    optimizer = optax.adam(1e-3)
    trained, frozen = eqx.partition(model, chosen)
    optimizer_state = optimizer.init(trained)

    def loss_of(trained, state, images, labels):
        logits, state = levitax.batched(eqx.combine(trained, frozen))(images, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    @eqx.filter_jit
    def step(trained, state, optimizer_state, images, labels):
        (_, state), gradients = eqx.filter_value_and_grad(loss_of, has_aux=True)(trained, state, images, labels)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, trained)
        return eqx.apply_updates(trained, updates), state, optimizer_state

    for number in range(steps):
        picked = jax.random.choice(jax.random.key(number), len(images), (64,), replace=False)
        trained, state, optimizer_state = step(trained, state, optimizer_state, images[picked], labels[picked])
    predict = levitax.fuse(eqx.combine(trained, frozen), state)
    logits = eqx.filter_jit(jax.vmap(predict))(jnp.asarray(digits.test_images))
    return float(jnp.mean(logits.argmax(-1) == digits.test_labels % 2))


if __name__ == "__main__":
    main()
