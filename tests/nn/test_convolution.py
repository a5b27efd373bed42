from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from levitax.nn._xla import convolve


def plain(x, weight, stride):
    half = weight.shape[-1] // 2
    padding = ((half, half), (half, half))
    numbers = ("NHWC", "OIHW", "NHWC")
    return lax.conv_general_dilated(x[None], weight, (stride, stride), padding, dimension_numbers=numbers)[0]


@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"),
    [
        (8, 8, 3, 2),
        (9, 11, 5, 3),
        (8, 5, 3, 1),
        *(
            pytest.param(*sizes, marks=pytest.mark.slow)
            for sizes in ((9, 8, 3, 2), (7, 6, 5, 2), (10, 7, 1, 2), (7, 9, 3, 4))
        ),
    ],
)
def test_the_derivatives_are_those_of_a_plain_convolution(height, width, kernel, stride, images, key, error):
    x = images(height, width, 3)
    weight, x_tangent, weight_tangent = (
        jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
        for index, shape in enumerate([(5, 3, kernel, kernel), x.shape, (5, 3, kernel, kernel)])
    )

    # Inputs are arguments, because XLA before jax 0.8.2 folds constants to a wrong second derivative of `plain`.
    @partial(jax.jit, static_argnums=0)
    def derivatives(convolution, x, weight, tangents):
        loss = lambda x, weight: jnp.sin(convolution(x, weight, stride)).sum()
        gradient = jax.grad(loss, (0, 1))
        return [
            convolution(x, weight, stride),
            jax.jvp(loss, (x, weight), tangents),
            gradient(x, weight),
            jax.jvp(gradient, (x, weight), tangents)[1],
        ]

    given = x, weight, (x_tangent, weight_tangent)
    ours, expected = (derivatives(convolution, *given) for convolution in (convolve, plain))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert error(one, other) < 1e-5


def test_many_channels_of_bfloat16_are_convolved_in_it(images, key, error):
    x, weight = images(9, 8, 64), jax.random.normal(key, (5, 64, 3, 3))
    x, weight = x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    loss = lambda convolution: lambda x, weight: (convolution(x, weight, 2).astype(jnp.float32) ** 2).sum()
    run = lambda convolution: jax.jit(
        lambda *given: (convolution(*given, 2), jax.grad(loss(convolution), (0, 1))(*given))
    )
    ours, expected = run(convolve)(x, weight), run(plain)(x.astype(jnp.float32), weight.astype(jnp.float32))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert one.dtype == jnp.bfloat16
        assert error(one.astype(jnp.float32), other) < 2**-7


@pytest.mark.parametrize(("channels", "is_product"), [(63, False), (64, True)])
def test_convolutions_with_many_channels_are_products_on_the_cpu(channels, is_product):
    x, weight = jnp.ones((9, 8, channels), jnp.bfloat16), jnp.ones((5, channels, 3, 3), jnp.bfloat16)
    lowered = (
        jax.jit(lambda x, weight: convolve(x, weight, 2)).trace(x, weight).lower(lowering_platforms=("cpu",)).as_text()
    )
    assert ("dot_general" in lowered, "stablehlo.convolution" in lowered) == (is_product, not is_product)
