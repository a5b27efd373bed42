from collections.abc import Sequence

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_widths
from .._keys import as_key, split_key
from .._model_checks import check_activation
from ._activations import Activation, hard_swish
from ._batch_norm import BatchNorm
from ._linear import ConvNorm
from ._norm import NormFactory
from ._xla import checkpointed


class Stem(eqx.Module):
    """The patch embedding: 3x3 convolutions of stride 2, with an activation between them and none after the last
    (section 4.2, "Patch embedding")."""

    convolutions: tuple[ConvNorm, ...]
    activation: Activation

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        activation: Activation = hard_swish,
        use_norm: bool = True,
        norm: NormFactory = BatchNorm,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`: channels of the image.
        - `widths`: output channels of each convolution. Each halves the map, so four turn 16x16 pixels into a token.
        - `activation`: between the convolutions.
        - `use_norm`: normalise each convolution. Otherwise each has a bias.
        - `norm`: makes the normalisations, see [`levitax.nn.NormFactory`][].
        - `key`: draws the initial weights.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, no `widths`, an activation
        that is not a function, and an invalid key.
        """
        check_widths(widths)
        check_activation(activation)
        keys = split_key(as_key(key), len(widths))
        self.convolutions = tuple(
            ConvNorm(before, after, use_bias=not use_norm, use_norm=use_norm, norm=norm, key=conv_key)
            for before, after, conv_key in zip((in_channels, *widths[:-1]), widths, keys, strict=True)
        )
        self.activation = activation

    def __call__(
        self, image: Float[Array, "height width in_channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "grid_height grid_width dim"], eqx.nn.State]:
        """**Arguments:**

        - `image`: one image, `(height, width, in_channels)`.
        - `key`: for the convolutions; those of this library need none.

        **Returns:** a map of tokens `(grid_height, grid_width, dim)`, with `ceil(size / 2**len(widths))` along each
        side, in the dtype of `image`; and the new state.

        **Raises:** `TypeError` if `image` is not a floating-point array; `ValueError` for another number of channels or
        axes; and the errors of the normalisations.
        """
        return checkpointed(self._embed)(image, state, key)

    def _embed(self, x, state, key):
        first_key, *keys = split_key(key, len(self.convolutions))
        x, state = self.convolutions[0](x, state, key=first_key)
        for convolution, conv_key in zip(self.convolutions[1:], keys, strict=True):
            x, state = convolution(self.activation(x), state, key=conv_key)
        return x, state
