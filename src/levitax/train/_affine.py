import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._array_checks import as_number, check_map
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
    """Shifts, rotates and scales an image at random, with bilinear interpolation.

    **Arguments:**

    - `image`: one image, `(height, width, channels)`. For a batch, use `jax.vmap` with split keys.
    - `max_shift`: the largest shift along each axis, in pixels.
    - `max_rotation`: the largest rotation about the centre, in degrees, in either direction.
    - `max_scale`: the largest relative change of size: 0.1 scales by 0.9 to 1.1.
    - `fill`: the value of pixels from outside the image, a number or a scalar `()`.
    - `key`: a random key. Shift, rotation and scale are drawn uniformly.

    **Returns:** `(height, width, channels)` in the dtype of `image`.

    **Raises:** `ValueError` unless `image` has three axes; also if a maximum is negative, not finite, above 180 degrees
    or above a scale of 0.99.
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
    # `map_coordinates` accepts only a compile-time constant as its fill, so subtract `fill` first and add it after.
    sample = lambda channel: fill + jax.scipy.ndimage.map_coordinates(channel - fill, source, order=1)
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(wide).astype(image.dtype)
