import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._keys import as_key


def mixup(
    images: Float[Array, "batch height width channels"],
    targets: PyTree[Float[Array, "batch ..."]],
    lam: Float[Array, ""],
) -> tuple[Float[Array, "batch height width channels"], PyTree[Float[Array, "batch ..."]]]:
    """Fades each image, and its targets, into the one at the same place from the batch's end (Zhang et al. 2018, arXiv
    1710.09412).

    **Arguments:**

    - `images`: `(batch, height, width, channels)`.
    - `targets`: any arrays of a row an image, `(batch, ...)`, such as distributions over the classes.
    - `lam`: a scalar `()`, the share of the image itself, in [0, 1].

    **Returns:** images `(batch, height, width, channels)` and targets `(batch, ...)`, in the dtypes that they had.
    """
    return jax.tree.map(lambda array: _blend(array, lam), (images, targets))


def cutmix(
    images: Float[Array, "batch height width channels"],
    targets: PyTree[Float[Array, "batch ..."]],
    lam: Float[Array, ""],
    centre: Int[Array, "2"],
) -> tuple[Float[Array, "batch height width channels"], PyTree[Float[Array, "batch ..."]]]:
    """Pastes into each image a box of the one at the same place from the batch's end, and blends their targets by area
    (Yun et al. 2019, arXiv 1905.04899).

    **Arguments:**

    - `images`, `targets`: `(batch, height, width, channels)` and `(batch, ...)`, as in [`levitax.train.mixup`][].
    - `lam`: a scalar `()`, the share of the image that stays its own, before the box is cut off at the border.
    - `centre`: `(2,)`, row and column of the box's centre, from 0 to below height and width.

    **Returns:** images `(batch, height, width, channels)` and targets `(batch, ...)`, in the dtypes that they had.
    """
    size = jnp.array(images.shape[1:3])
    box_size = (size * jnp.sqrt(1 - lam)).astype(int)
    # timm since 1.0; before, a box of odd size was one pixel smaller.
    low, high = jnp.clip(centre - box_size // 2, 0, size), jnp.clip(centre + (box_size + 1) // 2, 0, size)
    rows, columns = (_between(size, low[axis], high[axis]) for axis, size in enumerate(images.shape[1:3]))
    box = (rows[:, None] & columns[None, :])[None, :, :, None]
    left = 1 - jnp.prod((high - low) / size)
    return jnp.where(box, images[::-1], images), jax.tree.map(lambda array: _blend(array, left), targets)


def mix(
    images: Float[Array, "batch height width channels"],
    targets: PyTree[Float[Array, "batch ..."]],
    *,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    probability: float = 1.0,
    switch_probability: float = 0.5,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "batch height width channels"], PyTree[Float[Array, "batch ..."]]]:
    """[`levitax.train.mixup`][] or [`levitax.train.cutmix`][] of a batch, drawn once for all of it.

    **Arguments:**

    - `images`, `targets`: `(batch, height, width, channels)` and `(batch, ...)`, as in [`levitax.train.mixup`][].
    - `mixup_alpha`, `cutmix_alpha`: the share is drawn from Beta(alpha, alpha); 0 leaves that kind out. The defaults
        are the paper's.
    - `probability`: of mixing at all.
    - `switch_probability`: probability of cutmix where both are possible.
    - `key`: draws all of it.

    **Returns:** images `(batch, height, width, channels)` and targets `(batch, ...)`, in the dtypes that they had.
    """
    if probability == 0 or mixup_alpha == cutmix_alpha == 0:
        return images, targets
    mixes_key, kind_key, mixup_key, cutmix_key, centre_key = jax.random.split(as_key(key), 5)

    def fade():
        return mixup(images, targets, jax.random.beta(mixup_key, mixup_alpha, mixup_alpha))

    def paste():
        centre = jax.random.randint(centre_key, (2,), 0, jnp.array(images.shape[1:3]))
        return cutmix(images, targets, jax.random.beta(cutmix_key, cutmix_alpha, cutmix_alpha), centre)

    # An alpha of 0 is no Beta distribution, so that what is left out is not even traced.
    kinds = [lambda: (images, targets), *([fade] if mixup_alpha else []), *([paste] if cutmix_alpha else [])]
    pasting = jax.random.bernoulli(kind_key, switch_probability) & (len(kinds) == 3)
    chosen = jnp.where(jax.random.bernoulli(mixes_key, probability), 1 + pasting, 0)
    return jax.lax.switch(chosen, kinds)


def _blend(array, lam):
    return (lam * array + (1 - lam) * array[::-1]).astype(array.dtype)


def _between(size: int, low: Array, high: Array) -> Bool[Array, " size"]:
    positions = jnp.arange(size)
    return (positions >= low) & (positions < high)
