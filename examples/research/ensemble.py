"""Creates, trains and evaluates several LeViTs as one PyTree, by one `vmap` over models.

    python examples/research/ensemble.py --members 4

The members differ in their initial weights and in the order of the digits. The script compares the accuracy of each
member with that of their mean.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import levitax
from levitax import data


def make(key: jax.Array) -> tuple[levitax.LeViT, eqx.nn.State]:
    """Makes a LeViT with two stages and 0.2 M parameters."""
    return eqx.nn.make_with_state(levitax.LeViT)(
        image_size=28, in_channels=1, num_classes=10, patch_size=4, stages=2, dim=(64, 96), depth=1, heads=(2, 3),
        key_dim=16, distillation=False, key=key,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    optimizer = optax.adamw(2e-3)

    init_key, data_key = jax.random.split(jax.random.key(0))
    keys = jax.random.split(init_key, arguments.members)
    # Each array gets a leading axis, with one entry per member.
    models, states = eqx.filter_vmap(make)(keys)
    optimizer_states = eqx.filter_vmap(lambda model: optimizer.init(eqx.filter(model, eqx.is_inexact_array)))(models)

    def loss_of(model, state, images, labels):
        logits, state = levitax.batched(model)(images, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    @eqx.filter_jit
    @eqx.filter_vmap
    def step(model, state, optimizer_state, key):
        chosen = jax.random.choice(key, len(images), (64,), replace=False)
        gradient = eqx.filter_value_and_grad(loss_of, has_aux=True)
        (loss, state), gradients = gradient(model, state, images[chosen], labels[chosen])
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, optimizer_state, loss

    for number in range(arguments.steps):
        step_keys = jax.random.split(jax.random.fold_in(data_key, number), arguments.members)
        models, states, optimizer_states, loss = step(models, states, optimizer_states, step_keys)
        if number % 50 == 0 or number == arguments.steps - 1:
            print(f"step {number}: losses {', '.join(f'{value:.2f}' for value in loss)}")

    predict = eqx.filter_vmap(levitax.fuse)(models, states)
    ask = lambda predict, images: jax.nn.softmax(jax.vmap(predict)(images))
    ask_each = eqx.filter_jit(eqx.filter_vmap(ask, in_axes=(eqx.if_array(0), None)))
    probabilities = ask_each(predict, jnp.asarray(digits.test_images))
    right = lambda p: jnp.mean(p.argmax(-1) == digits.test_labels)
    print(f"alone: {', '.join(f'{right(member):.1%}' for member in probabilities)}")
    print(f"together: {right(probabilities.mean(0)):.1%}")


if __name__ == "__main__":
    main()
