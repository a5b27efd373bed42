"""Everything that the layers do for a compiler or an exporter and not for LeViT, each under a plain name.

None of it changes a result by more than rounding. The numbers are for a batch of 16 on two cores of an AMD Zen 4 with
jax 0.12, compared with leaving it out.
"""

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
    """Marks the result of a product, a convolution or a sum over the batch, which `checkpointed` stores for the
    backward pass. Recomputing these takes longer than writing and reading them."""
    return jax.tree.map(lambda array: checkpoint_name(array, _STORED), x)


def checkpointed(function: Callable[..., Any], *, stores: bool = True) -> Callable[..., Any]:
    """Returns `function` with a backward pass that recomputes everything but its inputs and, if it `stores` them, the
    results that `stored` marks.

    Normalised values, activations and attention weights are not stored. A training step of LeViT-256 writes 250 MB
    instead of 755, and takes 23 % less time, since the first write to each page of memory is slow. LeViT-128S: 18 %.
    """
    policy = jax.checkpoint_policies.save_only_these_names(_STORED) if stores else None
    return eqx.filter_checkpoint(function, policy=policy)


def unfused(x: Array) -> Array:
    """Keeps XLA from fusing the operations before `x` with those after it.

    Otherwise, the backward pass of a batch normalisation fuses its derivative into a transposing copy for the product
    before it. A training step of LeViT-128S takes 7 % less time.
    """
    return lax.optimization_barrier(x)


def settled(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds `x` to 16 bits, so that it is the same number in every use.

    XLA may recompute a value for each use and fuse its last operation there. The uses then see numbers that differ in
    the last bit. For the centre of a batch normalisation, that put constant bfloat16 channels of 1e3 off by 1.8e-2. No
    compiler fuses across an explicit rounding.
    """
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=15)


def in_float32(function: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Applies an elementwise function in float32 and rounds once at its end.

    XLA on CPU fuses float32 operations into the operation before them, but not bfloat16 ones. Fused LeViT-256 in
    bfloat16 takes 7 % less time.
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

    XLA on CPU converts a bfloat16 convolution to float32, although processors have instructions for bfloat16 products.
    With 64 channels or more, it is therefore one product in inference: fused LeViT-256 in bfloat16 takes 4 % less time.
    With fewer channels a product is slower.
    """
    if x.dtype != jnp.bfloat16 or weight.shape[1] < 64:
        return _directly(x, weight, stride)
    return lax.platform_dependent(
        x, weight, cpu=partial(_product, stride=stride), default=partial(_directly, stride=stride)
    )


@convolve.defjvp
def _(stride, primals, tangents):
    x, weight = primals
    x_tangent, weight_tangent = tangents
    # The sum equals the convolution of `x_tangent`, and its transpose convolves the cotangent directly. The transpose
    # of a strided convolution first inserts zeros between rows and columns. A training step of LeViT-128S takes 6 %
    # less time.
    of_x = sum(_phases(x_tangent, weight, stride))
    return _directly(x, weight, stride), of_x + _directly(x, weight_tangent, stride)


def _directly(x, weight, stride):
    half = weight.shape[-1] // 2
    return _convolve(x, weight, stride, (half, half), (half, half))


def _phases(x, weight, stride):
    """Convolutions with a stride of 1, of every `stride`-th row and column of `x`. Their sum is the one with
    `stride`."""
    half = weight.shape[-1] // 2
    for row, column in product(range(stride), repeat=2):
        # The part of the kernel that meets these rows and columns only.
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
    """The convolution as one product of the weight and the patches under the kernel."""
    kernel = weight.shape[-1]
    padded = jnp.pad(x, ((kernel // 2, kernel // 2), (kernel // 2, kernel // 2), (0, 0)))
    patches = [
        every_nth(padded[: row + x.shape[0], : column + x.shape[1]], stride, starts=(row, column))
        for row, column in product(range(kernel), repeat=2)
    ]
    matrix = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    return jnp.matmul(jnp.concatenate(patches, axis=-1), matrix)


def _convolve(x, weight, stride, *paddings):
    return lax.conv_general_dilated(
        x[None],
        weight,
        window_strides=(stride, stride),
        padding=paddings,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )[0]
