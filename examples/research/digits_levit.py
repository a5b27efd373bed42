"""What the guides here share: a small LeViT of the digits, made, read from a file or trained for some seconds."""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import levitax
from levitax import data
from levitax.train import adamw, make_step, TrainState


def make(*, key: jax.Array) -> tuple[levitax.LeViT, eqx.nn.State]:
    """A LeViT of 0.2 M parameters with two stages and one head."""
    return eqx.nn.make_with_state(levitax.LeViT)(
        image_size=28, in_channels=1, num_classes=10, patch_size=4, stages=2, dim=(64, 96), depth=1, heads=(2, 3),
        key_dim=16, distillation=False, key=key,
    )  # fmt: skip


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """What `load_or_train` takes."""
    parser.add_argument("--weights", help="of a model of the digits; by default a small one is trained first")


def load_or_train(weights: str | None, *, steps: int = 150) -> tuple[levitax.LeViT, eqx.nn.State]:
    """The model of a file, or a small one trained on batches of 128 digits: 90 % of unseen ones right after 150."""
    if weights is not None:
        return levitax.load(weights)
    init_key, step_key, data_key = jax.random.split(jax.random.key(0), 3)
    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    optimizer = adamw(optax.cosine_decay_schedule(5e-3, decay_steps=steps))
    train_state = TrainState(*make(key=init_key), optimizer, key=step_key)
    return train(train_state, images, labels, batch_size=128, steps=steps, key=data_key)


def train(
    train_state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int,
    steps: int,
    key: jax.Array,
) -> tuple[levitax.LeViT, eqx.nn.State]:
    """The model after so many steps, each on other digits, which `key` draws."""
    step = make_step()
    for number in range(steps):
        chosen = jax.random.choice(jax.random.fold_in(key, number), len(images), (batch_size,), replace=False)
        train_state, _ = step(train_state, images[chosen], labels[chosen])
    return train_state.model, train_state.state
