"""Gives a trained LeViT a new head, freezes parts of it, and removes parts.

    python examples/train.py
    python examples/research/surgery.py

The first command writes the weights that the second one reads by default.

The model classifies ten digits and learns to separate even from odd ones. The script trains the head alone (a linear
probe), then the head and the last stage, then all parameters. At the end each stage in turn loses its attention biases,
the only explicit positions in the model.
"""

import argparse
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

import levitax
from levitax import data
from levitax.train import adamw, freeze_norms, head_only, make_step, trainable, TrainState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        default="runs/digits/model.safetensors",
        help="of a model of the digits, such as `examples/train.py` writes",
    )
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    model, state = levitax.load(arguments.weights)
    # Draws a head for two classes and keeps all other weights.
    model, state = levitax.weights.adapt(model, state, num_classes=2, distillation=False, key=jax.random.key(0))

    # Running statistics change without gradients, so frozen parts would drift: `freeze_norms` fixes the statistics.
    ways = {
        "head": (freeze_norms(model), head_only),
        "head and last stage": (freeze_norms(model), head_and_last_stage),
        "all": (model, trainable),
    }
    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels % 2)
    step_key, data_key = jax.random.split(jax.random.key(1))
    optimizer, step = adamw(1e-3), make_step()
    learnt = {}
    for name, (start, parameters) in ways.items():
        train_state = TrainState(start, state, optimizer, parameters=parameters, key=step_key)
        for number in range(arguments.steps):
            chosen = jax.random.choice(jax.random.fold_in(data_key, number), len(images), (64,), replace=False)
            train_state, _ = step(train_state, images[chosen], labels[chosen])
        learnt[name] = train_state.model, train_state.state
        count = levitax.count_parameters(parameters(start))
        print(f"{name}: {count:,} parameters trained, {right(digits, *learnt[name]):.1%} right")

    model, state = learnt["all"]
    for stage in range(model.config.stages):
        blind = eqx.tree_at(partial(bias_tables, stage=stage), model, replace_fn=jnp.zeros_like)
        print(f"all, without attention biases in stage {stage + 1}: {right(digits, blind, state):.1%} right")


def head_and_last_stage(model: levitax.LeViT) -> levitax.LeViT:
    """Keeps the arrays to train, and replaces all others by `None`."""
    parts = lambda model: (model.head, model.stages[-1])
    nothing = eqx.filter(model, False)
    return eqx.tree_at(parts, nothing, trainable(parts(model)), is_leaf=lambda node: node is None)


def bias_tables(model: levitax.LeViT, *, stage: int) -> list[jax.Array]:
    return jax.tree.leaves([block.attention.bias for block in model.stages[stage].blocks])


def right(digits: data.Digits, model: levitax.LeViT, state: eqx.nn.State) -> float:
    """Returns the accuracy on the test digits."""
    predict = levitax.fuse(model, state)
    logits = jax.jit(jax.vmap(predict))(jnp.asarray(digits.test_images))
    return float(jnp.mean(logits.argmax(-1) == digits.test_labels % 2))


if __name__ == "__main__":
    main()
