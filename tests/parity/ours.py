"""What levitax computes, in the form of `references.py`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import levitax
from levitax.train import cross_entropy

from . import cases, layouts
from .layouts import Arrays, Layout


def make(layout: Layout, arrays: Arrays | None = None, **keywords):
    """A model with the reference's weights and statistics; by default with the numbers that belong to their names."""
    skeleton = eqx.filter_eval_shape(eqx.nn.make_with_state(levitax.LeViT), key=jax.random.key(0), **keywords)
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    model, state = jax.tree.map(zeros, skeleton)
    return layouts.fill(model, state, layout, layouts.generate(model, layout) if arrays is None else arrays)


@eqx.filter_jit
def _evaluate(model, state, images):
    def one(image, state):
        maps, _ = model.features(image, state)
        logits, _ = model(image, state)
        return (maps, logits), state

    (maps, logits), _ = levitax.batched(lambda image, state, key: one(image, state))(images, state)
    return maps, logits


def evaluate(model, state, images: np.ndarray) -> Arrays:
    """The map at the end of each stage, flat over the tokens, and the logits, in inference."""
    maps, logits = _evaluate(eqx.nn.inference_mode(model), state, jnp.asarray(images))
    record = {f"stage{index}": value.reshape(len(images), -1, value.shape[-1]) for index, value in enumerate(maps)}
    return {name: np.asarray(value) for name, value in {**record, "logits": logits}.items()}


def train(model, state, images: np.ndarray, labels: np.ndarray) -> tuple[Arrays, Arrays, Arrays]:
    """Plain gradient descent on one batch: first gradients and final arrays by path, losses and final logits."""
    optimizer = optax.sgd(cases.LEARNING_RATE)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_and_grad(model, state):
        outputs, state = levitax.batched(model)(jnp.asarray(images), state)
        return cross_entropy(outputs, jnp.asarray(labels), label_smoothing=cases.SMOOTHING), state

    @eqx.filter_jit
    def step(model, state, opt_state):
        (loss, state), gradients = loss_and_grad(model, state)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return eqx.apply_updates(model, updates), state, opt_state, loss, gradients

    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    first: Arrays = {}
    losses = []
    for index in range(cases.TRAINING_STEPS):
        model, state, opt_state, loss, gradients = step(model, state, opt_state)
        if index == 0:
            first = layouts.read(gradients, None)
        losses.append(float(loss))
    logits = evaluate(model, state, images)["logits"]
    return first, layouts.read(model, state), {"losses": np.array(losses), "logits": logits}
