import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ..nn import DistilledLogits


def cross_entropy(
    logits: Float[Array, "batch classes"] | DistilledLogits,
    labels: Int[Array, " batch"] | Float[Array, "batch classes"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy of a batch.

    **Arguments:**

    - `logits`: `(batch, classes)`. For the logits of two heads, the mean of their losses: without a teacher, both learn
        from the labels.
    - `labels`: class numbers `(batch,)`, each below `classes`, or a distribution over the classes `(batch, classes)`.
    - `label_smoothing`: share of each target that is spread evenly over all classes; 0.1 in the paper's recipe.
    """
    if isinstance(logits, DistilledLogits):
        losses = [cross_entropy(head, labels, label_smoothing=label_smoothing) for head in logits]
        return (losses[0] + losses[1]) / 2
    if labels.ndim == 1:
        targets = jnp.equal(labels[:, None], jnp.arange(logits.shape[-1])[None, :]).astype(logits.dtype)
    else:
        targets = labels
    return optax.losses.softmax_cross_entropy(logits, optax.losses.smooth_labels(targets, label_smoothing)).mean()
