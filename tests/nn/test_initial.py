"""Initial weights, and what it costs to make and to fuse a model."""

import os
import subprocess
import sys
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax import nn


# More weights than are drawn at once.
SIZES: Any = {"image_size": 32, "num_classes": 160, "stages": 1, "dim": 128, "depth": 1, "heads": 2}


def make(key):
    return eqx.nn.make_with_state(levitax.LeViT)(**SIZES, key=key)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


@pytest.mark.parametrize(
    "key",
    [jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")],
    ids=("threefry", "raw", "rbg"),
)
def test_the_same_weights_come_out_under_jit(key):
    expected = bits(make(key))
    assert bits(eqx.filter_jit(make)(key)) == expected
    # The key as a constant of the program.
    assert bits(eqx.filter_jit(lambda: make(key))()) == expected


def test_the_same_weights_come_out_under_vmap_over_keys():
    keys = jax.random.split(jax.random.key(3), 2)
    stacked = eqx.filter_jit(eqx.filter_vmap(make))(keys)
    arrays = eqx.filter(stacked, eqx.is_array)
    assert [bits(jax.tree.map(itemgetter(index), arrays)) for index in range(2)] == [bits(make(key)) for key in keys]


def test_the_shapes_of_a_model_are_those_that_are_made():
    shapes = lambda tree: [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf) or hasattr(leaf, "dtype")
    ]
    key = jax.random.key(3)
    assert shapes(eqx.filter_eval_shape(make, key)) == shapes(make(key)) != []


def test_weights_are_uniform_as_in_pytorch():
    weight = np.asarray(nn.LinearNorm(100, 400, key=jax.random.key(0)).weight)
    in_bounds = weight * 10
    assert np.abs(in_bounds).max() <= 1 and np.abs(in_bounds).max() > 0.999
    # Five standard deviations of the moments of 40,000 draws.
    assert abs(in_bounds.mean()) < 5 * np.sqrt(1 / 3 / weight.size)
    assert abs((in_bounds**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / weight.size)
    # No block of draws is another one again.
    assert np.unique(weight).size > 0.99 * weight.size


def test_the_classifier_is_normal():
    weight = np.asarray(nn.NormLinear(100, 400, key=jax.random.key(0)).weight) / 0.02
    assert abs(weight.mean()) < 5 / np.sqrt(weight.size)
    assert abs((weight**2).mean() - 1) < 5 * np.sqrt(2 / weight.size)
    assert abs((weight**4).mean() - 3) < 5 * np.sqrt(96 / weight.size)


def test_layers_draw_different_weights():
    model, _ = make(jax.random.key(0))
    other, _ = make(jax.random.key(1))
    drawn = lambda model: [
        leaf for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)) if np.unique(leaf).size > 2
    ]
    weights = [set(np.asarray(weight).ravel()[:50].tolist()) for weight in drawn(model) + drawn(other)]
    assert len(weights) > 10
    for index, weight in enumerate(weights):
        assert all(len(weight & another) < 5 for another in weights[:index])


def test_another_model_is_made_and_fused_without_compiling(make, randomise):
    """XLA compiles for each shape, so that operations on weights would compile a program for each layer."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: compiled.append(event) if "backend_compile" in event else None
    )
    key = jax.random.key(0)
    levitax.fuse(*make())
    assert jax.jit(lambda x: x + 1)(jnp.zeros(7)).shape == (7,) and compiled
    compiled.clear()
    sizes: Any = {"image_size": 48, "num_classes": 7, "stages": 2, "dim": (24, 40), "depth": 2, "heads": 1}
    changes: list[Any] = [{}, {"distillation": True}, {"dtype": "bfloat16"}]
    for each in changes:
        levitax.fuse(*eqx.nn.make_with_state(levitax.LeViT)(**sizes, **each, key=key))
    assert compiled == []


CODE = """
import equinox as eqx
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import levitax

sizes = {"image_size": 16, "num_classes": 5, "stages": 1, "dim": 16, "depth": 1, "heads": 1, "patch_size": 4}
make = lambda key: eqx.nn.make_with_state(levitax.LeViT)(**sizes, key=key)
arrays = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))
key = jax.random.key(0)
mesh = jax.make_mesh((2,), ("data",))
expected = arrays(make(key))
drawn = lambda tree: [leaf for leaf in arrays(tree) if np.unique(leaf).size > 2]
for place in (jax.devices()[1], NamedSharding(mesh, PartitionSpec())):
    there = make(jax.device_put(key, place))
    devices = place.device_set if isinstance(place, NamedSharding) else {place}
    assert all(np.array_equal(one, other) for one, other in zip(arrays(there), expected, strict=True))
    assert all(leaf.sharding.device_set == devices for leaf in drawn(there))
    predict = levitax.fuse(*eqx.filter_shard(there, place))
    assert all(leaf.sharding.device_set == devices for leaf in arrays(predict)), place
    assert jax.vmap(predict)(np.zeros((2, 16, 16, 3), np.float32)).shape == (2, 5)
"""


@pytest.mark.slow
def test_weights_are_made_and_fused_where_the_key_and_the_model_are():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
