from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .._keys import as_key
from ._norm_linear import NormLinear


class DistilledLogits(NamedTuple):
    """The logits of both heads, which training needs apart. Those of a batch have a leading axis.

    **Attributes:**

    - `classification`: `(classes,)`, of the head that learns from the labels.
    - `distillation`: `(classes,)`, of the head that learns from a teacher.
    """

    classification: Float[Array, " classes"]
    distillation: Float[Array, " classes"]


class DistilledHead(eqx.Module):
    """Two classifiers on the same features: one learns from the labels, the other from a teacher (section 4.2,
    "No classification token").

    In training the logits of both come back as [`levitax.nn.DistilledLogits`][], in inference their mean.
    """

    classification: NormLinear
    distillation: NormLinear
    inference: bool

    def __init__(
        self, dim: int, num_classes: int, *, use_norm: bool = True, inference: bool = False, key: PRNGKeyArray
    ):
        """**Arguments:**

        - `dim`: channels of the features.
        - `num_classes`: of both heads.
        - `use_norm`: as in [`levitax.nn.NormLinear`][].
        - `inference`: return the mean.
        - `key`: for the initial weights.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, and for what is no key.
        """
        classification_key, distillation_key = jax.random.split(as_key(key))
        self.classification = NormLinear(dim, num_classes, use_norm=use_norm, key=classification_key)
        self.distillation = NormLinear(dim, num_classes, use_norm=use_norm, key=distillation_key)
        self.inference = inference

    def __call__(
        self, x: Float[Array, " dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[DistilledLogits | Float[Array, " classes"], eqx.nn.State]:
        """**Arguments:**

        - `x`: the features of one image, `(dim,)`.
        - `state`: holds the running statistics.
        - `key`: ignored; for interchange with other layers.

        **Returns:** the [`levitax.nn.DistilledLogits`][], in inference their mean `(classes,)`; and the new state.

        **Raises:** `ValueError` for another number of channels, and in training for a batch of one image.
        """
        del key
        classification, state = self.classification(x, state)
        distillation, state = self.distillation(x, state)
        if self.inference:
            return (classification + distillation) / 2, state
        return DistilledLogits(classification, distillation), state
