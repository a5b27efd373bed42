from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "height width in_channels"],
    weight: Float[Array, "out_channels in_channels kernel kernel"],
    stride: int,
) -> Float[Array, "new_height new_width out_channels"]:
    """A square convolution of odd size, padded by half of it on every side, as PyTorch's `padding=kernel_size // 2`
    (`"SAME"` would shift even sizes by one pixel)."""
    half = weight.shape[-1] // 2
    directly = lambda x, weight: _convolve(x, weight, stride, (half, half), (half, half))
    if x.dtype != jnp.bfloat16 or weight.shape[1] < 64:
        return directly(x, weight)
    # XLA on CPU converts a convolution to float32, and has instructions for products of bfloat16. Without AMX, 16 maps
    # of 28x28, 128 to 256 channels: 6 ms instead of 11; 56x56, 64 to 128: 10 instead of 11.6; below 64 channels slower.
    return lax.platform_dependent(x, weight, cpu=partial(_product, stride=stride), default=directly)


@convolve.defjvp
def _(stride, primals, tangents):
    x, weight = primals
    x_tangent, weight_tangent = tangents
    # Linear in `x`, this sum is the convolution again, and what reverse mode makes of it is quicker: convolutions of
    # the cotangent as it is, where the one above has zeros put between its rows and columns.
    of_x = sum(_phases(x_tangent, weight, stride))
    return convolve(x, weight, stride), of_x + convolve(x, weight_tangent, stride)


def every_nth(
    x: Float[Array, "..."], stride: int, *, axes: tuple[int, int] = (0, 1), starts: tuple[int, int] = (0, 0)
) -> Float[Array, "..."]:
    """Every `stride`-th row and column of `x`: `x[starts[0]::stride, starts[1]::stride]`, which before jax 0.9.1 is a
    gather."""
    first, steps = [0] * x.ndim, [1] * x.ndim
    for axis, start in zip(axes, starts, strict=True):
        first[axis], steps[axis] = min(start, x.shape[axis]), stride
    return lax.slice(x, first, x.shape, steps)


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
