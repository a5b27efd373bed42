import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from ..nn import AttentionBias


def decay_mask(params: PyTree) -> PyTree:
    """True for each array that weight decay applies to: the kernels of convolutions and linear maps.

    Vectors (biases, and the weights of batch normalisations) and the tables of attention biases are spared, as in the
    official training.
    """
    is_table = lambda node: isinstance(node, AttentionBias)
    decays = lambda node: jax.tree.map(lambda _: False, node) if is_table(node) else node.ndim > 1
    return jax.tree.map(decays, params, is_leaf=is_table)


def adamw(learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.025) -> optax.GradientTransformation:
    """AdamW as the paper trains with it (section 5.1), sparing what [`levitax.train.decay_mask`][] spares.

    **Arguments:**

    - `learning_rate`: a number or an optax schedule; the paper's is 5e-4 for each 512 images of a batch.
    - `weight_decay`: decoupled, multiplied by the learning rate; 0.025 in the official training.
    """
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=decay_mask)


def trainable(model: PyTree) -> PyTree:
    """The arrays of a model that an optimiser updates: those of floating point. All else is `None`."""
    return eqx.filter(model, eqx.is_inexact_array)
