from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._array_checks import as_array, as_share, check_each, check_form, check_number, check_width
from .._keys import as_key
from ._targets import in_float32


def mixup(
    images: Float[Array, "batch height width channels"],
    targets: PyTree[Float[Array, "batch ..."]],
    lam: Float[Array, ""],
) -> tuple[Float[Array, "batch height width channels"], PyTree[Float[Array, "batch ..."]]]:
    """Blends each image and its targets with those at the same position of the reversed batch (Zhang et al. 2018, arXiv
    1710.09412).

    **Arguments:**

    - `images`: `(batch, height, width, channels)`.
    - `targets`: arrays with a row for each image, `(batch, ...)`, such as distributions over the classes.
    - `lam`: a scalar `()`, the share of the image itself, in [0, 1].

    **Returns:** images `(batch, height, width, channels)` and targets `(batch, ...)`, in their dtypes. Under `jax.jit`,
    where values cannot be checked, all are NaN if `lam` is outside [0, 1].

    **Raises:** `TypeError` or `ValueError` for images or targets that are not floating-point numbers with a row for
    each image, and if `lam` is outside [0, 1].
    """
    _check_mixable(images, targets)
    lam = as_share("lam", lam)
    return jax.tree.map(lambda array: _blend(array, lam), (images, targets))


def cutmix(
    images: Float[Array, "batch height width channels"],
    targets: PyTree[Float[Array, "batch ..."]],
    lam: Float[Array, ""],
    centre: Int[Array, "2"],
) -> tuple[Float[Array, "batch height width channels"], PyTree[Float[Array, "batch ..."]]]:
    """Pastes a box from the image at the same position of the reversed batch into each image. Blends the targets by
    area (Yun et al. 2019, arXiv 1905.04899).

    **Arguments:**

    - `images`, `targets`: `(batch, height, width, channels)` and `(batch, ...)`, as in [`levitax.train.mixup`][].
    - `lam`: a scalar `()`, the share of the image that stays, before the box is clipped at the border.
    - `centre`: `(2,)`, row and column of the box's centre, from 0 to below height and width.

    **Returns:** images `(batch, height, width, channels)` and targets `(batch, ...)`, in their dtypes. Under `jax.jit`,
    where values cannot be checked, all are NaN if `lam` is outside [0, 1] or `centre` outside the image.

    **Raises:** `TypeError` or `ValueError` for images or targets that are not floating-point numbers with a row for
    each image, and if `lam` is outside [0, 1] or `centre` outside the image.
    """
    _check_mixable(images, targets)
    lam = jnp.asarray(as_share("lam", lam), jnp.float32)
    is_inside = _check_centre(centre, images.shape[1:3])
    size = jnp.array(images.shape[1:3], jnp.int32)
    box_size = (size.astype(jnp.float32) * jnp.sqrt(1 - lam)).astype(jnp.int32)
    centre = jnp.asarray(centre).astype(jnp.int32)
    # Like timm since 1.0; before, a box of odd size was one pixel smaller.
    low, high = jnp.clip(centre - box_size // 2, 0, size), jnp.clip(centre + (box_size + 1) // 2, 0, size)
    rows, columns = (_between(size, low[axis], high[axis]) for axis, size in enumerate(images.shape[1:3]))
    box = (rows[:, None] & columns[None, :])[None, :, :, None]
    left = 1 - jnp.prod((high - low).astype(jnp.float32) / size.astype(jnp.float32))
    left = jnp.where(is_inside & (lam >= 0), left, jnp.nan)
    images = jnp.where(jnp.isnan(left), jnp.nan, jnp.where(box, images[::-1], images))
    return images, jax.tree.map(lambda array: _blend(array, left), targets)


def mix(
    images: Float[Array, "batch height width channels"],
    targets: PyTree[Float[Array, "batch ..."]],
    *,
    mixup_alpha: float | Float[Array, ""] = 0.8,
    cutmix_alpha: float | Float[Array, ""] = 1.0,
    probability: float | Float[Array, ""] = 1.0,
    switch_probability: float | Float[Array, ""] = 0.5,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "batch height width channels"], PyTree[Float[Array, "batch ..."]]]:
    """Applies [`levitax.train.mixup`][] or [`levitax.train.cutmix`][] to a batch, drawn once for the whole batch.

    **Arguments:**

    - `images`, `targets`: `(batch, height, width, channels)` and `(batch, ...)`, as in [`levitax.train.mixup`][].
    - `mixup_alpha`, `cutmix_alpha`: `()`, the share is drawn from Beta(alpha, alpha). 0 turns that kind off, but a
        traced 0, which cannot be checked, gives NaN. The defaults are the paper's.
    - `probability`: `()`, of mixing at all.
    - `switch_probability`: `()`, of cutmix if both are possible.
    - `key`: draws all random numbers.

    **Returns:** images `(batch, height, width, channels)` and targets `(batch, ...)`, in their dtypes.

    **Raises:** `TypeError` or `ValueError` for a negative alpha, a probability outside [0, 1], targets without a row
    for each image, and, if anything is mixed, the errors of [`levitax.train.mixup`][].
    """
    mixup_alpha, cutmix_alpha = _as_alpha("mixup_alpha", mixup_alpha), _as_alpha("cutmix_alpha", cutmix_alpha)
    probability = as_share("probability", probability)
    switch_probability = as_share("switch_probability", switch_probability)
    _check_targets(targets, len(images), jnp.floating, jnp.integer, jnp.bool_)
    if _is_zero(probability) or (_is_zero(mixup_alpha) and _is_zero(cutmix_alpha)):
        return images, targets
    mixes_key, kind_key, mixup_key, cutmix_key, centre_key = jax.random.split(as_key(key), 5)

    # In float32 also with 64-bit JAX, so that a key draws the same.
    draw = lambda key, alpha: jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    happens = lambda key, probability: jax.random.bernoulli(key, jnp.asarray(probability, jnp.float32))

    def fade():
        return mixup(images, targets, draw(mixup_key, mixup_alpha))

    def paste():
        centre = jax.random.randint(centre_key, (2,), 0, jnp.array(images.shape[1:3], jnp.int32), jnp.int32)
        return cutmix(images, targets, draw(cutmix_key, cutmix_alpha), centre)

    # An alpha of 0 is no Beta distribution, so that kind is not even traced.
    kinds = [lambda: (images, targets)]
    kinds += [kind for kind, alpha in ((fade, mixup_alpha), (paste, cutmix_alpha)) if not _is_zero(alpha)]
    pasting = happens(kind_key, switch_probability) & (len(kinds) == 3)
    chosen = jnp.where(happens(mixes_key, probability), jnp.where(pasting, 2, 1), 0)
    return jax.lax.switch(chosen, kinds)


def _check_mixable(images, targets):
    way_out = "Mix after normalising."
    check_form(
        "images", as_array("images", images), {jnp.floating: ("batch", "height", "width", "channels")}, way_out=way_out
    )
    _check_targets(targets, len(images), jnp.floating)


def _check_targets(targets: Any, rows: int, *kinds: Any) -> None:
    """Raises unless every array of `targets` is of one of these kinds and has a row for each image."""
    way_out = "Pass a row for each image; `levitax.train.one_hot` turns class numbers into distributions."
    for path, array in jax.tree.leaves_with_path(targets):
        name = f"targets{jax.tree_util.keystr(path)}"
        check_form(name, as_array(name, array), dict.fromkeys(kinds, (rows, ...)), way_out=way_out)


def _check_centre(centre: Any, size: tuple[int, ...]) -> Array:
    """Whether `centre` is in an image of this size. Raises if it is not and can be checked."""
    centre = as_array("centre", centre)
    check_form("centre", centre, {jnp.integer: (2,)}, way_out="It is the row and the column of one pixel.")
    check_width("centre", centre)
    inside = lambda pixel: (pixel >= 0) & (pixel.astype(np.int32) < np.array(size, np.int32))
    return check_each("centre", centre, inside, f"a row and a column in an image of {size[0]}x{size[1]} pixels.").all()


def _as_alpha(name, value):
    return check_number(name, value, lambda number: (number >= 0) & (number < np.inf), "a finite number, 0 or more")


def _is_zero(number):
    return not isinstance(number, Tracer) and number == 0


def _blend(array, lam):
    wide = in_float32(array)
    lam = jnp.asarray(lam, wide.dtype)
    return (lam * wide + (1 - lam) * wide[::-1]).astype(array.dtype)


def _between(size: int, low: Array, high: Array) -> Bool[Array, " size"]:
    positions = jnp.arange(size, dtype=jnp.int32)
    return (positions >= low) & (positions < high)
