from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._array_checks import as_array, check_each, check_form
from .._checks import as_integer


# The epsilon of bfloat16. A softmax in bfloat16 sums to 1 within 5.4e-3, also after a cast to float32.
_SUM_TOLERANCE = 2.0**-7


def one_hot(labels: Int[Array | np.ndarray, " batch"], classes: int) -> Float[Array, "batch classes"]:
    """Converts class numbers to distributions over the classes.

    **Arguments:**

    - `labels`: class numbers `(batch,)`, from 0.
    - `classes`: number of classes.

    **Returns:** `(batch, classes)` in float32, with a 1 in the column of each label. Under `jax.jit`, where values
    cannot be checked, the row of a label out of range is NaN.

    **Raises:** `TypeError` or `ValueError` for labels that are not integers of that shape or out of range, and if
    `classes` is no positive integer.
    """
    labels = as_array("labels", labels)
    check_class_numbers("labels", labels, "batch")
    return _one_hot("labels", labels, as_integer("classes", classes))


def as_distributions(name: str, labels: Any, batch: int, classes: int) -> Array:
    """Class numbers `(batch,)` or distributions `(batch, classes)` as distributions. A row with wrong values is an
    error, or NaN where values cannot be checked."""
    labels = as_array(name, labels)
    forms = {jnp.integer: (batch,), jnp.floating: (batch, classes)}
    check_form(name, labels, forms, way_out=_way_out(name, labels))
    if labels.ndim == 1:
        return _one_hot(name, labels, classes)
    eps = float(jnp.finfo(labels.dtype).eps)

    def holds(rows):
        # Allows for a few roundings of the sum, and one of a 0.
        sums = rows.sum(-1, dtype=np.float32)
        return (abs(sums - 1) <= max(_SUM_TOLERANCE, 4 * eps)) & (rows >= -eps).all(-1)

    show = lambda row: f"runs from {row.min():.3g} to {row.max():.3g} and sums to {row.sum(dtype=np.float32):.4g}"
    expected = "numbers from 0 to 1 that sum to 1. Divide each row by its sum if it holds the shares of the classes."
    return _nan_unless(check_each(name, labels, holds, expected, show), labels)


def as_teacher_logits(name: str, logits: Any, batch: int, classes: int) -> Array:
    """A teacher's logits. A row with values that are not finite is an error, or NaN where values cannot be checked."""
    logits = as_array(name, logits)
    way_out = "The teacher must see the same images and have the same classes as the student."
    check_form(name, logits, {jnp.floating: (batch, classes)}, way_out=way_out)
    return _nan_unless(check_finite(name, logits), logits)


def check_finite(name: str, logits: Any) -> Array:
    """Whether each row of a teacher's logits is finite. Raises for a row that is not and can be checked."""
    holds = lambda rows: (abs(rows) < np.inf).all(-1)
    show = lambda row: f"holds {row[~(abs(row) < np.inf)][0]}"
    expected = "finite numbers. Check the images and the teacher's weights, or let the teacher compute in float32."
    return check_each(name, logits, holds, expected, show)


def check_class_numbers(name: str, labels: Any, batch: int | str) -> None:
    """Raises unless `labels` are integers of shape `(batch,)`."""
    check_form(name, labels, {jnp.integer: (batch,)}, way_out=_way_out(name, labels))


def are_classes(labels: Any, classes: int) -> Any:
    """Whether each label is one of the classes."""
    # JAX converts the bound to the dtype of the labels, where it may overflow.
    return (labels >= 0) & (labels <= min(classes - 1, jnp.iinfo(labels.dtype).max))


def in_float32(array: Any) -> Array:
    """A JAX array in float32, or in float64 if it was."""
    array = jnp.asarray(array)
    return array.astype(np.promote_types(array.dtype, np.float32))


def _one_hot(name, labels, classes):
    expected = (
        f"a class number from 0 to {classes - 1}. Count the classes from 0, and make the model with that many "
        "`num_classes`."
    )
    hold = check_each(name, labels, lambda rows: are_classes(rows, classes), expected)
    numbers = jnp.asarray(labels).astype(jnp.int32)
    rows = jnp.equal(numbers[:, None], jnp.arange(classes, dtype=jnp.int32)[None, :]).astype(jnp.float32)
    return _nan_unless(hold, rows)


def _nan_unless(hold, rows):
    return jnp.where(hold[:, None], rows, jnp.nan)


def _way_out(name, labels):
    """How to convert `labels` to a form that is accepted."""
    is_of = lambda kind: jnp.issubdtype(labels.dtype, kind)
    if labels.ndim == 1 and not (is_of(jnp.number) or is_of(jnp.bool_)):
        return f"With one list of `names` for all data, use `[names.index(label) for label in {name}]`."
    if labels.ndim == 1 and not is_of(jnp.integer):
        return f"Use `{name}.astype(np.int32)` if they are class numbers."
    if labels.ndim == 2 and labels.shape[1] == 1:
        return f"Use `{name}[:, 0]` if it is a column of class numbers."
    if labels.ndim == 2 and not is_of(jnp.floating):
        return f"Use `{name}.astype(np.float32)` if the rows are distributions."
    return "Pass one label for each image."
