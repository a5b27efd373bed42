from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._array_checks import check_axis
from .._checks import check_positive
from .._explicit import sum_over_axis
from .._host import on_host
from .._model_checks import check_count, check_state, naming_batch_axis, read_statistics
from ._initial import full
from ._xla import settled, stored, unfused


class RunningStatistics(NamedTuple):
    """The statistics that a [`levitax.nn.BatchNorm`][] keeps in the `eqx.nn.State`, in float32.

    **Attributes:**

    - `mean`: `(channels,)`, the running mean.
    - `var`: `(channels,)`, the running unbiased variance.
    """

    mean: Float[Array, " channels"]
    var: Float[Array, " channels"]


class Affine(eqx.Module):
    """`scale * x + shift` per channel: a batch normalisation with fixed statistics.

    **Arguments:**

    - `scale`: `(channels,)`.
    - `shift`: `(channels,)`.
    """

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]

    def __call__(
        self, x: Float[Array, "*tokens channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens channels"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(..., channels)`.

        **Returns:** `(..., channels)` in the dtype of `x`, computed in float32; and `state`, unchanged.
        """
        del key
        y = _per_channel(self.scale, x) * x.astype(jnp.float32) + _per_channel(self.shift, x)
        return y.astype(x.dtype), state


class BatchNorm(eqx.Module):
    """Batch normalisation over the last axis, with PyTorch's numerics.

    `y = (x - mean) / sqrt(var + eps) * weight + bias`

    In training, `mean` and the biased `var` are taken over the batch and over every axis of `x` but the last. The
    running mean and the *unbiased* running variance move towards the batch statistics by `momentum`. In inference mode,
    the layer uses the running statistics. All statistics are float32, for any dtype of `x`.

    `equinox.nn.BatchNorm` keeps the biased variance, computes in the dtype of `x`, and takes channels first. It also
    corrects the running variance for a start at 0, although this variance starts at 1. Weights trained in PyTorch need
    `levitax.nn.BatchNorm`.

    **Attributes:**

    - `weight`, `bias`: `(channels,)` each, in float32.
    - `statistics`: the index of the [`levitax.nn.RunningStatistics`][] in the state, which `running` reads.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    statistics: eqx.nn.StateIndex[RunningStatistics]
    # Neither static nor renamed: `eqx.nn.inference_mode` finds it by this name.
    inference: bool
    axis_name: str | tuple[str, ...] | None = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    momentum: float = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        *,
        axis_name: str | tuple[str, ...] | None = "batch",
        eps: float = 1e-5,
        momentum: float = 0.1,
        zero_init: bool = False,
        inference: bool = False,
        key: PRNGKeyArray | None = None,
    ):
        """**Arguments:**

        - `channels`: size of the last axis.
        - `axis_name`: the axis, or axes, of `jax.vmap` over the batch. Add the axes of `jax.pmap` or `jax.shard_map` to
            take the statistics over all devices. `None` if `x` itself holds the whole batch.
        - `eps`: added to the variance.
        - `momentum`: weight of the new statistics in the running ones (PyTorch's meaning, not Flax's).
        - `zero_init`: start with a weight of 0 instead of 1, so that a residual branch that ends here starts at zero.
        - `inference`: use the running statistics.
        - `key`: ignored, so that this class is a [`levitax.nn.NormFactory`][].

        **Raises:** `TypeError` or `ValueError` if `channels` is not a positive integer.
        """
        del key
        check_positive(channels=channels)
        self.weight = full(channels, 0 if zero_init else 1)
        self.bias = full(channels, 0)
        self.statistics = eqx.nn.StateIndex(RunningStatistics(mean=full(channels, 0), var=full(channels, 1)))
        self.inference = inference
        self.axis_name = axis_name
        self.eps = eps
        self.momentum = momentum

    def __call__(
        self, x: Float[Array, "*tokens channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens channels"], eqx.nn.State]:
        """**Arguments:**

        - `x`: one example, `(..., channels)`.

        **Returns:** the normalised `x`, `(..., channels)` in its dtype, and the new state (unchanged in inference
        mode).

        **Raises:** `ValueError` for another number of channels, or if `state` belongs to another model. In training,
        also if there is no batch axis or each channel has a single value. `TypeError` if `state` is not an
        `eqx.nn.State`.
        """
        del key
        check_axis("x", x, -1, self.weight.size, "channels")
        running = self.running(state)
        if self.inference:
            centred, offset, var = _centred(x, running.mean), 0.0, running.var
        else:
            x, count = unfused(x), self._count(x)
            centre = self._centre(x, count)
            centred = _centred(x, centre)
            offset, var = self._moments(centred, count)
            state = self._moved(state, running, mean=centre + offset, var=var * (count / (count - 1)))
        # The mean is `centre + offset`. This grouping saves a sum over the batch in the backward pass, 7 % of a step,
        # compared with `(centred - offset) * scale + bias`.
        scale = self.weight * lax.rsqrt(var + self.eps)
        shift = self.bias - offset * scale
        y = centred * _per_channel(scale, x) + _per_channel(shift, x)
        return y.astype(x.dtype), state

    def running(self, state: eqx.nn.State) -> RunningStatistics:
        """Reads the running mean and unbiased variance of this layer from `state`.

        **Raises:** `TypeError` if `state` is not an `eqx.nn.State`; `ValueError` if it belongs to another model. This
        is detected only if entries are missing or differ in shape.
        """
        check_state(state)
        return read_statistics(state, self.statistics, self.weight.shape)

    def affine(self, state: eqx.nn.State) -> Affine:
        """Folds this layer with the running statistics in `state` into one multiplication and one addition.

        **Raises:** the errors of [`levitax.nn.BatchNorm.running`][].
        """
        scale, shift = on_host(self._affine, self.weight, self.bias, *self.running(state))
        return Affine(scale=scale, shift=shift)

    def _affine(self, weight, bias, mean, var):
        scale = weight * (var + self.eps) ** -0.5
        return scale, bias - mean * scale

    def _centre(self, x, count):
        """The mean of each channel, up to rounding. Sums of squares about it lose no digits.

        The mean of a few values would not do: with that of the first tokens, one white pixel in the corner of grey
        images put the logits of a LeViT 3.6e-2 off; now 1e-4, like PyTorch in float32. This pass over all values takes
        0.5 % of a training step of LeViT-128S, batch 16, on two cores.
        """
        total = self._sum_over_batch(x.astype(jnp.float32).sum(_all_but_last(x)))
        return stored(lax.stop_gradient(settled(total / count)))

    def _moments(self, x, count):
        """Mean and biased variance of each channel."""
        axes = _all_but_last(x)
        total, total_of_squares = stored(self._sum_over_batch((x.sum(axes), (x * x).sum(axes))))
        mean = total / count
        return mean, jnp.maximum(total_of_squares / count - mean * mean, 0.0)

    def _moved(self, state, running, mean, var):
        """Returns `state` with the running statistics moved towards those of a batch."""
        move = lambda old, new: old + self.momentum * (lax.stop_gradient(new) - old)
        moved = jax.tree.map(move, running, RunningStatistics(mean, var))
        # `state.set` refuses an array with another sharding, as inside `jax.pmap`.
        entry = jax.tree.structure(state.substate(self.statistics))
        return state.update(jax.tree.unflatten(entry, jax.tree.leaves(moved)))

    def _count(self, x):
        """The number of values per channel in the batch."""
        count = int(self._sum_over_batch(x.size // x.shape[-1]))
        check_count(count)
        return count

    def _sum_over_batch(self, values):
        if self.axis_name is None:
            return values
        with naming_batch_axis(self.axis_name):
            return sum_over_axis(values, self.axis_name)


def _centred(x, centre):
    centred = x.astype(jnp.float32) - _per_channel(centre, x)
    # In float32 it is as large as `x`, and the backward pass stores it instead of `x`.
    return stored(centred) if x.dtype == jnp.float32 else centred


def _all_but_last(x):
    return tuple(range(x.ndim - 1))


def _per_channel(values, x):
    return jnp.expand_dims(values, _all_but_last(x))
