import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._array_checks import check_axis, check_map
from .._checks import check_odd, check_positive
from .._keys import as_key, split_key
from ._batch_norm import BatchNorm
from ._initial import fan_in_uniform
from ._norm import Layer, make_norm, normalise, NormFactory
from ._xla import convolve, stored


class LinearNorm(eqx.Module):
    """A linear layer over the last axis, then batch normalisation: `BatchNorm(x @ weight.T + bias)`.

    In LeViT, a normalisation follows every convolution and every linear layer but the classifiers. For inference,
    [`levitax.fuse`][] folds each of these normalisations into the weights before it (section 4.2 of the paper,
    "Normalization layers and activations").

    **Attributes:**

    - `weight`: `(out_features, in_features)`, as in PyTorch.
    - `bias`: `(out_features,)`, or `None`.
    - `norm`: a [`levitax.nn.BatchNorm`][] or another normalisation, or `None`.
    """

    weight: Float[Array, "out_features in_features"]
    bias: Float[Array, " out_features"] | None
    norm: Layer | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        use_norm: bool = True,
        norm: NormFactory = BatchNorm,
        zero_init: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: sizes of the last axis, before and after.
        - `use_bias`: add a bias. A batch normalisation cancels it; the vit-pytorch network has one.
        - `use_norm`: normalise.
        - `norm`: makes the normalisation, see [`levitax.nn.NormFactory`][].
        - `zero_init`: start the normalisation with a weight of 0.
        - `key`: draws weight and bias from U(-1/sqrt(in_features), 1/sqrt(in_features)), PyTorch's default.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, for an invalid key, and if
        `norm` returns no layer.
        """
        check_positive(in_features=in_features, out_features=out_features)
        weight_key, bias_key, norm_key = split_key(as_key(key), 3)
        self.weight = fan_in_uniform(weight_key, (out_features, in_features), in_features)
        self.bias = fan_in_uniform(bias_key, (out_features,), in_features) if use_bias else None
        self.norm = make_norm(norm, out_features, zero_init=zero_init, key=norm_key) if use_norm else None

    def __call__(
        self, x: Float[Array, "*tokens in_features"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens out_features"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(..., in_features)`.
        - `key`: for the normalisation; a [`levitax.nn.BatchNorm`][] needs none.

        **Returns:** `(..., out_features)` in the dtype of `x`, and the new state.

        **Raises:** `TypeError` if `x` is not a floating-point array; `ValueError` for another number of channels; and
        the errors of the normalisation.
        """
        x = stored(linear(x, self.weight, self.bias))
        return normalise(self.norm, x, state, key)


class ConvNorm(eqx.Module):
    """A square convolution over a map with channels last, then batch normalisation.

    **Attributes:**

    - `weight`: `(out_channels, in_channels, kernel, kernel)`, as in PyTorch.
    - `bias`: `(out_channels,)`, or `None`.
    - `norm`: a [`levitax.nn.BatchNorm`][] or another normalisation, or `None`.
    """

    weight: Float[Array, "out_channels in_channels kernel kernel"]
    bias: Float[Array, " out_channels"] | None
    norm: Layer | None
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 2,
        use_bias: bool = False,
        use_norm: bool = True,
        norm: NormFactory = BatchNorm,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: channels before and after.
        - `kernel_size`: odd. Half of it pads the map on every side, like PyTorch's `padding=kernel_size // 2` (`"SAME"`
            would shift maps of even size by one pixel).
        - `stride`: in pixels.
        - `use_bias`, `use_norm`, `norm`: as in [`levitax.nn.LinearNorm`][].
        - `key`: draws weight and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers, an even `kernel_size`, an
        invalid key, and if `norm` returns no layer.
        """
        check_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        check_odd(kernel_size=kernel_size)
        weight_key, bias_key, norm_key = split_key(as_key(key), 3)
        fan_in = in_channels * kernel_size**2
        self.weight = fan_in_uniform(weight_key, (out_channels, in_channels, kernel_size, kernel_size), fan_in)
        self.bias = fan_in_uniform(bias_key, (out_channels,), fan_in) if use_bias else None
        self.norm = make_norm(norm, out_channels, key=norm_key) if use_norm else None
        self.stride = stride

    def __call__(
        self, x: Float[Array, "height width in_channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "new_height new_width out_channels"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(height, width, in_channels)`.
        - `key`: for the normalisation; a [`levitax.nn.BatchNorm`][] needs none.

        **Returns:** `(new_height, new_width, out_channels)`, of `ceil(size / stride)` pixels a side, in the dtype of
        `x`; and the new state.

        **Raises:** `TypeError` if `x` is not a floating-point array; `ValueError` for another number of channels or
        axes; and the errors of the normalisation.
        """
        check_axis("x", x, -1, self.weight.shape[1], "channels")
        check_map("x", x)
        x = stored(_add_bias(convolve(x, self.weight.astype(x.dtype), self.stride), self.bias))
        return normalise(self.norm, x, state, key)


def linear(
    x: Float[Array, "*tokens in_features"],
    weight: Float[Array, "out_features in_features"],
    bias: Float[Array, " out_features"] | None,
) -> Float[Array, "*tokens out_features"]:
    """`x @ weight.T + bias` in the dtype of `x`. Raises unless `x` is a floating-point array with that many
    channels."""
    check_axis("x", x, -1, weight.shape[1], "channels")
    return _add_bias(jnp.matmul(x, weight.T.astype(x.dtype)), bias)


def _add_bias(x, bias):
    if bias is None:
        return x
    return x + jnp.expand_dims(bias, tuple(range(x.ndim - 1))).astype(x.dtype)
