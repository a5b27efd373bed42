"""Surgery on a trained LeViT: another head, frozen parts, parts removed.

    python examples/research/surgery.py
    python examples/research/surgery.py --weights runs/digits/model.safetensors

A model is a PyTree, so what is trained is a filter, and a part is replaced by `eqx.tree_at`. The weights of ten digits
learn to tell even from odd: with the head alone, which is a linear probe, with the last stage too, and with all of it.
Then each stage loses its attention biases, the only explicit positions in the model.
"""

import argparse
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

import levitax
from digits_levit import add_weights_argument, load_or_train, train
from levitax import data
from levitax.train import adamw, freeze_norms, head_only, trainable, TrainState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_weights_argument(parser)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    model, state = load_or_train(arguments.weights)
    # A head for two classes; all else is as it was.
    model, state = levitax.weights.adapt(model, state, num_classes=2, distillation=False, key=jax.random.key(0))

    # Running statistics move without gradients, so frozen parts would drift: normalise with those of the weights.
    ways = {
        "head": (freeze_norms(model), head_only),
        "head and last stage": (freeze_norms(model), head_and_last_stage),
        "all": (model, trainable),
    }
    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels % 2)
    step_key, data_key = jax.random.split(jax.random.key(1))
    optimizer = adamw(1e-3)
    learnt = {}
    for name, (start, parameters) in ways.items():
        train_state = TrainState(start, state, optimizer, parameters=parameters, key=step_key)
        learnt[name] = train(
            train_state, images, labels, batch_size=64, steps=arguments.steps,
            key=data_key,
        )  # fmt: skip
        count = levitax.count_parameters(parameters(start))
        print(f"{name}: {count:,} parameters trained, {right(digits, *learnt[name]):.1%} right")

    model, state = learnt["all"]
    for stage in range(model.config.stages):
        blind = eqx.tree_at(partial(bias_tables, stage=stage), model, replace_fn=jnp.zeros_like)
        print(f"all, without attention biases in stage {stage + 1}: {right(digits, blind, state):.1%} right")


def head_and_last_stage(model: levitax.LeViT) -> levitax.LeViT:
    """The arrays to train, and `None` in place of all others."""
    parts = lambda model: (model.head, model.stages[-1])
    nothing = eqx.filter(model, False)
    return eqx.tree_at(parts, nothing, trainable(parts(model)), is_leaf=lambda node: node is None)


def bias_tables(model: levitax.LeViT, *, stage: int) -> list[jax.Array]:
    return jax.tree.leaves([block.attention.bias for block in model.stages[stage].blocks])


def right(digits: data.Digits, model: levitax.LeViT, state: eqx.nn.State) -> float:
    predict = levitax.fuse(model, state)
    logits = jax.jit(jax.vmap(predict))(jnp.asarray(digits.test_images))
    return float(jnp.mean(logits.argmax(-1) == digits.test_labels % 2))


if __name__ == "__main__":
    main()
