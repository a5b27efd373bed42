from functools import partial

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_rate
from .._keys import as_key, check_key, split_key
from .._model_checks import check_activation
from ._activations import Activation, hard_swish
from ._batch_norm import BatchNorm
from ._linear import LinearNorm
from ._norm import NormFactory


class MLP(eqx.Module):
    """Two normalised linear layers with an activation between them (section 4.2, "Reducing the MLP blocks": an
    expansion of 2 instead of 4)."""

    expand: LinearNorm
    contract: LinearNorm
    dropout: eqx.nn.Dropout
    activation: Activation

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation: Activation = hard_swish,
        dropout: float = 0.0,
        use_norm: bool = True,
        norm: NormFactory = BatchNorm,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: channels in and out.
        - `hidden_dim`: channels between the two layers.
        - `activation`: after the first layer; there is none after the second.
        - `dropout`: rate after the activation and after the second layer.
        - `use_norm`: normalise both layers; the second normalisation starts with a weight of 0. Otherwise both layers
            have a bias.
        - `norm`: makes the normalisations, see [`levitax.nn.NormFactory`][].
        - `key`: draws the initial weights.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, rates outside [0, 1), an
        activation that is not a function, and an invalid key.
        """
        check_activation(activation)
        expand_key, contract_key = split_key(as_key(key), 2)
        make = partial(LinearNorm, use_bias=not use_norm, use_norm=use_norm, norm=norm)
        self.expand = make(dim, hidden_dim, key=expand_key)
        self.contract = make(hidden_dim, dim, zero_init=True, key=contract_key)
        self.dropout = eqx.nn.Dropout(as_rate("dropout", dropout))
        self.activation = activation

    def __call__(
        self, x: Float[Array, "tokens dim"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(tokens, dim)`.
        - `key`: needed in training if dropout is active.

        **Returns:** `(tokens, dim)` in the dtype of `x`, and the new state.

        **Raises:** `ValueError` for another number of channels, or if a key is missing; and the errors of the
        normalisations.
        """
        check_key("Dropout", self.dropout.p, self.dropout.inference, key)
        hidden_key, output_key, expand_key, contract_key = split_key(key, 4)
        x, state = self.expand(x, state, key=expand_key)
        x = self.dropout(self.activation(x), key=hidden_key)
        x, state = self.contract(x, state, key=contract_key)
        return self.dropout(x, key=output_key), state
