from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._checks import check_choice
from ..nn import DistilledLogits


Loss: TypeAlias = Callable[[Any, Any], Float[Array, ""]]
"""The mean of a batch, a scalar `()`, from the model's outputs and the targets."""


class TeacherTargets(NamedTuple):
    """What a model with two heads learns from: labels for the one, and what a teacher said of the same images for the
    other.

    **Arguments:**

    - `labels`: as in [`levitax.train.cross_entropy`][], `(batch,)` or `(batch, classes)`.
    - `teacher_logits`: `(batch, classes)`, as a [`levitax.train.Teacher`][] gives them.
    """

    labels: Int[Array | np.ndarray, " batch"] | Float[Array | np.ndarray, "batch classes"]
    teacher_logits: Float[Array | np.ndarray, "batch classes"]


def cross_entropy(
    logits: Float[Array, "batch classes"] | DistilledLogits,
    labels: Int[Array | np.ndarray, " batch"] | Float[Array | np.ndarray, "batch classes"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy of a batch.

    **Arguments:**

    - `logits`: `(batch, classes)`. For the logits of two heads, the mean of their losses: without a teacher, both learn
        from the labels.
    - `labels`: class numbers `(batch,)`, each below `classes`, or a distribution over the classes `(batch, classes)`.
    - `label_smoothing`: share of each target that is spread evenly over all classes; 0.1 in the paper's recipe.

    **Returns:** a scalar `()`, in nats.
    """
    if isinstance(logits, DistilledLogits):
        losses = [cross_entropy(head, labels, label_smoothing=label_smoothing) for head in logits]
        return (losses[0] + losses[1]) / 2
    targets = one_hot(labels, logits.shape[-1]) if labels.ndim == 1 else labels
    return optax.losses.softmax_cross_entropy(logits, optax.losses.smooth_labels(targets, label_smoothing)).mean()


def distillation_loss(
    logits: DistilledLogits,
    targets: TeacherTargets,
    *,
    kind: Literal["hard", "soft"] = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """What the paper trains with: the classifier follows the labels, the distillation head a teacher (Touvron et al.
    2021, arXiv 2012.12877, section 4).

    `(1 - alpha) * cross_entropy(classification, labels) + alpha * distilled`, where `distilled` is

    - "hard": the cross-entropy of the distillation head with the class that the teacher thinks likeliest;
    - "soft": the Kullback-Leibler divergence of the distillation head from the teacher, of logits divided by
        `temperature`, times `temperature²`, averaged over batch *and* classes, as the official training averages it.

    **Arguments:**

    - `logits`: of both heads, as a [`levitax.LeViT`][] gives them in training.
    - `targets`: labels, as in [`levitax.train.cross_entropy`][], and the teacher's logits of the same images.
    - `kind`: "hard" in the paper.
    - `alpha`: the teacher's share; 0.5 in the paper.
    - `temperature`: of the soft kind.
    - `label_smoothing`: of the labels.

    **Returns:** a scalar `()`.

    **Raises:** `TypeError` for the logits of one head, `ValueError` for another `kind`, and where the teacher knows
    another number of classes or saw another number of images.
    """
    check_choice("kind", kind, ("hard", "soft"))
    if not isinstance(logits, DistilledLogits):
        raise TypeError(
            f"`logits` is of type `{type(logits).__name__}`; expected the `levitax.nn.DistilledLogits` of a model with "
            "two heads. Make it with `distillation=True`, and train it in training mode."
        )
    student, teacher = logits.distillation, targets.teacher_logits
    if student.shape != teacher.shape:
        raise ValueError(
            f"`targets.teacher_logits` has shape {teacher.shape}, the student's logits {student.shape}: the teacher "
            "must see the same images and know the same classes."
        )
    base = cross_entropy(logits.classification, targets.labels, label_smoothing=label_smoothing)
    if kind == "hard":
        distilled = cross_entropy(student, teacher.argmax(-1))
    else:
        ours, theirs = (jax.nn.log_softmax(array / temperature) for array in (student, teacher))
        distilled = (jnp.exp(theirs) * (theirs - ours)).mean() * temperature**2
    return (1 - alpha) * base + alpha * distilled


def one_hot(labels: Int[Array | np.ndarray, " batch"], classes: int) -> Float[Array, "batch classes"]:
    """Distributions over the classes.

    **Arguments:**

    - `labels`: class numbers `(batch,)`, from 0.
    - `classes`: how many there are.

    **Returns:** `(batch, classes)` in float32, with a 1 in the column of each label.
    """
    return jnp.equal(labels[:, None], jnp.arange(classes)[None, :]).astype(jnp.float32)
