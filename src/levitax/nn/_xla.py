"""Functions that help XLA and do not belong to LeViT. None of them changes a result by more than its rounding.
Measurements are from a CPU with two cores, unless another backend is named."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PyTree


_STORED = "levitax.stored"


def stored(x: PyTree) -> PyTree:
    """Marks the result of a product, a convolution or a sum over the batch. `checkpointed` stores it for the backward
    pass: recomputing it takes longer than writing and reading it."""
    return jax.tree.map(lambda array: checkpoint_name(array, _STORED), x)


def checkpointed(function: Callable[..., Any], *, stores: bool = True) -> Callable[..., Any]:
    """`function`, whose backward pass recomputes all but its inputs and, if it `stores` them, what `stored` marks.

    Normalised values, activations and attention weights are then not stored. LeViT-256, batch 16: a training step
    writes 250 MB instead of 755, and takes 0.9 s instead of 1.0, since memory that is new to the process comes page by
    page.
    """
    policy = jax.checkpoint_policies.save_only_these_names(_STORED) if stores else None
    return eqx.filter_checkpoint(function, policy=policy)


def unfused(x: Array) -> Array:
    """Keeps XLA from fusing the operations before `x` with those after it.

    In the backward pass of a batch normalisation, XLA would otherwise fuse the derivative into a transposing copy for
    the product before it. LeViT-128S, batch 16: a training step takes 241 ms instead of 258.
    """
    return lax.optimization_barrier(x)


def settled(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` rounded to 16 bits, and so the same number wherever it is used.

    XLA may compute a value again for each use and fuse its last operation there. The uses then see numbers that differ
    in the last bit. For the centre of a batch normalisation that put constant bfloat16 channels of 1e3 off by 1.8e-2.
    No compiler fuses across an explicit rounding.
    """
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=15)


def in_float32(function: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """An elementwise function, rounded once at its end.

    XLA on CPU fuses operations on float32 into what stands before them, but not those on bfloat16. LeViT-256 in
    bfloat16, fused, batch 16: 141 ms instead of 154.
    """
    return function(x.astype(jnp.float32)).astype(x.dtype)


@jax.jit
def softmax(x: Float[Array, "*batch channels"]) -> Float[Array, "*batch channels"]:
    """The softmax over the last axis. `levitax.export` finds it by its name in a traced function."""
    return jax.nn.softmax(x, axis=-1)


def every_nth(
    x: Float[Array, "..."], stride: int, *, axes: tuple[int, int] = (0, 1), starts: tuple[int, int] = (0, 0)
) -> Float[Array, "..."]:
    """`x[starts[0]::stride, starts[1]::stride]`, which is a gather before jax 0.9.1."""
    first, steps = [0] * x.ndim, [1] * x.ndim
    for axis, start in zip(axes, starts, strict=True):
        first[axis], steps[axis] = min(start, x.shape[axis]), stride
    return lax.slice(x, first, x.shape, steps)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "height width in_channels"],
    weight: Float[Array, "out_channels in_channels kernel kernel"],
    stride: int,
) -> Float[Array, "new_height new_width out_channels"]:
    """A square convolution of odd size, padded by half of it on every side.

    XLA on CPU converts a convolution to float32, and has instructions for products of bfloat16. So in bfloat16, with 64
    channels or more, it is one product. Without AMX, 16 maps of 28x28, 128 to 256 channels: 6 ms instead of 11;
    56x56, 64 to 128: 10 instead of 11.6; fewer channels are slower.
    """
    half = weight.shape[-1] // 2
    directly = lambda x, weight: _convolve(x, weight, stride, (half, half), (half, half))
    if x.dtype != jnp.bfloat16 or weight.shape[1] < 64:
        return directly(x, weight)
    return lax.platform_dependent(x, weight, cpu=partial(_product, stride=stride), default=directly)


@convolve.defjvp
def _(stride, primals, tangents):
    x, weight = primals
    x_tangent, weight_tangent = tangents
    # Linear in `x`, this sum is the convolution again, and what reverse mode makes of it is quicker: convolutions of
    # the cotangent as it is, where the one above has zeros put between its rows and columns.
    of_x = sum(_phases(x_tangent, weight, stride))
    return convolve(x, weight, stride), of_x + convolve(x, weight_tangent, stride)


def _phases(x, weight, stride):
    """Convolutions without stride of every `stride`-th row and column of `x`, which add up to the one with."""
    half = weight.shape[-1] // 2
    for row, column in product(range(stride), repeat=2):
        # The part of the kernel that meets these rows and columns, and no other.
        part = every_nth(weight, stride, axes=(2, 3), starts=((row + half) % stride, (column + half) % stride))
        if part.size:
            phase = every_nth(x, stride, starts=(row, column))
            paddings = []
            for start, size, phase_size, part_size in zip(
                (row, column), x.shape[:2], phase.shape[:2], part.shape[2:], strict=True
            ):
                before = (start + half) // stride
                paddings.append((before, -(-size // stride) + part_size - 1 - before - phase_size))
            yield _convolve(phase, part, 1, *paddings)


def _product(x, weight, stride):
    """The convolution as one product: of all that lies under the kernel at each place."""
    kernel = weight.shape[-1]
    padded = jnp.pad(x, ((kernel // 2, kernel // 2), (kernel // 2, kernel // 2), (0, 0)))
    below = [
        every_nth(padded[: row + x.shape[0], : column + x.shape[1]], stride, starts=(row, column))
        for row, column in product(range(kernel), repeat=2)
    ]
    matrix = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    return jnp.matmul(jnp.concatenate(below, axis=-1), matrix)


def _convolve(x, weight, stride, *paddings):
    return lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=(stride, stride),
        padding=paddings,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )[0]
