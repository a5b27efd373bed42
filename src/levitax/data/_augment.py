import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_number, check_map
from .._keys import as_key


def random_affine(
    image: Float[Array, "height width channels"],
    *,
    max_shift: float = 0.0,
    max_rotation: float = 0.0,
    max_scale: float = 0.0,
    fill: float | Float[Array, ""] = 0.0,
    key: PRNGKeyArray,
) -> Float[Array, "height width channels"]:
    """Shifts, turns and scales an image at random, with bilinear interpolation.

    **Arguments:**

    - `image`: one image, `(height, width, channels)`; use `jax.vmap` with split keys for a batch.
    - `max_shift`: pixels, in both directions.
    - `max_rotation`: degrees, about the centre, either way.
    - `max_scale`: largest relative change of size.
    - `fill`: what comes in from outside, a number or a scalar `()`.
    - `key`: draws all of them uniformly.

    **Returns:** `(height, width, channels)` in the dtype of `image`.

    **Raises:** `ValueError` for another number of axes, and for maxima that are negative or not finite, above 180
    degrees or a scale of 0.99.
    """
    check_map("image", image)
    max_shift, max_rotation = (
        as_number("max_shift", max_shift, 0, math.inf),
        as_number("max_rotation", max_rotation, 0, 180),
    )
    max_scale = as_number("max_scale", max_scale, 0, 0.99)
    height, width, _ = image.shape
    shift_key, angle_key, scale_key = jax.random.split(as_key(key), 3)
    shift = jax.random.uniform(shift_key, (2, 1, 1), jnp.float32, -max_shift, max_shift)
    angle = math.radians(1) * jax.random.uniform(angle_key, (), jnp.float32, -max_rotation, max_rotation)
    scale = 1 + jax.random.uniform(scale_key, (), jnp.float32, -max_scale, max_scale)
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2], jnp.float32)[:, None, None]
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    offset = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij")) - centre
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    source = centre + shift + jnp.einsum("ij,jhw->ihw", rotation, offset) / scale
    wide = image.astype(np.promote_types(image.dtype, np.float32))
    source, fill = list(source.astype(wide.dtype)), jnp.asarray(fill, wide.dtype)
    # `map_coordinates` takes only a constant of the program as its own fill.
    sample = lambda channel: fill + jax.scipy.ndimage.map_coordinates(channel - fill, source, order=1)
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(wide).astype(image.dtype)
