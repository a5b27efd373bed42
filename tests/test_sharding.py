"""Training on several devices without `levitax.train.make_mesh`, and on eight devices."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import levitax
from levitax.train import cross_entropy, make_step, replicate, shard_batch, TrainState


# In explicit mode, the types of arrays contain their sharding, also on a single device.
EXPLICIT = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
AUTO = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
WHOLE, SPREAD = PartitionSpec(), PartitionSpec("data")


class Normed(eqx.Module):
    """A normalisation and a linear layer."""

    norm: levitax.nn.BatchNorm
    linear: eqx.nn.Linear

    def __init__(self, axis_name: Any = "batch", *, key):
        self.norm = levitax.nn.BatchNorm(8, axis_name=axis_name)
        self.linear = eqx.nn.Linear(8, 5, dtype=jnp.float32, key=key)

    def __call__(self, x, state, *, key=None):
        del key
        x, state = self.norm(x, state)
        return self.linear(x), state


@pytest.fixture
def made(key) -> tuple[Any, Any]:
    return eqx.nn.make_with_state(Normed)(key=key)


@pytest.fixture
def batch(images):
    return images(6, 8) * jnp.linspace(0.5, 3, 6, dtype=jnp.float32)[:, None], jnp.array([0, 1, 2, 3, 4, 0])


def mapped_by_hand(model):
    one = lambda x, state: model(x, state)
    return jax.vmap(one, in_axes=(0, None), out_axes=(0, None), axis_name="batch")


def loss_and_gradient(model, state, batch, over_batch=levitax.batched):
    """Returns loss, new statistics and gradient, as a training step of a user computes them."""

    def compute_loss(model):
        logits, new = over_batch(model)(batch[0], state)
        return cross_entropy(logits, batch[1]), new

    (loss, new), gradient = eqx.filter_value_and_grad(compute_loss, has_aux=True)(model)
    return loss, new, gradient


def only_arrays(tree):
    return eqx.filter(tree, eqx.is_array)


def put(tree, spec):
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(EXPLICIT, spec)), tree)


def first(tree):
    return jax.tree.map(lambda array: array[0], tree)


def by_pmap(model, state, batch):
    run = jax.pmap(lambda batch: only_arrays(loss_and_gradient(model, state, batch)), axis_name="data")
    return first(run(jax.tree.map(lambda array: array[None], batch)))


def by_pmap_with_arguments(model, state, batch):
    run = eqx.filter_pmap(loss_and_gradient, axis_name="data", in_axes=(None, None, 0))
    return first(only_arrays(run(model, state, jax.tree.map(lambda array: array[None], batch))))


def by_shard_map(model, state, batch):
    run = lambda batch: only_arrays(loss_and_gradient(model, state, batch))
    return jax.jit(jax.shard_map(run, mesh=AUTO, in_specs=(SPREAD,), out_specs=WHOLE, check_vma=False))(batch)


def on_an_explicit_mesh(model, state, batch):
    whole = lambda tree: eqx.combine(put(only_arrays(tree), WHOLE), tree)
    return only_arrays(eqx.filter_jit(loss_and_gradient)(whole(model), whole(state), put(batch, SPREAD)))


def with_the_batch_alone_on_an_explicit_mesh(model, state, batch):
    return only_arrays(eqx.filter_jit(loss_and_gradient)(model, state, put(batch, SPREAD)))


def mapped_by_hand_on_an_explicit_mesh(model, state, batch):
    whole = lambda tree: eqx.combine(put(only_arrays(tree), WHOLE), tree)
    run = eqx.filter_jit(partial(loss_and_gradient, over_batch=mapped_by_hand))
    return only_arrays(run(whole(model), whole(state), put(batch, SPREAD)))


MODES: list[Any] = [
    by_pmap,
    pytest.param(by_pmap_with_arguments, marks=pytest.mark.slow),
    by_shard_map,
    on_an_explicit_mesh,
    pytest.param(with_the_batch_alone_on_an_explicit_mesh, marks=pytest.mark.slow),
    pytest.param(mapped_by_hand_on_an_explicit_mesh, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("mode", MODES)
def test_other_ways_to_train_on_devices_compute_the_same(mode, made, batch, error):
    expected = only_arrays(eqx.filter_jit(loss_and_gradient)(made[0], made[1], batch))
    ours = mode(*made, batch)
    assert error(jax.tree.leaves(ours), jax.tree.leaves(expected)) < 1e-6


def test_a_shard_map_that_checks_types_is_refused_with_a_hint_to_a_mesh(made, batch):
    run = lambda batch: only_arrays(loss_and_gradient(made[0], made[1], batch))
    checked = jax.shard_map(run, mesh=AUTO, in_specs=(SPREAD,), out_specs=WHOLE)
    with pytest.raises(ValueError, match=r"cannot sum over the batch axis 'batch' .*`levitax\.train\.make_mesh`"):
        checked(batch)


@pytest.mark.parametrize("accumulate", (1, 2))
@pytest.mark.parametrize("map_devices", ("pmap", "shard_map"))
def test_steps_that_each_device_would_make_alone_are_refused(map_devices, accumulate, made, batch, key):
    optimizer = optax.sgd(0.1)
    arrays, rest = eqx.partition(TrainState(made[0], made[1], optimizer, key=key), eqx.is_array)
    step = make_step(accumulate=accumulate)
    run = lambda images, labels: only_arrays(step(eqx.combine(arrays, rest), images, labels))
    if map_devices == "pmap":
        mapped, batch = jax.pmap(run), jax.tree.map(lambda array: array[None], batch)
    else:
        mapped = jax.shard_map(run, mesh=AUTO, in_specs=(SPREAD, SPREAD), out_specs=WHOLE, check_vma=False)
    with pytest.raises(ValueError, match=r"inside `jax\.pmap` or `jax\.shard_map`.*`levitax\.train\.make_mesh`"):
        mapped(*batch)


IN_PARTS = {"accumulate": 2, "group_size": 3}


@pytest.mark.parametrize(
    ("keywords", "where"),
    [
        ({}, "all"),
        (IN_PARTS, "batch"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (({}, "batch"), ({}, "mesh"), (IN_PARTS, "all"))),
    ],
    ids=str,
)
def test_steps_on_an_explicit_mesh_equal_those_on_other_meshes(keywords, where, made, batch, key, error):
    optimizer = optax.sgd(0.1, momentum=0.9)

    def losses_and_arrays(spread, **mesh):
        train_state = TrainState(made[0], made[1], optimizer, ema_decay=0.9, key=key)
        if spread and where == "all":
            train_state = replicate(train_state, EXPLICIT)
        rows = shard_batch(batch, EXPLICIT) if spread and where != "mesh" else batch
        step = make_step(**keywords, **mesh)
        losses = []
        for _ in range(2):
            train_state, metrics = step(train_state, *rows)
            losses.append(metrics.loss)
        return losses, jax.tree.leaves(eqx.filter(train_state, eqx.is_inexact_array))

    expected = losses_and_arrays(spread=False)
    assert error(losses_and_arrays(spread=True, mesh=EXPLICIT), expected) < 1e-6


# JAX sets the number of devices when it starts, so this runs in a new process.
CODE = """
import equinox as eqx, jax, jax.numpy as jnp, levitax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

assert jax.device_count() == 8
jax.config.update("jax_default_matmul_precision", "highest")
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
model, state = eqx.nn.make_with_state(levitax.LeViT)(
    image_size=16, num_classes=5, stages=2, dim=(16, 24), depth=1, heads=(1, 2), patch_size=4, key_dim=8,
    key=jax.random.key(0),
)
images = 2 + jax.random.normal(jax.random.key(1), (16, 16, 16, 3))
# The images differ between devices, so the statistics of a part differ from those of the batch.
images = images * jnp.linspace(0.5, 3, 16)[:, None, None, None]
step = eqx.filter_jit(lambda model, state, images: levitax.batched(model)(images, state))


def statistics(state):
    is_norm = lambda node: isinstance(node, levitax.nn.BatchNorm)
    norms = filter(is_norm, jax.tree.leaves(model, is_leaf=is_norm))
    # Stacked: after a normalisation, the mean is zero except for rounding, so the variance sets the scale.
    return [jnp.stack(norm.running(jax.device_get(state))) for norm in norms]


def error(ours, theirs):
    pairs = zip(jax.tree.leaves(jax.device_get(ours)), jax.tree.leaves(jax.device_get(theirs)), strict=True)
    return np.max([abs(one - other).max() / abs(other).max() for one, other in pairs])


explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
alone = step(model, state, images)
together = step(*eqx.filter_shard((model, state), everywhere), eqx.filter_shard(images, spread))
assert len(together[0].classification.sharding.device_set) == 8
spread, everywhere = NamedSharding(explicit, P("data")), NamedSharding(explicit, P())
arrays, rest = eqx.partition((model, state), eqx.is_array)
typed = step(*eqx.combine(jax.device_put(arrays, everywhere), rest), jax.device_put(images, spread))
assert jax.typeof(typed[0].classification).sharding.spec == P("data", None)
for other in (together, typed):
    print(error(other[0], alone[0]), error(statistics(other[1]), statistics(alone[1])))


class Normed(eqx.Module):
    norm: levitax.nn.BatchNorm

    def __init__(self, axis_name):
        self.norm = levitax.nn.BatchNorm(3, axis_name=axis_name)

    def __call__(self, x, state, *, key=None):
        return self.norm(x, state)


def over(axis_name):
    model, state = eqx.nn.make_with_state(Normed)(axis_name)
    run = jax.pmap(lambda x: levitax.batched(model)(x, state), axis_name="data")
    outputs, new = run(images.reshape(8, 2, 256, 3))
    mean, var = new.get(model.norm.statistics)
    return outputs.reshape(16, 256, 3), mean, var


model, state = eqx.nn.make_with_state(Normed)("batch")
outputs, new = levitax.batched(model)(images.reshape(16, 256, 3), state)
mean, var = new.get(model.norm.statistics)
whole, part = over(("batch", "data")), over("batch")
# With a named axis, all devices have the statistics of all images. Without, each has those of its own images.
print(error(whole, (outputs, jnp.stack([mean] * 8), jnp.stack([var] * 8))), error(whole[1], part[1]))
"""


@pytest.mark.slow
def test_batch_statistics_over_eight_devices_are_those_of_one():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    *same, (whole, parts) = (list(map(float, line.split())) for line in result.stdout.splitlines())
    assert len(same) == 2 and max(outputs_and_statistics for line in same for outputs_and_statistics in line) < 1e-6
    assert whole < 1e-6 and parts > 0.1
