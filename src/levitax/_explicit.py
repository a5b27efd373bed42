from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, auto_axes, AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def in_auto_mode(function: Callable[..., Any], out: PyTree[PartitionSpec], *arguments: PyTree) -> Any:
    """Calls `function(*arguments)` with Auto mesh axes: XLA chooses every layout, and no operation has to specify it.

    Changes nothing unless the arguments are on a mesh with Explicit axes, the kind that `jax.make_mesh` makes.

    **Arguments:**

    - `function`, `arguments`: the function and its arguments, PyTrees of arrays.
    - `out`: the layout of the results on an Explicit mesh, as a tree prefix.
    """
    mesh = explicit_mesh(arguments)
    if mesh is None:
        return function(*arguments)
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out)
    return auto_axes(function, axes=axes, out_sharding=shardings)(*arguments)


def explicit_mesh(tree: PyTree) -> AbstractMesh | None:
    """The mesh of the first array on a mesh with Explicit axes."""
    meshes = (jax.typeof(array).sharding.mesh for array in jax.tree.leaves(tree))
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def sum_over_axis(values: PyTree, axis_name: str | tuple[str, ...]) -> PyTree:
    """`jax.lax.psum(values, axis_name)`, also over a `jax.vmap` axis on an Explicit mesh, which JAX 0.12.0 cannot
    lower."""
    if explicit_mesh(values):
        return jax.tree.map(lambda array: jax.lax.all_gather(array, axis_name).sum(0), values)
    return jax.lax.psum(values, axis_name)


def first_axis(tree: PyTree) -> PartitionSpec:
    """The layout of the leading axis of the arrays, if they are on an Explicit mesh."""
    return PartitionSpec(*jax.typeof(jax.tree.leaves(tree)[0]).sharding.spec[:1])
