"""Wrong keys, for every function that takes one."""

import re
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import levitax
from levitax import nn
from levitax.data import Preprocessing
from levitax.train import mix, prepare, random_affine, random_erase, RECIPES, TrainState
from tests.equality import tree_equal


pytestmark = pytest.mark.usefixtures("unchecked")

# The value, the type of the error, and a part of its message.
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a seed": (0, TypeError, "`key` is 0; expected a JAX random key, such as `jax.random.key(0)`"),
    "another seed": (42, TypeError, "`key` is 42; expected a JAX random key, such as `jax.random.key(42)`"),
    "a number": (0.5, TypeError, "`key` is 0.5; expected a JAX random key, such as `jax.random.key(0)`"),
    "a flag": (True, TypeError, "`key` is True; expected a JAX random key, such as `jax.random.key(0)`"),
    "a string": ("key", TypeError, "`key` is of type `str`; expected a JAX random key"),
    "a seed in an array": (np.array(0), TypeError, "`key` is an array of int64; expected a JAX random key"),
    "floats": (jnp.zeros(2, jnp.float32), TypeError, "`key` is an array of float32; expected a JAX random key"),
    "a generator": (np.random.default_rng(0), TypeError, "`key` is of type `Generator`; expected a JAX random key"),
    "keys": (
        jax.random.split(jax.random.key(0), 3),
        ValueError,
        "`key` is an array of keys of shape (3,); expected one",
    ),
    "half a key": (np.zeros(1, np.uint32), TypeError, "`key` is an array of shape (1,); expected 2 numbers per key"),
    "old keys": (np.zeros((3, 2), np.uint32), ValueError, "`key` is an array of keys of shape (3,); expected one key"),
}

IMAGE: Any = np.zeros((16, 16, 3), np.float32)


def attention(key):
    return nn.Attention(8, (2, 2), heads=1, key_dim=4, value_dim=4, key=key)


# Everything that takes a key and needs it.
TAKES: dict[str, Any] = {
    "LeViT": lambda key, small: levitax.LeViT(**small, key=key),
    "levit_128s": lambda key, small: levitax.levit_128s(key=key),
    "create_model": lambda key, small: levitax.create_model("levit_256", key=key),
    "LinearNorm": lambda key, small: nn.LinearNorm(4, 4, key=key),
    "NormLinear": lambda key, small: nn.NormLinear(4, 4, key=key),
    "ConvNorm": lambda key, small: nn.ConvNorm(4, 4, key=key),
    "MLP": lambda key, small: nn.MLP(4, 4, key=key),
    "Attention": lambda key, small: attention(key),
    "AttentionBias": lambda key, small: nn.AttentionBias(1, (2, 2), key=key),
    "Stem": lambda key, small: nn.Stem(3, (4, 8), key=key),
    "DistilledHead": lambda key, small: nn.DistilledHead(4, 4, key=key),
    "random_affine": lambda key, small: random_affine(IMAGE, max_shift=1, key=key),
    "random_erase": lambda key, small: random_erase(IMAGE, key=key),
    "mix": lambda key, small: mix(IMAGE[None], IMAGE[None], key=key),
    "prepare": lambda key, small: prepare(
        IMAGE[None].astype(np.uint8), IMAGE[None], RECIPES["digits"], preprocessing=Preprocessing(), key=key
    ),
}


@pytest.mark.parametrize(("value", "kind", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_values_that_are_not_keys_are_refused(take, value, kind, message, small):
    with pytest.raises(kind, match=re.escape(message)):
        take(value, small)


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_none_is_refused_where_a_key_is_needed(take, small):
    with pytest.raises(TypeError, match=r"`key` is None; expected a JAX random key, such as `jax\.random\.key\(0\)`"):
        take(None, small)


@pytest.fixture
def model_and_state(make):
    return make(dropout=0.1, drop_path=0.1)


@pytest.mark.parametrize(("value", "kind", "message"), WRONG.values(), ids=WRONG)
def test_values_that_are_not_keys_are_refused_in_calls(value, kind, message, model_and_state):
    model, state = model_and_state
    inference, block = eqx.nn.inference_mode(model), model.stages[0].blocks[0]
    tokens = jnp.zeros((16, 16))
    for call in (
        lambda: inference(jnp.asarray(IMAGE), state, key=value),
        lambda: inference.features(jnp.asarray(IMAGE), state, key=value),
        lambda: block(tokens, state, key=value),
        lambda: block.attention(tokens, state, key=value),
        lambda: block.mlp(tokens, state, key=value),
        lambda: block.drop_path(tokens, key=value),
        lambda: levitax.weights.adapt(model, state, num_classes=3, key=value),
        lambda: levitax.load(levitax.weights.state_dict(model, state, layout="levitax"), key=value),
        lambda: TrainState(model, state, optax.sgd(0.1), key=value),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            call()


def test_keys_of_a_batch(model_and_state):
    model, state = model_and_state
    images = jnp.zeros((2, 16, 16, 3))
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(
        ValueError, match=r"array of keys of shape \(3,\) for a batch of 2; expected one key, or one per example"
    ):
        levitax.batched(model)(images, state, key=keys)
    with pytest.raises(TypeError, match=r"`key` is 0; expected .*`jax\.random\.key\(0\)`"):
        levitax.batched(model)(images, state, key=cast(Any, 0))


@pytest.mark.parametrize("key", (jax.random.key(1), jax.random.PRNGKey(1), np.array([0, 1], np.uint32)), ids=repr)
def test_keys_of_both_kinds_are_keys(key):
    expected = nn.LinearNorm(2, 2, key=jax.random.key(1))
    assert tree_equal(nn.LinearNorm(2, 2, key=key).weight, expected.weight)
