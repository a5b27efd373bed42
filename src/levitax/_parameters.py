import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from . import nn


def count_parameters(tree: PyTree) -> int:
    """Counts the learnable parameters in `tree`, a model or any PyTree of layers: the sizes of its floating-point
    arrays.

    Running statistics do not count, whether in an `eqx.nn.State` or in a model that is not yet split from its state. An
    attention bias that [`levitax.fuse`][] expanded counts as its original table: one number per head and token. The
    result of `eqx.filter_eval_shape`, which allocates nothing, works too.
    """
    is_leaf = lambda node: isinstance(node, nn.GatheredAttentionBias | eqx.nn.State | eqx.nn.StateIndex)
    return sum(map(_size, jax.tree.leaves(tree, is_leaf=is_leaf)))


def _size(node):
    if isinstance(node, nn.GatheredAttentionBias):
        heads, _, tokens = node.matrix.shape
        return heads * tokens
    is_array = eqx.is_array(node) or isinstance(node, jax.ShapeDtypeStruct)
    return node.size if is_array and jnp.issubdtype(node.dtype, jnp.inexact) else 0
