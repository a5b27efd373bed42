import equinox as eqx
import jax
from jaxtyping import PyTree

from . import nn


def count_parameters(tree: PyTree) -> int:
    """The number of learnt numbers in a model, or in any PyTree of layers: its floating-point arrays.

    Running statistics are no parameters, and live in the state. An attention bias that [`levitax.fuse`][] has written
    out counts as the table it came from: as many numbers a head as there are tokens.
    """
    is_gathered = lambda node: isinstance(node, nn.GatheredAttentionBias)
    return sum(map(_size, jax.tree.leaves(tree, is_leaf=is_gathered)))


def _size(node):
    if isinstance(node, nn.GatheredAttentionBias):
        heads, _, tokens = node.matrix.shape
        return heads * tokens
    return node.size if eqx.is_inexact_array(node) else 0
