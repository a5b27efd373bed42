"""Typed code of a user, which nothing runs. Pyright checks what it infers from each call."""

from collections.abc import Callable
from typing import Any, assert_type

import equinox as eqx
import jax
import optax

import levitax
from levitax.nn import DistilledLogits


def inference(images: jax.Array, key: jax.Array) -> None:
    model, state = levitax.levit_128s(key=key)
    assert_type(model, levitax.LeViT)
    logits, state = levitax.batched(model)(images, state)
    assert_type(logits, jax.Array | DistilledLogits)
    assert_type(state, eqx.nn.State)
    assert_type(model(images[0], state)[0], jax.Array | DistilledLogits)
    maps, state = levitax.batched(model.features)(images, state)
    assert_type(maps, tuple[jax.Array, ...])
    assert_type(model.classify(maps[-1][0], state)[0], jax.Array | DistilledLogits)
    assert_type(model.stages[0].blocks[0].mlp.expand.weight, jax.Array)
    predict = levitax.fuse(model, state)
    assert_type(predict, levitax.Predictor[levitax.LeViT])
    assert_type(predict(images[0]), jax.Array)
    assert_type(jax.vmap(predict)(images), jax.Array)
    assert_type(predict.unfused, dict[str, type])


class Doubled(eqx.Module):
    backbone: levitax.LeViT

    def __call__(
        self, image: jax.Array, state: eqx.nn.State, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.backbone(image, state, key=key)
        assert isinstance(x, jax.Array)
        return 2 * x, state


def composition(model: Doubled, state: eqx.nn.State, images: jax.Array) -> levitax.Predictor[Callable[..., Any]]:
    assert_type(levitax.batched(model)(images, state)[0], jax.Array)
    predict = levitax.fuse(model, state)
    assert_type(predict, levitax.Predictor[Doubled])
    return predict  # Covariant.


def training(model: levitax.LeViT, state: eqx.nn.State, images: Any, labels: Any, key: jax.Array) -> None:
    train_state = levitax.train.TrainState(model, state, optax.adam(1e-3), key=key)
    assert_type(train_state.model, levitax.LeViT)
    train_state, metrics = levitax.train.make_step()(train_state, images, labels)
    assert_type(train_state.model, levitax.LeViT)
    assert_type(metrics, levitax.train.Metrics)


def surgery(key: jax.Array) -> None:
    model, _ = levitax.levit_128s(
        activation=jax.nn.gelu, norm=lambda channels, key: eqx.nn.GroupNorm(8, channels), key=key
    )
    assert_type(model.config.head_dropout, float)
