import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from . import nn


def count_parameters(tree: PyTree) -> int:
    """The number of learnable parameters in `tree`, a model or any PyTree of layers: the sizes of its floating-point
    arrays.

    Running statistics are none: an `eqx.nn.State` counts for nothing, nor does the part of a model that becomes one. An
    attention bias that [`levitax.fuse`][] has written out counts as the table it came from: as many numbers a head as
    there are tokens. The result of `eqx.filter_eval_shape`, which allocates nothing, is counted the same way.
    """
    is_leaf = lambda node: isinstance(node, nn.GatheredAttentionBias | eqx.nn.State | eqx.nn.StateIndex)
    return sum(map(_size, jax.tree.leaves(tree, is_leaf=is_leaf)))


def _size(node):
    if isinstance(node, nn.GatheredAttentionBias):
        heads, _, tokens = node.matrix.shape
        return heads * tokens
    is_array = eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct)
    return node.size if is_array and jnp.issubdtype(node.dtype, jnp.inexact) else 0
