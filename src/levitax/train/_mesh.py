import os
import re
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from .._array_checks import check_width
from .._batched import batch_size
from .._checks import as_integer
from .._keys import key_numbers, with_numbers


Tree = TypeVar("Tree")

_AXIS = "data"
# The number of processes that Slurm's srun and Open MPI's mpirun started together.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# All hosts of a TPU pod, separated by commas.
_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


def start_distributed(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects the processes of a run, one for each host or for each of its devices. Does nothing in a process that was
    started alone.

    Call it before making any array. Each argument may also come from the environment: `JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Without any of these, JAX detects the processes under Slurm (`srun`), Open
    MPI (`mpirun`) and on TPU pods that name their hosts in the environment. Elsewhere, call
    `jax.distributed.initialize()` instead.

    **Arguments:**

    - `coordinator_address`: `host:port` of the first process.
    - `num_processes`: the number of processes.
    - `process_id`: the number of this process, from 0.

    **Raises:** `TypeError` or `ValueError` if only some of the three are given, or one is invalid; `RuntimeError` from
    JAX if the other processes cannot be reached.
    """
    environment = os.environ.get
    given = {
        "coordinator_address": environment("JAX_COORDINATOR_ADDRESS") or None,
        "num_processes": _number("JAX_NUM_PROCESSES"),
        "process_id": _number("JAX_PROCESS_ID"),
    }
    arguments = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    given |= {name: value for name, value in arguments.items() if value is not None}
    missing = [name for name, value in given.items() if value is None]
    if not missing:
        _check_process(**given)
        jax.distributed.initialize(**given)
    elif len(missing) < len(given):
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in missing)} missing; each of several processes needs all three: "
            "`coordinator_address` (host:port of the first), `num_processes` and its own `process_id`, or "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment."
        )
    elif any(environment(name, "1") != "1" for name in _TASKS) or any("," in environment(name, "") for name in _HOSTS):
        jax.distributed.initialize()


def _number(name):
    """A number from the environment, or `None`."""
    text = os.environ.get(name)
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r} in the environment; expected a whole number.") from None


def _check_process(coordinator_address, num_processes, process_id):
    if not isinstance(coordinator_address, str) or not re.fullmatch(r".+:\d+", coordinator_address):
        raise ValueError(f"`coordinator_address` is {coordinator_address!r}; expected host:port of the first process.")
    count = as_integer("num_processes", num_processes)
    if as_integer("process_id", process_id, minimum=0) >= count:
        raise ValueError(f"`process_id` is {process_id} of {count} processes, which count from 0.")


def make_mesh() -> Mesh:
    """Makes a mesh of all devices, with one axis over which batches are spread. Devices of the same process are
    neighbours."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def in_auto(mesh: Mesh) -> Mesh:
    """The same devices with Auto axes, for which XLA chooses how arrays are laid out."""
    _check_mesh(mesh)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that each device holds whole: the train state."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a copy of each array of a PyTree on every device.

    **Arguments:**

    - `tree`: for example a train state. All processes must pass the same tree.
    - `mesh`: from [`levitax.train.make_mesh`][].

    **Returns:** the same tree, with its arrays on all devices.

    **Raises:** `TypeError` if `mesh` is not a mesh.
    """
    _check_mesh(mesh)
    put = lambda leaf: with_numbers(leaf, jax.device_put(key_numbers(leaf), replicated(mesh)))
    return jax.tree.map(lambda leaf: put(leaf) if isinstance(leaf, jax.Array | np.ndarray) else leaf, tree)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Spreads a batch over the devices.

    **Arguments:**

    - `batch`: a PyTree of arrays with a row for each example. Each process passes its own part; the parts, in the order
        of the processes, make the batch.
    - `mesh`: from [`levitax.train.make_mesh`][].

    **Returns:** the same tree, with arrays of all rows.

    **Raises:** `ValueError` if the arrays differ in their number of rows, the number of devices of this process does
    not divide it, or `mesh` has no axis "data"; `TypeError` if `mesh` is not a mesh.
    """
    _check_mesh(mesh)
    if _AXIS not in mesh.axis_names:
        raise ValueError(
            f"`mesh` has the axes {mesh.axis_names}; expected one called {_AXIS!r}, over which the batch is spread, as "
            "in `levitax.train.make_mesh()`."
        )
    rows, here = batch_size("batch", batch), mesh.local_mesh.shape[_AXIS]
    if rows % here:
        raise ValueError(
            f"The batch has {rows} rows in this process, not a multiple of its {here} devices. Choose a batch size "
            f"that is a multiple of all {mesh.shape[_AXIS]} devices."
        )
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))

    def put(path, rows):
        rows = np.asarray(rows)
        check_width(f"batch{jax.tree_util.keystr(path)}", rows)
        return jax.make_array_from_process_local_data(sharding, rows)

    return jax.tree_util.tree_map_with_path(put, batch)


def _check_mesh(mesh):
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"`mesh` is of type `{type(mesh).__name__}`; expected a `jax.sharding.Mesh`, such as "
            "`levitax.train.make_mesh()`."
        )


def gather_local(array: Shaped[Array, "rows ..."]) -> Shaped[np.ndarray, "local_rows ..."]:
    """Collects the rows on the devices of this process, in order: the inverse of [`levitax.train.shard_batch`][].

    **Arguments:**

    - `array`: `(rows, ...)`, spread over devices.

    **Returns:** `(local_rows, ...)`.

    **Raises:** `ValueError` if the rows themselves are split.
    """
    if array.ndim == 0 or any(shard.data.shape[1:] != array.shape[1:] for shard in array.addressable_shards):
        raise ValueError(
            f"`array`, of shape {array.shape}, has the sharding {array.sharding}; expected whole rows on each device, "
            "like `levitax.train.shard_batch` spreads them."
        )
    # Rows that several devices hold count once.
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
