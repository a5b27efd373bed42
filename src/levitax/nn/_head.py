from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_positive
from .._keys import as_key, split_key
from ._batch_norm import BatchNorm
from ._initial import fan_in_uniform, full, normal
from ._linear import linear


class NormLinear(eqx.Module):
    """Batch normalisation, then a linear layer with bias: the classifier of the mean token.

    **Attributes:**

    - `norm`: a [`levitax.nn.BatchNorm`][], or `None`.
    - `weight`: `(out_features, in_features)`, as in PyTorch.
    - `bias`: `(out_features,)`.
    """

    norm: BatchNorm | None
    weight: Float[Array, "out_features in_features"]
    bias: Float[Array, " out_features"]

    def __init__(self, in_features: int, out_features: int, *, use_norm: bool = True, key: PRNGKeyArray):
        """**Arguments:**

        - `in_features`, `out_features`: sizes of the last axis, before and after.
        - `use_norm`: normalise.
        - `key`: draws the weight from N(0, 0.02²); the bias is 0. Without normalisation, draws both from
            U(-1/sqrt(in_features), 1/sqrt(in_features)), PyTorch's default, like the vit-pytorch network.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, and for an invalid key.
        """
        check_positive(in_features=in_features, out_features=out_features)
        weight_key, bias_key = split_key(as_key(key), 2)
        shape = (out_features, in_features)
        if use_norm:
            # The reference truncates at +-2, which is a hundred standard deviations.
            self.norm = BatchNorm(in_features)
            self.weight = normal(weight_key, shape, std=0.02)
            self.bias = full(out_features, 0)
        else:
            self.norm = None
            self.weight = fan_in_uniform(weight_key, shape, in_features)
            self.bias = fan_in_uniform(bias_key, (out_features,), in_features)

    def __call__(
        self, x: Float[Array, "*tokens in_features"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens out_features"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(..., in_features)`.

        **Returns:** `(..., out_features)` in the dtype of `x`, and the new state.

        **Raises:** `TypeError` if `x` is not a floating-point array; `ValueError` for another number of channels; and
        the errors of the normalisation.
        """
        del key
        if self.norm is not None:
            x, state = self.norm(x, state)
        return linear(x, self.weight, self.bias), state


class DistilledLogits(NamedTuple):
    """The logits of both heads, which a loss treats separately. For a batch, both arrays have a leading axis.

    **Attributes:**

    - `classification`: `(classes,)`, from the head that learns from the labels.
    - `distillation`: `(classes,)`, from the head that learns from a teacher.
    """

    classification: Float[Array, " classes"]
    distillation: Float[Array, " classes"]


class DistilledHead(eqx.Module):
    """Two classifiers on the same features: one learns from the labels, the other from a teacher (section 4.2,
    "No classification token").

    Returns the logits of both heads in training, and their mean in inference mode.
    """

    classification: NormLinear
    distillation: NormLinear
    inference: bool

    def __init__(
        self, dim: int, num_classes: int, *, use_norm: bool = True, inference: bool = False, key: PRNGKeyArray
    ):
        """**Arguments:**

        - `dim`: channels of the features.
        - `num_classes`: number of classes of each head.
        - `use_norm`: as in [`levitax.nn.NormLinear`][].
        - `inference`: return the mean of both heads' logits.
        - `key`: draws the initial weights.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, and for an invalid key.
        """
        classification_key, distillation_key = split_key(as_key(key), 2)
        self.classification = NormLinear(dim, num_classes, use_norm=use_norm, key=classification_key)
        self.distillation = NormLinear(dim, num_classes, use_norm=use_norm, key=distillation_key)
        self.inference = inference

    def __call__(
        self, x: Float[Array, " dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[DistilledLogits | Float[Array, " classes"], eqx.nn.State]:
        """**Arguments:**

        - `x`: the features of one image, `(dim,)`.

        **Returns:** a [`levitax.nn.DistilledLogits`][], or in inference mode the mean of its logits, `(classes,)`; and
        the new state.

        **Raises:** `ValueError` for another number of channels, and in training for a batch of one image.
        """
        del key
        classification, state = self.classification(x, state)
        distillation, state = self.distillation(x, state)
        if self.inference:
            return (classification + distillation) / 2, state
        return DistilledLogits(classification, distillation), state
