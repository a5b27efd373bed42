from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from .._explicit import first_axis, in_auto_mode
from .._keys import as_key
from ..data import Preprocessing
from ._affine import random_affine
from ._erase import random_erase
from ._mixing import mix
from ._recipe import Recipe


def prepare(
    images: UInt8[Array, "batch height width channels"],
    targets: PyTree[Float[Array, "batch ..."]],
    recipe: Recipe,
    *,
    preprocessing: Preprocessing,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "batch height width channels"], PyTree[Float[Array, "batch ..."]]]:
    """Prepares a batch for the model on the device: shifts, rotates and scales it, normalises, erases and mixes.

    Pixels arrive as bytes, a quarter of the size of floats. Compile `prepare` for the accelerator with
    `jax.jit(partial(prepare, recipe=recipe, preprocessing=preprocessing))`.

    **Arguments:**

    - `images`: `(batch, height, width, channels)`, pixels from 0 to 255.
    - `targets`: arrays with a row for each image, `(batch, ...)`, which mixing blends like the images: for example
        distributions over the classes, from [`levitax.train.one_hot`][].
    - `recipe`: the fields from `max_shift` to `switch_probability` apply, and `group_size`: mixing stays within a
        group, with a separate draw for each.
    - `preprocessing`: its mean and standard deviation apply.
    - `key`: draws all random numbers.

    **Returns:** images `(batch, height, width, channels)` in float32, and targets `(batch, ...)`.

    **Raises:** `TypeError` for images with a dtype other than uint8; `ValueError` if `group_size` does not divide the
    batch, or `preprocessing` has another number of channels.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"`images` have dtype {images.dtype}; expected uint8, pixels from 0 to 255.")

    def call(images, targets, key):
        affine_key, erase_key, mix_key = jax.random.split(key, 3)
        pixels = images.astype(jnp.float32)
        if recipe.max_shift or recipe.max_rotation or recipe.max_scale:
            move = partial(
                random_affine, max_shift=recipe.max_shift, max_rotation=recipe.max_rotation, max_scale=recipe.max_scale
            )
            pixels = _each(move, pixels, affine_key)
        pixels = preprocessing.normalise(pixels)
        if recipe.erase_probability:
            pixels = _each(partial(random_erase, probability=recipe.erase_probability), pixels, erase_key)
        mix_group = partial(
            mix,
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            probability=recipe.mix_probability,
            switch_probability=recipe.switch_probability,
        )
        if recipe.group_size is None:
            return mix_group(pixels, targets, key=mix_key)
        if len(images) % recipe.group_size:
            raise ValueError(
                f"`group_size` is {recipe.group_size}, which does not divide a batch of {len(images)} images."
            )
        groups = len(images) // recipe.group_size
        split = lambda array: array.reshape(groups, recipe.group_size, *array.shape[1:])
        pixels, targets = jax.tree.map(split, (pixels, targets))
        each = jax.vmap(lambda pixels, targets, key: mix_group(pixels, targets, key=key))
        mixed = each(pixels, targets, jax.random.split(mix_key, groups))
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), mixed)

    spread = first_axis(images)
    return in_auto_mode(call, (spread, spread), images, targets, as_key(key))


def _each(augment, images, key):
    return jax.vmap(lambda image, key: augment(image, key=key))(images, jax.random.split(key, len(images)))
