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
# How many processes were started together, by Slurm's srun and Open MPI's mpirun.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# Of TPU pods: all hosts, with commas in between.
_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


def start_distributed(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run, one for each host or for each of its devices. A process that was started alone goes
    on alone.

    To be called before any array is made. Each argument can also come from the environment, as
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Without any, JAX finds out by itself under
    Slurm (`srun`), Open MPI (`mpirun`) and on TPU pods that name their hosts in the environment. Elsewhere, call
    `jax.distributed.initialize()` in place of this.

    **Arguments:**

    - `coordinator_address`: `host:port` of the first process.
    - `num_processes`: how many there are.
    - `process_id`: which one this is, from 0.

    **Raises:** `TypeError` or `ValueError` if some of the three are known and others not, or one is not what it says;
    `RuntimeError` from JAX if the others cannot be reached.
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
            f"{' and '.join(f'`{name}`' for name in missing)} missing; of several processes each needs all three: "
            "`coordinator_address` (host:port of the first), `num_processes` and its own `process_id`, or "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment."
        )
    elif any(environment(name, "1") != "1" for name in _TASKS) or any("," in environment(name, "") for name in _HOSTS):
        jax.distributed.initialize()


def _number(name):
    """A number of the environment, or `None`."""
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
    """All devices of all processes in a row, those of each process together, over which batches are spread."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def in_auto(mesh: Mesh) -> Mesh:
    """The same devices, with axes along which XLA chooses how arrays are laid out."""
    _check_mesh(mesh)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what each device has whole: models and their training state."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a copy of each array of a PyTree on every device.

    **Arguments:**

    - `tree`: such as a train state. In several processes, all must pass the same.
    - `mesh`: from [`levitax.train.make_mesh`][].

    **Returns:** the same tree, its arrays on the devices.

    **Raises:** `TypeError` if `mesh` is no mesh.
    """
    _check_mesh(mesh)
    put = lambda leaf: with_numbers(leaf, jax.device_put(key_numbers(leaf), replicated(mesh)))
    return jax.tree.map(lambda leaf: put(leaf) if isinstance(leaf, jax.Array | np.ndarray) else leaf, tree)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Spreads a batch over the devices.

    **Arguments:**

    - `batch`: a PyTree of arrays with a row an example. In several processes, each passes its own part, and the parts
        in the order of the processes are the batch.
    - `mesh`: from [`levitax.train.make_mesh`][].

    **Returns:** the same tree, of arrays of all rows.

    **Raises:** `ValueError` if the arrays have not a row for each example, the devices of this process do not divide
    the rows, or `mesh` has no axis "data"; `TypeError` if it is no mesh.
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
            f"The batch has {rows} rows in this process, which its {here} devices do not divide. Choose a batch size "
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
            f"`mesh` is of type `{type(mesh).__name__}`; expected the `jax.sharding.Mesh` that "
            "`levitax.train.make_mesh()` makes."
        )


def gather_local(array: Shaped[Array, "rows ..."]) -> Shaped[np.ndarray, "local_rows ..."]:
    """The rows that lie on the devices of this process, in order: what [`levitax.train.shard_batch`][] was given.

    **Arguments:**

    - `array`: `(rows, ...)`, spread over devices.

    **Returns:** `(local_rows, ...)`.

    **Raises:** `ValueError` if the rows themselves are split.
    """
    if array.ndim == 0 or any(shard.data.shape[1:] != array.shape[1:] for shard in array.addressable_shards):
        raise ValueError(
            f"`array`, of shape {array.shape}, lies on its devices as {array.sharding}; expected whole rows on each, "
            "as `levitax.train.shard_batch` spreads them."
        )
    # Where several devices have the same rows, once.
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
