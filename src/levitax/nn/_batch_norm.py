from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_axis, check_positive, check_state
from .._explicit import explicit_mesh
from ._remat import keep


_OTHER_MODEL = "it was made with another model. Pass the one that `eqx.nn.make_with_state` returned with this model."


class RunningStatistics(NamedTuple):
    """What a [`levitax.nn.BatchNorm`][] keeps in the `eqx.nn.State`, in float32.

    **Attributes:**

    - `mean`: `(channels,)`, the running mean.
    - `var`: `(channels,)`, the running unbiased variance.
    """

    mean: Float[Array, " channels"]
    var: Float[Array, " channels"]


class Affine(eqx.Module):
    """`scale * x + shift` per channel: what a batch normalisation is once its statistics are fixed.

    Called like the layer it stands in for, `x, state = affine(x, state)`; the state is handed through.

    **Arguments:**

    - `scale`: `(channels,)`, the factor.
    - `shift`: `(channels,)`, what is added.
    """

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]

    def __call__(
        self, x: Float[Array, "*tokens channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens channels"], eqx.nn.State]:
        """**Arguments:**

        - `x`: `(..., channels)`.
        - `state`: handed through.
        - `key`: ignored; for interchange with other layers.

        **Returns:** `(..., channels)` in the dtype of `x`, computed in float32; and `state`.
        """
        del key
        y = x.astype(jnp.float32) * _per_channel(self.scale, x.ndim) + _per_channel(self.shift, x.ndim)
        return y.astype(x.dtype), state


class BatchNorm(eqx.Module):
    """Batch normalisation over the last axis, with PyTorch's numerics.

    `y = (x - mean) / sqrt(variance + eps) * weight + bias`

    In training `mean` and the biased `variance` are those over the batch and over every axis of `x` but the last. The
    running mean and the *unbiased* variance move towards them by `momentum`. In inference the running ones are used.
    All statistics are float32, whatever the dtype of `x`; the result has the dtype of `x`.

    `equinox.nn.BatchNorm` keeps the biased variance, computes in the dtype of `x`, wants channels first, and corrects
    the running variance for a start at 0 though it starts at 1; weights trained in PyTorch need this one.

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
    ):
        """**Arguments:**

        - `channels`: size of the last axis.
        - `axis_name`: the `jax.vmap` axis (or axes) that hold the batch, with those of `jax.pmap` or `jax.shard_map`
            if the statistics are to be taken over all devices. `None` when `x` itself holds the whole batch.
        - `eps`: added to the variance.
        - `momentum`: weight of the new statistics in the running ones (PyTorch's meaning, not Flax's).
        - `zero_init`: start with a weight of 0 instead of 1, so that a residual branch ending here starts as zero.
        - `inference`: use the running statistics.

        **Raises:** `TypeError` or `ValueError` for sizes that are not positive integers.
        """
        check_positive(channels=channels)
        self.weight = jnp.zeros(channels, jnp.float32) if zero_init else jnp.ones(channels, jnp.float32)
        self.bias = jnp.zeros(channels, jnp.float32)
        self.statistics = eqx.nn.StateIndex(
            RunningStatistics(jnp.zeros(channels, jnp.float32), jnp.ones(channels, jnp.float32))
        )
        self.inference = inference
        self.axis_name = axis_name
        self.eps = eps
        self.momentum = momentum

    def __call__(
        self, x: Float[Array, "*tokens channels"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*tokens channels"], eqx.nn.State]:
        """**Arguments:**

        - `x`: one example, `(..., channels)`.
        - `state`: holds the running statistics.
        - `key`: ignored; for interchange with other layers.

        **Returns:** the normalised `x`, `(..., channels)` in its dtype, and the new state (in inference, the same).

        **Raises:** `ValueError` for another number of channels; if, in training, no batch axis is there or each channel
        has a single value; or if `state` belongs to another model. `TypeError` if `state` is no `eqx.nn.State`.
        """
        del key
        check_axis("x", x, -1, self.weight.size, "channels")
        running = self.running(state)
        if self.inference:
            centred = _subtract(x, running.mean)
            scale = self._scale(running.var)
            shift = self.bias
        else:
            # Keeps XLA, in the backward pass, from fusing the derivative of the normalisation into a transposing copy
            # for the product before it. LeViT-128S, batch 16, two cores: 241 ms a training step instead of 258.
            x = lax.optimization_barrier(x)
            centre = self._centre(x)
            centred = _subtract(x, centre)
            if centred.dtype == x.dtype:
                # In place of `x`, as small, and with no need to subtract again.
                centred = keep(centred)
            count = self._count(x)
            mean, var = self._moments(centred)
            unbiased = RunningStatistics(centre + mean, var * (count / (count - 1)))
            move = lambda old, new: old + self.momentum * (lax.stop_gradient(new) - old)
            state = _replace(state, self.statistics, jax.tree.map(move, running, unbiased))
            scale = self._scale(var)
            shift = self.bias - mean * scale
        y = centred * _per_channel(scale, x.ndim) + _per_channel(shift, x.ndim)
        return y.astype(x.dtype), state

    def running(self, state: eqx.nn.State) -> RunningStatistics:
        """The running mean and unbiased variance of this layer, read from `state`.

        **Raises:** `TypeError` if `state` is no `eqx.nn.State`, `ValueError` if it was made with another model. That
        can only be seen where entries are missing or differ in shape.
        """
        check_state(state)
        if not isinstance(self.statistics.marker, str):
            raise ValueError(
                "This layer was made without its state. Make both together: `model, state = "
                "eqx.nn.make_with_state(Model)(...)`."
            )
        try:
            running = state.get(self.statistics)
        except KeyError:
            raise ValueError(f"`state` has no entry for {self.statistics.marker}: {_OTHER_MODEL}") from None
        if running.mean.shape != self.weight.shape:
            raise ValueError(
                f"`state` has statistics of shape {running.mean.shape} for {self.weight.size} channels: {_OTHER_MODEL}"
            )
        return running

    def affine(self, state: eqx.nn.State) -> Affine:
        """This layer in inference, with the statistics in `state`, as one multiplication and one addition.

        **Raises:** what [`levitax.nn.BatchNorm.running`][] raises.
        """
        mean, var = self.running(state)
        scale = self._scale(var)
        return Affine(scale=scale, shift=self.bias - mean * scale)

    def _scale(self, var):
        return self.weight * lax.rsqrt(var + self.eps)

    def _centre(self, x):
        """A point next to the mean of each channel, about which both moments are taken without cancelling.

        This is a first pass over all values. A sample of them is no such point where it is untypical: about the images'
        first tokens, one white pixel in the corner of grey images put the logits of a LeViT 3.6e-2 off; now 1e-4, as
        PyTorch's float32. LeViT-128S, batch 16, two cores: 0.5 % of a training step.

        Rounded to 16 bits because XLA may compute the mean again for each use and fuse its last multiplication there.
        Moments and outputs would then see centres that differ in the last bit, which put constant bfloat16 channels of
        1e3 off by 1.8e-2. No compiler fuses across an explicit rounding.
        """
        mean = self._sum_over_batch(x.astype(jnp.float32).sum(_all_but_last(x))) / self._count(x)
        return keep(lax.stop_gradient(lax.reduce_precision(mean, exponent_bits=8, mantissa_bits=15)))

    def _moments(self, x):
        """Mean and biased variance of each channel."""
        axes, count = _all_but_last(x), self._count(x)
        first, second = keep(self._sum_over_batch((x.sum(axes), (x * x).sum(axes))))
        mean, square = first / count, second / count
        return mean, jnp.maximum(square - mean * mean, 0.0)

    def _count(self, x):
        """The number of values per channel in the batch."""
        count = int(self._sum_over_batch(x.size // x.shape[-1]))
        if count < 2:
            held = "one (one image, in a layer with one token, as the classifier's is)" if count else "none"
            raise ValueError(
                "Training mode needs more than one value per channel to take a variance of, and the batch holds "
                f"{held}. Use a larger batch, or `eqx.nn.inference_mode(model)`."
            )
        return count

    def _sum_over_batch(self, values):
        if self.axis_name is None:
            return values
        try:
            if explicit_mesh(values):
                # JAX 0.12.0 cannot lower a `psum` over an axis of `jax.vmap` on such a mesh.
                return jax.tree.map(lambda array: lax.all_gather(array, self.axis_name).sum(0), values)
            return lax.psum(values, self.axis_name)
        except NameError:
            raise ValueError(
                f"Training mode needs the batch axis {self.axis_name!r}, and there is none here. Call "
                "`levitax.batched(model)(images, state)`, or `eqx.nn.inference_mode(model)` for single images."
            ) from None
        except Exception as error:
            if not jax.sharding.get_abstract_mesh().manual_axes:
                raise
            raise ValueError(
                f"JAX cannot sum over the batch axis {self.axis_name!r} in a `jax.shard_map` that checks which values "
                "vary over devices. Leave out `jax.shard_map` and spread the batch with `levitax.train.make_mesh` and "
                "`levitax.train.shard_batch`: batch statistics are then those of the whole batch. Or pass "
                "`check_vma=False`: they are then those of each device, unless `axis_name` names its axes too."
            ) from error


def _replace(state, index, value):
    """`state.set(index, value)`, also where the old value lies elsewhere: `set` refuses another sharding, as values
    from outside of a `jax.pmap` have it inside."""
    entry = jax.tree.structure(state.substate(index))
    return state.update(jax.tree.unflatten(entry, jax.tree.leaves(value)))


def _subtract(x, values):
    return x.astype(jnp.float32) - _per_channel(values, x.ndim)


def _all_but_last(x):
    return tuple(range(x.ndim - 1))


def _per_channel(values, ndim):
    return jnp.expand_dims(values, tuple(range(ndim - 1)))
