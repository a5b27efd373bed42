from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, auto_axes, AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def in_auto_mode(function: Callable[..., Any], out: PyTree[PartitionSpec], *arguments: PyTree) -> Any:
    """`function(*arguments)`, for PyTrees of arrays. If they lie on a mesh with Explicit axes, as `jax.make_mesh` makes
    it, the axes are Auto inside: XLA chooses how each array is laid out, and no operation has to say it.

    **Arguments:**

    - `function`, `arguments`: what is called, and with what.
    - `out`: how the results are laid out on an Explicit mesh: a tree whose leaves stand for all arrays below.
    """
    mesh = explicit_mesh(arguments)
    if mesh is None:
        return function(*arguments)
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out)
    return auto_axes(function, axes=axes, out_sharding=shardings)(*arguments)


def explicit_mesh(tree: PyTree) -> AbstractMesh | None:
    """The mesh of the first array that lies on one with Explicit axes."""
    meshes = (jax.typeof(array).sharding.mesh for array in jax.tree.leaves(tree))
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def sum_over_axis(values: PyTree, axis_name: str | tuple[str, ...]) -> PyTree:
    """`jax.lax.psum(values, axis_name)`, which JAX 0.12.0 cannot lower over an axis of `jax.vmap` on an Explicit
    mesh."""
    if explicit_mesh(values):
        return jax.tree.map(lambda array: jax.lax.all_gather(array, axis_name).sum(0), values)
    return jax.lax.psum(values, axis_name)


def first_axis(tree: PyTree) -> PartitionSpec:
    """How the leading axis of the arrays is spread over an Explicit mesh, if they lie on one."""
    return PartitionSpec(*jax.typeof(jax.tree.leaves(tree)[0]).sharding.spec[:1])
