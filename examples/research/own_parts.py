"""An experiment with parts of its own: group normalisation, signed attention biases, and LoRA on the queries.

    python examples/research/own_parts.py

The model learns the digits for 20 steps. Then it is fused, exported to ONNX, and compared with ONNX Runtime. beartype
checks the shapes of the parts.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped, PRNGKeyArray

import levitax
from levitax import data, nn
from levitax.train import make_step, TrainState


typed = jaxtyped(typechecker=beartype)


class SignedBias(eqx.Module):
    """An attention bias for each signed offset: left and right differ."""

    table: Float[Array, "heads row_offsets column_offsets"]
    grid: tuple[int, int] = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    @typed
    def __init__(self, heads: int, grid: tuple[int, int], *, stride: int, key: PRNGKeyArray):
        self.table = 0.02 * jax.random.normal(key, (heads, 2 * grid[0] - 1, 2 * grid[1] - 1))
        self.grid, self.stride = grid, stride

    @typed
    def __call__(self) -> Float[Array, "heads queries tokens"]:
        rows, columns = (np.arange(0, size, self.stride)[:, None] - np.arange(size) for size in self.grid)
        # A negative offset counts from the end of the table.
        bias = self.table[:, rows[:, None, :, None], columns[None, :, None, :]]
        return bias.reshape(len(bias), len(rows) * len(columns), -1)


class QueryLoRA(eqx.Module):
    """A linear layer in which the weights of the queries, the first channels of each head, change only by low-rank
    updates."""

    linear: nn.LinearNorm
    up: Float[Array, "heads key_dim rank"]
    down: Float[Array, "rank dim"]

    @typed
    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens channels"], eqx.nn.State]:
        return self.merged()(x, state, key=key)

    def merged(self) -> nn.LinearNorm:
        heads, key_dim, _ = self.up.shape
        weight = self.linear.weight.reshape(heads, -1, self.down.shape[1])
        # No gradient reaches the frozen weights. Weight decay would still shrink them, so train without it.
        queries = jax.lax.stop_gradient(weight[:, :key_dim]) + self.up @ self.down
        weight = jnp.concatenate([queries, weight[:, key_dim:]], axis=1).reshape(self.linear.weight.shape)
        return eqx.tree_at(lambda linear: linear.weight, self.linear, weight)


def with_lora(attention: nn.Attention, *, rank: int, key: PRNGKeyArray) -> nn.Attention:
    project_in = attention.project_in
    # A downsampling block has a layer for the queries, the others one for queries, keys and values.
    name = "query" if isinstance(project_in, nn.SubsampledQueryKeyValue) else "linear"
    linear = getattr(project_in, name)
    up = jnp.zeros((project_in.heads, project_in.key_dim, rank))
    down = jax.random.normal(key, (rank, linear.weight.shape[1])) / math.sqrt(linear.weight.shape[1])
    return eqx.tree_at(lambda layer: getattr(layer.project_in, name), attention, QueryLoRA(linear, up, down))


def main() -> None:
    model_key, lora_key, train_key = jax.random.split(jax.random.key(0), 3)
    model, state = eqx.nn.make_with_state(levitax.LeViT)(
        image_size=28, in_channels=1, num_classes=10, patch_size=4, stages=2, dim=(64, 96), depth=1, heads=(2, 3),
        key_dim=16, norm=lambda channels: eqx.nn.GroupNorm(8, channels), attention_bias=SignedBias,
        distillation=False, key=model_key,
    )  # fmt: skip
    attentions = lambda model: [block.attention for stage in model.stages for block in stage.blocks]
    keys = jax.random.split(lora_key, len(attentions(model)))
    adapted = [with_lora(layer, rank=4, key=key) for layer, key in zip(attentions(model), keys, strict=True)]
    model = eqx.tree_at(attentions, model, adapted)

    digits = data.digits()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    train_state, step, losses = TrainState(model, state, optax.adam(3e-3), key=train_key), make_step(), []
    for number in range(20):
        chosen = jax.random.choice(jax.random.fold_in(train_key, number), len(images), (100,), replace=False)
        train_state, metrics = step(train_state, images[chosen], labels[chosen])
        losses.append(metrics.loss)
    print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last")

    is_lora = lambda node: isinstance(node, QueryLoRA)
    merge = lambda node: node.merged() if is_lora(node) else node
    predict = levitax.fuse(jax.tree.map(merge, train_state.model, is_leaf=is_lora), train_state.state)
    print(f"left by `fuse`: {sorted({kind.__name__ for kind in predict.unfused.values()})}")
    logits = jax.jit(jax.vmap(predict))(digits.test_images)
    print(f"test digits: {np.mean(logits.argmax(-1) == digits.test_labels):.1%} right")

    path = levitax.export.to_onnx(predict, "own_parts.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": digits.test_images})
    print(f"largest difference of a logit in ONNX Runtime: {np.abs(logits - theirs).max():.0e}")


if __name__ == "__main__":
    main()
