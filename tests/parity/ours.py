"""The computations of levitax, with the interface of `references.py`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import levitax
from levitax.train import cross_entropy
from levitax.weights import LayoutName

from . import cases, numbers
from .numbers import Arrays


KEY = jax.random.key(0)


def generate(layout: LayoutName, **keywords) -> Arrays:
    """Returns arrays under the reference's names, with the numbers of these names."""
    model, state = _zeros(**keywords)
    arrays = levitax.weights.state_dict(model, state, layout=layout)
    return {name: numbers.tensor(name, array.shape) for name, array in arrays.items() if array.dtype == np.float32}


def load(arrays: Arrays, **keywords) -> tuple[Any, eqx.nn.State]:
    """Makes a model with the reference's weights and statistics."""
    model, state = _zeros(**keywords)
    return levitax.weights.load_into(model, state, arrays)


def make(layout: LayoutName, **keywords) -> tuple[Any, eqx.nn.State]:
    """Makes a model with the numbers of the reference's names."""
    return load(generate(layout, **keywords), **keywords)


def write(layout: LayoutName, variant: str) -> Arrays:
    """Returns a variant with two heads and the numbers of timm's names, as levitax writes it in a layout."""
    model, state = make("timm", **{**levitax.VARIANTS[variant], "distillation": True})
    return levitax.weights.state_dict(model, state, layout=layout)


def by_path(arrays: Arrays, **keywords) -> Arrays:
    """Returns the reference's arrays under the paths of levitax."""
    model, state = load(arrays, **keywords)
    return levitax.weights.state_dict(model, state, layout="levitax")


def _zeros(**keywords) -> tuple[levitax.LeViT, eqx.nn.State]:
    skeleton = eqx.filter_eval_shape(eqx.nn.make_with_state(levitax.LeViT), key=jax.random.key(0), **keywords)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    # Of NumPy, because JAX compiles `jnp.zeros` for each shape.
    zeros = lambda shape: jax.device_put(np.zeros(shape.shape, shape.dtype))
    return jax.tree.map(lambda leaf: zeros(leaf) if is_shape(leaf) else leaf, skeleton)


@eqx.filter_jit
def _evaluate(model, state, images):
    def one(image, state):
        maps, _ = model.features(image, state)
        logits, _ = model(image, state)
        return (maps, logits), state

    (maps, logits), _ = levitax.batched(lambda image, state, key: one(image, state))(images, state)
    return maps, logits


def evaluate(model, state, images: np.ndarray) -> Arrays:
    """Returns the map at the end of each stage, flat over the tokens, and the logits, in inference."""
    maps, logits = _evaluate(eqx.nn.inference_mode(model), state, jnp.asarray(images))
    record = {f"stage{index}": value.reshape(len(images), -1, value.shape[-1]) for index, value in enumerate(maps)}
    return {name: np.asarray(value) for name, value in {**record, "logits": logits}.items()}


def classify(model, state, record: Arrays) -> np.ndarray:
    """Returns the logits of recorded maps, in inference. The network before the head is not compiled again."""
    config = model.config
    maps = record[f"stage{config.stages - 1}"].reshape(-1, *config.grid(-1), config.dim[-1])
    model = eqx.nn.inference_mode(model)
    return np.asarray(eqx.filter_jit(jax.vmap(lambda features: model.classify(features, state)[0]))(maps))


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
            first = _gradients_by_path(gradients)
        losses.append(float(loss))
    logits = evaluate(model, state, images)["logits"]
    return (
        first,
        levitax.weights.state_dict(model, state, layout="levitax"),
        {"losses": np.array(losses), "logits": logits},
    )


def _gradients_by_path(gradients) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(gradients, eqx.is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
