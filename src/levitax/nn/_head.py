from functools import partial
from typing import NamedTuple, TypeAlias

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_rate, check_positive
from .._keys import as_key, check_key, split_key
from ._batch_norm import BatchNorm
from ._initial import fan_in_uniform, full, normal
from ._linear import linear
from ._norm import Layer, make_norm, normalise, NormFactory


class NormLinear(eqx.Module):
    """Batch normalisation, then a linear layer with bias: the classifier of the mean token.

    **Attributes:**

    - `norm`: a [`levitax.nn.BatchNorm`][] or another normalisation, or `None`.
    - `weight`: `(out_features, in_features)`, as in PyTorch.
    - `bias`: `(out_features,)`.
    """

    norm: Layer | None
    weight: Float[Array, "out_features in_features"]
    bias: Float[Array, " out_features"]
    dropout: eqx.nn.Dropout

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_norm: bool = True,
        norm: NormFactory = BatchNorm,
        dropout: float = 0.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: sizes of the last axis, before and after.
        - `use_norm`: normalise.
        - `norm`: makes the normalisation, see [`levitax.nn.NormFactory`][].
        - `dropout`: rate between the normalisation and the linear layer. The paper has none.
        - `key`: draws the weight from N(0, 0.02²); the bias is 0. Without normalisation, draws both from
            U(-1/sqrt(in_features), 1/sqrt(in_features)), PyTorch's default, like the vit-pytorch network.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, a rate outside [0, 1), an
        invalid key, and if `norm` returns no layer.
        """
        check_positive(in_features=in_features, out_features=out_features)
        weight_key, bias_key, norm_key = split_key(as_key(key), 3)
        shape = (out_features, in_features)
        if use_norm:
            # The reference truncates at +-2, which is a hundred standard deviations.
            self.norm = make_norm(norm, in_features, key=norm_key)
            self.weight = normal(weight_key, shape, std=0.02)
            self.bias = full(out_features, 0)
        else:
            self.norm = None
            self.weight = fan_in_uniform(weight_key, shape, in_features)
            self.bias = fan_in_uniform(bias_key, (out_features,), in_features)
        self.dropout = eqx.nn.Dropout(as_rate("dropout", dropout))

    def __call__(
        self, x: Float[Array, "*tokens in_features"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens out_features"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(..., in_features)`.
        - `key`: needed in training if dropout is active.

        **Returns:** `(..., out_features)` in the dtype of `x`, and the new state.

        **Raises:** `TypeError` if `x` is not a floating-point array; `ValueError` for another number of channels, or if
        a key is missing; and the errors of the normalisation.
        """
        check_key("Dropout", self.dropout.p, self.dropout.inference, key)
        norm_key, dropout_key = split_key(key, 2)
        x, state = normalise(self.norm, x, state, norm_key)
        return linear(self.dropout(x, key=dropout_key), self.weight, self.bias), state


class DistilledLogits(NamedTuple):
    """The logits of both heads, which a loss treats separately. For a batch, both arrays have a leading axis.

    **Attributes:**

    - `classification`: `(..., classes)`, from the head that learns from the labels.
    - `distillation`: `(..., classes)`, from the head that learns from a teacher.
    """

    classification: Float[Array, "*tokens classes"]
    distillation: Float[Array, "*tokens classes"]


Logits: TypeAlias = Float[Array, "*tokens classes"] | DistilledLogits
"""The result of a head: logits `(..., classes)`, or in training with two heads a [`levitax.nn.DistilledLogits`][]. With
`pooling="none"`, the leading axis counts the tokens."""


class DistilledHead(eqx.Module):
    """Two classifiers on the same features: one learns from the labels, the other from a teacher (section 4.2,
    "No classification token").

    Returns the logits of both heads in training, and their mean in inference mode.
    """

    classification: NormLinear
    distillation: NormLinear
    inference: bool

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        use_norm: bool = True,
        norm: NormFactory = BatchNorm,
        dropout: float = 0.0,
        inference: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: channels of the features.
        - `num_classes`: number of classes of each head.
        - `use_norm`, `norm`, `dropout`: as in [`levitax.nn.NormLinear`][].
        - `inference`: return the mean of both heads' logits.
        - `key`: draws the initial weights.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, and for an invalid key.
        """
        classification_key, distillation_key = split_key(as_key(key), 2)
        make = partial(NormLinear, dim, num_classes, use_norm=use_norm, norm=norm, dropout=dropout)
        self.classification, self.distillation = make(key=classification_key), make(key=distillation_key)
        self.inference = inference

    def __call__(
        self, x: Float[Array, "*tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        """**Arguments:**

        - `x`: the features of one image or of its tokens, `(..., dim)`.
        - `key`: needed in training if dropout is active.

        **Returns:** a [`levitax.nn.DistilledLogits`][], or in inference mode the mean of its logits, `(..., classes)`;
        and the new state.

        **Raises:** `ValueError` for another number of channels, if a key is missing, and in training for a batch of
        one image.
        """
        classification_key, distillation_key = split_key(key, 2)
        classification, state = self.classification(x, state, key=classification_key)
        distillation, state = self.distillation(x, state, key=distillation_key)
        if self.inference:
            return (classification + distillation) / 2, state
        return DistilledLogits(classification, distillation), state
