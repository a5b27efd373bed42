from collections.abc import Callable
from typing import Protocol, runtime_checkable, TypeVar

import equinox as eqx
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from ._checks import as_integer
from ._explicit import first_axis, in_auto_mode
from ._fuse import Predictor
from ._keys import keys_of_batch
from ._model_checks import check_callable


Output_co = TypeVar("Output_co", covariant=True)


@runtime_checkable
class Batched(Protocol[Output_co]):
    """What `batched` returns."""

    def __call__(
        self, images: PyTree, state: eqx.nn.State, *, key: PRNGKeyArray | Key[Array, " batch"] | None = None
    ) -> tuple[Output_co, eqx.nn.State]: ...


def batched(
    model: Callable[..., tuple[Output_co, eqx.nn.State]], *, group_size: int | None = None
) -> Batched[Output_co]:
    """Maps a model over a batch with `jax.vmap`: `logits, state = batched(model)(images, state, key=key)`.

    The axis is named "batch", as every [`levitax.nn.BatchNorm`][] of the model expects. In training, the batch
    statistics cover the whole batch, even if `jax.jit` spreads it over several devices, as with
    [`levitax.train.make_mesh`][]. Inside `jax.pmap` or `jax.shard_map`, each device has its own.

    **Arguments:**

    - `model`: called as `model(image, state, key=key) -> (output, state)`: a [`levitax.LeViT`][], its `features`
        method, or a module of your own that contains one.
    - `group_size`: compute the batch statistics over groups of this many consecutive images, like data-parallel
        training without synchronised statistics (256 per device in the official training). The running statistics
        move by the mean over the groups. By default, the whole batch is one group.

    **Returns:** a function of a batch, the state and optionally a key. Every array in its first argument has a leading
    axis. The key is one key, which is split over the batch, or an array with one key per example. The function returns
    the outputs, with a leading axis, and one new state.

    **Raises:** `TypeError` for a [`levitax.Predictor`][] or a model that cannot be called; `TypeError` or `ValueError`
    if `group_size` is not a positive integer. The function raises `TypeError` or `ValueError` for arrays of different
    lengths, a batch that `group_size` does not divide, an invalid key, and an empty batch in training.
    """
    if isinstance(model, Predictor):
        raise TypeError("`model` is a `Predictor`, which takes no state: for a batch, use `jax.vmap(predict)(images)`.")
    check_callable("model", model, "a model, or a function like one")
    if group_size is not None:
        as_integer("group_size", group_size)

    arrays, rest = eqx.partition(model, eqx.is_array)

    def over_batch(arrays, images, state, keys):
        one = lambda image, state, key: eqx.combine(arrays, rest)(image, state, key=key)
        return jax.vmap(one, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")(images, state, keys)

    def over_groups(arrays, images, state, keys):
        size = batch_size("images", images)
        # An empty batch has no groups. It is valid in inference, which needs none.
        if group_size is None or not size:
            return over_batch(arrays, images, state, keys)
        if size % group_size:
            raise ValueError(f"`group_size` is {group_size}, which does not divide a batch of {size} images.")
        split = lambda array: array.reshape(-1, group_size, *array.shape[1:])
        images, keys = jax.tree.map(split, (images, keys))
        outputs, states = jax.vmap(over_batch, in_axes=(None, 0, None, 0))(arrays, images, state, keys)
        join = lambda array: array.reshape(size, *array.shape[2:])
        # The mean relative to the first group keeps the values that no group has changed, to the bit.
        mean = lambda array: array[0] + (array - array[:1]).mean(0) if eqx.is_inexact_array(array) else array[0]
        return jax.tree.map(join, outputs), jax.tree.map(mean, states)

    def call(images: PyTree, state: eqx.nn.State, *, key: PRNGKeyArray | Key[Array, " batch"] | None = None):
        keys = keys_of_batch(key, batch_size("images", images))
        return in_auto_mode(over_groups, (first_axis(images), PartitionSpec()), arrays, images, state, keys)

    return call


def batch_size(name: str, batch: PyTree) -> int:
    """The length of the leading axis that all arrays of `batch` share. Raises an error with `name` otherwise."""
    shapes: list[tuple[int, ...]] = [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(batch)]
    others = {type(leaf).__name__ for leaf in jax.tree.leaves(batch) if not eqx.is_array_like(leaf)}
    if others or isinstance(batch, eqx.nn.State):
        kind = "State" if isinstance(batch, eqx.nn.State) else ", ".join(sorted(others))
        raise TypeError(
            f"`{name}` is of type `{kind}` or contains one; expected JAX or NumPy arrays with a leading axis. Use "
            f"`np.asarray({name})`, and check the order of the arguments: `(images, state)`."
        )
    if not any(shapes):
        raise TypeError(
            f"`{name}` is of type `{type(batch).__name__}`, without a batch axis; expected an array `(batch, "
            "height, width, channels)`, or a PyTree of arrays with a leading axis."
        )
    if () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"`{name}` has arrays of shapes {', '.join(map(str, shapes))}; expected a leading axis of the "
            "same length in each, with one row per example."
        )
    return shapes[0][0]
