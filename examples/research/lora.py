"""Adapts a trained LeViT to another task with LoRA (Hu et al. 2021, arXiv 2106.09685), on every linear layer.

    python examples/train.py
    python examples/research/lora.py

The first command writes the weights that the second one reads by default.

The model classifies upright digits and learns to classify digits that lie on their side. The script trains the head
alone, LoRA, and all parameters. Then it merges LoRA into the weights, which gives a plain LeViT: it saves, fuses and
exports like any other.
"""

import argparse
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import levitax
from levitax import data
from levitax.nn import LinearNorm, NormLinear
from levitax.train import freeze_norms, head_only, make_step, trainable, TrainState


class LoRA(eqx.Module):
    """A linear layer with the weight `W + up @ down`. Only `up` and `down` are trained."""

    layer: LinearNorm | NormLinear
    up: Float[Array, "out_features rank"]
    down: Float[Array, "rank in_features"]

    def __init__(self, layer: LinearNorm | NormLinear, rank: int, *, key: PRNGKeyArray):
        out_features, in_features = layer.weight.shape
        self.layer = layer
        self.up = jnp.zeros((out_features, rank))
        self.down = jax.random.normal(key, (rank, in_features)) / math.sqrt(in_features)

    def __call__(
        self, x: Float[Array, "*tokens in_features"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens out_features"], eqx.nn.State]:
        return self.merged()(x, state, key=key)

    def merged(self) -> LinearNorm | NormLinear:
        return eqx.tree_at(lambda layer: layer.weight, self.layer, self.layer.weight + self.up @ self.down)


def is_linear(node) -> bool:
    return isinstance(node, LinearNorm | NormLinear)


def is_lora(node) -> bool:
    return isinstance(node, LoRA)


def with_lora(model: levitax.LeViT, rank: int, key: PRNGKeyArray) -> levitax.LeViT:
    """Puts LoRA around each linear layer."""
    layers, tree = jax.tree.flatten(model, is_leaf=is_linear)
    keys = jax.random.split(key, len(layers))
    adapted = [
        LoRA(layer, rank, key=key) if is_linear(layer) else layer for layer, key in zip(layers, keys, strict=True)
    ]
    return tree.unflatten(adapted)


def merge(model: levitax.LeViT) -> levitax.LeViT:
    return jax.tree.map(lambda node: node.merged() if is_lora(node) else node, model, is_leaf=is_lora)


def lora_only(model: levitax.LeViT) -> levitax.LeViT:
    """Keeps the arrays to train, and replaces all others by `None`."""
    keep = lambda node: eqx.tree_at(lambda lora: lora.layer, trainable(node), None) if is_lora(node) else None
    return jax.tree.map(keep, model, is_leaf=is_lora)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        default="runs/digits/model.safetensors",
        help="of a model of the digits, such as `examples/train.py` writes",
    )
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("lora.onnx"), help="the ONNX file to write")
    arguments = parser.parse_args()
    model, state = levitax.load(arguments.weights)
    # Fixes the running statistics, so that the ways differ only in the arrays that they train.
    model = freeze_norms(model)
    adapted = with_lora(model, arguments.rank, jax.random.key(0))

    digits = data.digits()
    turn = lambda images: jnp.rot90(jnp.asarray(images), axes=(1, 2))
    images, labels = turn(digits.train_images), jnp.asarray(digits.train_labels)
    test_images = turn(digits.test_images)
    right = lambda predict: jnp.mean(jax.jit(jax.vmap(predict))(test_images).argmax(-1) == digits.test_labels)
    print(f"before: {right(levitax.fuse(model, state)):.1%} right")

    ways = {"head": (model, head_only), "LoRA": (adapted, lora_only), "all": (model, trainable)}
    step, learnt = make_step(), {}
    for name, (start, parameters) in ways.items():
        train_state = TrainState(start, state, optax.adam(3e-3), parameters=parameters, key=jax.random.key(1))
        for number in range(arguments.steps):
            chosen = jax.random.choice(jax.random.fold_in(jax.random.key(2), number), len(images), (64,), replace=False)
            train_state, _ = step(train_state, images[chosen], labels[chosen])
        learnt[name] = train_state.model
        count = levitax.count_parameters(parameters(start))
        print(f"{name}: {count:,} parameters trained, {right(levitax.fuse(merge(learnt[name]), state)):.1%} right")

    predict = levitax.fuse(merge(learnt["LoRA"]), state)
    logits = jax.jit(jax.vmap(predict))(test_images)
    apart = jax.jit(jax.vmap(levitax.Predictor(learnt["LoRA"], state)))(test_images)
    print(f"largest difference of a logit after merging and fusing: {jnp.abs(logits - apart).max():.0e}")
    path = levitax.export.to_onnx(predict, arguments.out)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": np.asarray(test_images)})
    print(f"largest difference of a logit in ONNX Runtime: {np.abs(logits - theirs).max():.0e}")


if __name__ == "__main__":
    main()
