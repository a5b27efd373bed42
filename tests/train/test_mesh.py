import os
import subprocess
import sys
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from levitax.train import make_mesh, replicate, shard_batch, start_distributed
from levitax.train._mesh import gather_local


VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in (*VARIABLES, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def initialized(monkeypatch) -> list[dict[str, object]]:
    """The arguments of every call of `jax.distributed.initialize`."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **keywords: calls.append(keywords))
    return calls


def test_a_process_that_was_started_alone_goes_on_alone(initialized, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    start_distributed()
    assert initialized == []


def test_flags_override_the_environment(initialized, monkeypatch):
    for name, value in zip(VARIABLES, ("elsewhere:1", "3", "0"), strict=True):
        monkeypatch.setenv(name, value)
    start_distributed(process_id=2)
    start_distributed("here:1", 4, 0)
    assert initialized == [
        {"coordinator_address": "elsewhere:1", "num_processes": 3, "process_id": 2},
        {"coordinator_address": "here:1", "num_processes": 4, "process_id": 0},
    ]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SLURM_STEP_NUM_TASKS", "2"), ("OMPI_COMM_WORLD_SIZE", "8"), ("TPU_WORKER_HOSTNAMES", "one,other")],
)
def test_jax_detects_the_processes_of_a_cluster_automatically(variable, value, initialized, monkeypatch):
    monkeypatch.setenv(variable, value)
    start_distributed()
    assert initialized == [{}]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("here:1", 0, 0), "`num_processes` is 0; expected an integer of at least 1"),
        (("here:1", 2, 2), "`process_id` is 2 of 2 processes, which count from 0"),
        (("here:1", 2, -1), "`process_id` is -1; expected an integer of at least 0"),
        (("here:1", 2, True), "`process_id` is True; expected an integer of at least 0"),
        (("", 2, 0), "`coordinator_address` is ''; expected host:port"),
        # An empty address, as from an unset shell variable.
        (("", None, None), "`num_processes` and `process_id` missing"),
    ],
)
def test_processes_are_counted(arguments, message, initialized):
    with pytest.raises((TypeError, ValueError), match=message):
        start_distributed(*arguments)
    assert initialized == []


def test_missing_arguments_are_named(initialized):
    with pytest.raises(
        ValueError, match=r"^`coordinator_address` and `process_id` missing; .* JAX_COORDINATOR_ADDRESS"
    ):
        start_distributed(num_processes=2)
    assert initialized == []


def test_keys_and_numbers_are_replicated_and_nothing_else_changes(key):
    tree = {"key": key, "array": jnp.arange(3), "numpy": np.ones(2, np.float32), "name": "x", "none": None}
    tree = replicate(tree, make_mesh())
    assert jnp.array_equal(jax.random.key_data(tree["key"]), jax.random.key_data(key))
    assert tree["array"].sharding.is_fully_replicated and isinstance(tree["numpy"], jax.Array)
    assert tree["name"] == "x" and tree["none"] is None


def test_sharded_arrays_are_gathered_again(images):
    batch = np.asarray(images(4, 3, 3, 1))
    assert np.array_equal(gather_local(shard_batch(batch, make_mesh())), batch)


@pytest.mark.usefixtures("unchecked")
def test_values_that_cannot_be_sharded(images):
    batch, mesh = np.asarray(images(4, 3, 3, 1)), make_mesh()
    with pytest.raises(
        ValueError, match=r"`batch` has arrays of shapes \(4, 3, 3, 1\), \(3,\); expected a leading axis"
    ):
        shard_batch((batch, np.arange(3)), mesh)
    with pytest.raises(ValueError, match=r"`mesh` has the axes \('x',\); expected one called 'data'.*make_mesh\(\)"):
        shard_batch(batch, jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,)))
    for put in (shard_batch, replicate):
        with pytest.raises(
            TypeError, match=r"`mesh` is of type `NoneType`; expected .*`levitax\.train\.make_mesh\(\)`"
        ):
            put(batch, cast(Any, None))


# JAX sets the number of devices when it starts, so this runs in a new process.
EIGHT_DEVICES = """
import equinox as eqx, jax, jax.numpy as jnp, levitax, numpy as np, optax
from levitax.train import make_mesh, make_step, replicate, shard_batch, TrainState
from levitax.train._mesh import gather_local

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)
mesh = make_mesh()
assert mesh.size == 8
model, state = eqx.nn.make_with_state(levitax.LeViT)(
    image_size=8, num_classes=5, stages=1, dim=16, depth=1, heads=1, patch_size=4, key_dim=8, key=jax.random.key(0)
)
# The images differ between devices, so the statistics of a part differ from those of the batch.
images = np.array(jax.random.normal(jax.random.key(1), (16, 8, 8, 3))) * np.linspace(0.5, 3, 16)[:, None, None, None]
batch = images.astype(np.float32), np.arange(16) % 5
optimizer = optax.sgd(0.1)


def losses(mesh, **keywords):
    train_state = TrainState(model, state, optimizer, ema_decay=0.9, key=jax.random.key(2))
    step = make_step(mesh=mesh, **keywords)
    put = lambda batch: batch
    if mesh is not None:
        train_state, put = replicate(train_state, mesh), lambda batch: shard_batch(batch, mesh)
    values = []
    for _ in range(3):
        train_state, metrics = step(train_state, *put(batch))
        values.append(float(metrics.loss))
    if mesh is not None:
        arrays = jax.tree.leaves(eqx.filter(train_state, eqx.is_array))
        assert all(array.sharding.is_fully_replicated for array in arrays)
    return np.array(values)


spread_out = shard_batch(batch, mesh)
assert len(spread_out[0].sharding.device_set) == 8
assert all(np.array_equal(gather_local(one), other) for one, other in zip(spread_out, batch, strict=True))
for keywords in ({}, {"group_size": 2}, {"accumulate": 2}, {"accumulate": 2, "group_size": 4}):
    alone, together = losses(None, **keywords), losses(mesh, **keywords)
    print(np.abs(together / alone - 1).max(), alone[0])
try:
    shard_batch(images[:12], mesh)
except ValueError as error:
    print(error)
columns = jax.device_put(np.ones((2, 8)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data")))
try:
    gather_local(columns)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_over_eight_devices_steps_are_those_of_one():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    *lines, of_rows, of_columns = result.stdout.splitlines()
    errors, first_losses = np.array([line.split() for line in lines], np.float64).T
    assert len(errors) == 4 and errors.max() < 1e-5
    # Statistics of groups or microbatches give other losses.
    assert abs(first_losses[1:] / first_losses[0] - 1).min() > 1e-4
    assert "`array`, of shape (2, 8), has the sharding" in of_columns and "shard_batch" in of_columns
    assert "12 rows in this process, not a multiple of its 8 devices" in of_rows and "multiple of all 8" in of_rows
