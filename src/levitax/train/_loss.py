from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._array_checks import as_array, as_share, check_form, check_not_empty, check_number
from .._checks import as_choice
from ..nn import DistilledLogits
from ._targets import as_distributions, as_teacher_logits, in_float32


Loss: TypeAlias = Callable[[Any, Any], Float[Array, ""]]
"""A function of a batch's outputs and targets that returns the mean loss, a scalar `()`."""


class TeacherTargets(NamedTuple):
    """Targets of a model with two heads: labels for one, and a teacher's logits of the same images for the other.

    **Arguments:**

    - `labels`: as in [`levitax.train.cross_entropy`][], `(batch,)` or `(batch, classes)`.
    - `teacher_logits`: `(batch, classes)`, from a [`levitax.train.Teacher`][].
    """

    labels: Int[Array | np.ndarray, " batch"] | Float[Array | np.ndarray, "batch classes"]
    teacher_logits: Float[Array | np.ndarray, "batch classes"]


def cross_entropy(
    logits: Float[Array, "batch classes"] | DistilledLogits,
    labels: Int[Array | np.ndarray, " batch"] | Float[Array | np.ndarray, "batch classes"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Computes the mean cross-entropy of a batch.

    **Arguments:**

    - `logits`: `(batch, classes)`. For the logits of two heads, the result is the mean of their losses: without a
        teacher, both learn from the labels.
    - `labels`: class numbers `(batch,)`, each below `classes`, or distributions over the classes `(batch, classes)`.
    - `label_smoothing`: share of each target that is spread evenly over all classes; 0.1 in the paper's recipe.

    **Returns:** a scalar `()`, in nats. Under `jax.jit`, where values cannot be checked, it is NaN if a label is out of
    range, or if a distribution has negative numbers or does not sum to 1.

    **Raises:** `TypeError` or `ValueError` for arrays of another shape or dtype, an empty batch, a `label_smoothing`
    outside [0, 1), and wrong labels outside `jax.jit`.
    """
    heads = logits if isinstance(logits, DistilledLogits) else [logits]
    return _cross_entropy("labels", heads, labels, label_smoothing)


def distillation_loss(
    logits: DistilledLogits,
    targets: TeacherTargets,
    *,
    kind: Literal["hard", "soft"] = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Computes the paper's training loss: the classifier learns from the labels, the distillation head from a teacher
    (Touvron et al. 2021, arXiv 2012.12877, section 4).

    `(1 - alpha) * cross_entropy(classification, labels) + alpha * distilled`, where `distilled` is

    - "hard": the cross-entropy of the distillation head with the teacher's most likely class;
    - "soft": the Kullback-Leibler divergence of the distillation head from the teacher, with both logits divided by
        `temperature`. The divergence is multiplied by `temperature²`, and averaged over batch *and* classes as in the
        official training.

    **Arguments:**

    - `logits`: of both heads, from a [`levitax.LeViT`][] in training.
    - `targets`: labels, as in [`levitax.train.cross_entropy`][], and the teacher's logits of the same images.
    - `kind`: "hard" in the paper.
    - `alpha`: the teacher's share, in [0, 1]; 0.5 in the paper.
    - `temperature`: of the soft kind, above 0.
    - `label_smoothing`: of the labels.

    **Returns:** a scalar `()`. Under `jax.jit`, where values cannot be checked, it is NaN for wrong labels and if the
    teacher's logits are not finite.

    **Raises:** `TypeError` for the logits of one head and for targets without a teacher; `ValueError` for another
    `kind`; `TypeError` or `ValueError` for numbers out of range, for a teacher with other classes or images, and for
    teacher logits that are not finite; and the errors of [`levitax.train.cross_entropy`][].
    """
    as_choice("kind", kind, ("hard", "soft"))
    alpha, temperature = as_share("alpha", alpha), _as_temperature(temperature)
    _check_distilled(logits, targets)
    student = _as_logits("logits.distillation", logits.distillation)
    teacher = as_teacher_logits("targets.teacher_logits", targets.teacher_logits, *student.shape).astype(student.dtype)
    base = _cross_entropy("targets.labels", [logits.classification], targets.labels, label_smoothing)
    if kind == "hard":
        likeliest = jax.nn.one_hot(teacher.argmax(-1), teacher.shape[-1], dtype=student.dtype)
        distilled = _mean_loss(student, jnp.where(jnp.isnan(teacher), jnp.nan, likeliest))
    else:
        ours, theirs = (jax.nn.log_softmax(array / temperature) for array in (student, teacher))
        distilled = (jnp.exp(theirs) * (theirs - ours)).mean() * temperature**2
    return (1 - alpha) * base + alpha * distilled


def _cross_entropy(name, heads, labels, label_smoothing):
    smoothing = _as_smoothing(label_smoothing)
    heads = _as_heads(heads)
    targets = as_distributions(name, labels, *heads[0].shape)
    losses = [_mean_loss(head, optax.losses.smooth_labels(targets.astype(head.dtype), smoothing)) for head in heads]
    return jnp.stack(losses).mean()


def _mean_loss(logits, targets):
    return optax.losses.softmax_cross_entropy(logits, targets).mean()


def _as_heads(heads):
    first, *others = heads
    first = _as_logits("logits", first)
    return [first, *(_as_logits("logits", head, *first.shape) for head in others)]


def _as_logits(name: str, logits: Any, batch: int | str = "batch", classes: int | str = "classes") -> Array:
    """The logits of one head, in float32 or more. Raises for another form and for an empty batch."""
    logits = as_array(name, logits)
    way_out = "Call the model on a batch, as `levitax.batched` does, and pass the logits without the state."
    check_form(name, logits, {jnp.floating: (batch, classes)}, way_out=way_out)
    check_not_empty(name, logits)
    return in_float32(logits)


def _as_smoothing(value):
    return check_number("label_smoothing", value, lambda share: (share >= 0) & (share < 1), "a number in [0, 1)")


def _as_temperature(value):
    return check_number(
        "temperature", value, lambda number: (number > 0) & (number < np.inf), "a finite number above 0"
    )


def _check_distilled(logits, targets):
    if not isinstance(logits, DistilledLogits):
        raise TypeError(
            f"`logits` is of type `{type(logits).__name__}`; expected the `levitax.nn.DistilledLogits` of a model with "
            "two heads. Make it with `distillation=True`, and train it in training mode."
        )
    if not isinstance(targets, TeacherTargets):
        raise TypeError(
            f"`targets` is of type `{type(targets).__name__}`; expected a `levitax.train.TeacherTargets` with labels "
            "and the teacher's logits of the same images."
        )
