from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ._norm_linear import NormLinear


class DistilledLogits(NamedTuple):
    """The logits of both heads, which training needs apart."""

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
        """
        classification_key, distillation_key = jax.random.split(key)
        self.classification = NormLinear(dim, num_classes, use_norm=use_norm, key=classification_key)
        self.distillation = NormLinear(dim, num_classes, use_norm=use_norm, key=distillation_key)
        self.inference = inference

    def __call__(
        self, x: Float[Array, " dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[DistilledLogits | Float[Array, " classes"], eqx.nn.State]:
        """Maps features `(dim,)` to logits `(num_classes,)`, or to a pair of them. `key` is ignored."""
        del key
        classification, state = self.classification(x, state)
        distillation, state = self.distillation(x, state)
        if self.inference:
            return (classification + distillation) / 2, state
        return DistilledLogits(classification, distillation), state
