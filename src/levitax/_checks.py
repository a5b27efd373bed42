import difflib
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def as_integer(name: str, value: Any, minimum: int = 1) -> int:
    """`value` as an `int` of at least `minimum`, or an error that names `name`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` is {value!r}; expected an integer of at least {minimum}.") from None
    if number < minimum:
        raise ValueError(f"`{name}` is {number}; expected an integer of at least {minimum}.")
    return number


def as_integers(name: str, value: Any, length: int, each: str) -> tuple[int, ...]:
    """`value`, one positive integer or a sequence of `length`, as a tuple; `each` says what each belongs to."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (as_integer(name, value),) * length
    if len(value) != length:
        raise ValueError(
            f"`{name}` is {value!r}, of length {len(value)}; expected one integer, or {length}: one for {each}."
        )
    return tuple(as_integer(name, number) for number in value)


def as_rate(name: str, value: Any) -> float:
    """`value` as a `float` in [0, 1), or an error that names `name`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` is {value!r}; expected a number in [0, 1).")
    rate = float(value)
    if not 0 <= rate < 1:
        raise ValueError(f"`{name}` is {value}; expected a rate in [0, 1), where 0 turns it off.")
    return rate


def as_number(name: str, value: Any, low: int | float, high: int | float, *, optional: bool = False) -> Any:
    """`value` as a finite `float` from `low` to `high`, or `None` if that is `optional`; or an error with `name`. A
    traced value stays as it is, since it cannot be seen."""
    if (value is None and optional) or isinstance(value, Tracer):
        return value
    is_scalar = isinstance(value, jax.Array | np.ndarray) and value.shape == () and value.dtype != bool
    is_number = is_scalar or (isinstance(value, Real) and not isinstance(value, bool))
    number = float(cast(Any, value)) if is_number else math.nan
    if not low <= number <= high or math.isinf(number):
        rule = "a finite number" if low == -math.inf else f"a number from {low:g} to {high:g}"
        raise ValueError(f"`{name}` is {value!r}; expected {rule}{' or None' if optional else ''}.")
    return number


def as_crop_scale(value: Any) -> tuple[float, float] | None:
    """`value`, the limits of a random crop's area, as two numbers, or `None`; or an error."""
    if value is None:
        return None
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"`crop_scale` is {value!r}; expected the smallest and the largest share of an image, "
            "0 < smallest <= largest <= 1, or None."
        )
    return low, high


def as_flag(name: str, value: Any) -> bool:
    """`value` as it is if it is a `bool`, or an error that names `name`."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; expected True or False.")
    return value


def as_floating(name: str, value: Any) -> str:
    """The name of a floating-point dtype, or an error that names `name`."""
    try:
        # `None` would be float64.
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` is {value!r}; expected a floating-point type such as 'float32' or 'bfloat16'.")
    return dtype.name


def check_positive(**sizes: Any) -> None:
    """Raises unless every size is a positive integer."""
    for name, value in sizes.items():
        as_integer(name, value)


def check_odd(**sizes: int) -> None:
    """Raises unless every size is odd."""
    for name, size in sizes.items():
        if size % 2 == 0:
            raise ValueError(f"`{name}` is {size}; expected an odd size, which has a centre pixel.")


def check_axis(name: str, array: Any, axis: int, size: int, what: str) -> None:
    """Raises unless `array` is a floating-point one that has `size` elements along `axis`; `what` says of what."""
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(f"`{name}` is of type `{type(array).__name__}`; expected an array with {size} {what}.")
    # Weights take the dtype of what they are multiplied with: as integers they would be 0.
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` has dtype {array.dtype}; expected floating-point numbers: use `{name}.astype(jnp.float32)`."
        )
    if array.ndim == 0 or array.shape[axis] != size:
        raise ValueError(
            f"`{name}` has shape {array.shape}; this layer takes {size} {what} on axis {axis}. Bring the input to that "
            "shape, or make the layer for this one."
        )


def check_map(name: str, array: Any) -> None:
    """Raises unless `array` has the axes of one map."""
    if jnp.ndim(array) != 3:
        raise ValueError(
            f"`{name}` has shape {jnp.shape(array)}; expected (height, width, channels), one map. For a batch use "
            "`jax.vmap`."
        )


def check_features(features: Any, expected: tuple[int, int, int]) -> None:
    """Raises unless `features` is the last map of one image."""
    check_axis("features", features, -1, expected[-1], "channels")
    if features.shape != expected:
        raise ValueError(
            f"`features` has shape {features.shape}; expected {expected}, the last of the maps of one image. For a "
            "batch use `jax.vmap`."
        )


def check_state(state: Any) -> None:
    """Raises unless `state` is an `eqx.nn.State`."""
    if not isinstance(state, eqx.nn.State):
        raise TypeError(
            f"`state` is of type `{type(state).__name__}`; expected the `eqx.nn.State`, with the running statistics, "
            "that was made with the model or that training returned: `model, state = "
            "eqx.nn.make_with_state(Model)(...)`."
        )


def check_statistics(state: eqx.nn.State, index: eqx.nn.StateIndex, shape: tuple[int, ...]) -> None:
    """Raises unless `state` holds the running statistics of a batch normalisation of this `shape` at `index`."""
    other_model = "it was made with another model. Pass the one that `eqx.nn.make_with_state` returned with this model."
    if not isinstance(index.marker, str):
        raise ValueError(
            "This layer was made without its state. Make both together: `model, state = "
            "eqx.nn.make_with_state(Model)(...)`."
        )
    try:
        mean, _ = state.get(index)
    except KeyError:
        raise ValueError(f"`state` has no entry for {index.marker}: {other_model}") from None
    if mean.shape != shape:
        raise ValueError(f"`state` has statistics of shape {mean.shape} for {shape[0]} channels: {other_model}")


def check_count(count: int) -> None:
    """Raises for a batch with too few values per channel to take a variance of."""
    if count < 2:
        held = "one (one image, in a layer with one token, such as the classifier)" if count else "none"
        raise ValueError(
            "Training mode needs more than one value per channel to take a variance of, and the batch holds "
            f"{held}. Use a larger batch, or `eqx.nn.inference_mode(model)`."
        )


@contextmanager
def naming_batch_axis(axis_name: str | tuple[str, ...]) -> Iterator[None]:
    """Explains what JAX raises where a sum over the batch axis is not possible."""
    try:
        yield
    except NameError:
        raise ValueError(
            f"Training mode needs the batch axis {axis_name!r}, and there is none here. Call "
            "`levitax.batched(model)(images, state)`, or `eqx.nn.inference_mode(model)` for single images."
        ) from None
    except Exception as error:
        if not jax.sharding.get_abstract_mesh().manual_axes:
            raise
        raise ValueError(
            f"JAX cannot sum over the batch axis {axis_name!r} in a `jax.shard_map` that checks which values vary over "
            "devices. Leave out `jax.shard_map` and spread the batch with `levitax.train.make_mesh` and "
            "`levitax.train.shard_batch`: batch statistics are then those of the whole batch. Or pass "
            "`check_vma=False`: they are then those of each device, unless `axis_name` names its axes too."
        ) from error


def check_widths(widths: Any) -> None:
    """Raises unless `widths` is a sequence with at least one element."""
    if not isinstance(widths, Sequence) or isinstance(widths, str) or not widths:
        raise ValueError(f"`widths` is {widths!r}; expected the output channels of at least one convolution.")


def check_callable(name: str, value: Any, what: str) -> None:
    """Raises unless `value` can be called; `what` says as what."""
    if not callable(value):
        raise TypeError(f"`{name}` is of type `{type(value).__name__}`; expected {what}.")


def as_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """The one of `choices` that `value` is, or an error that names the nearest ones."""
    choices = tuple(choices)
    # 16.0 equals 16, but is no number of pixels.
    if np.ndim(value) == 0 and value in choices and not isinstance(value, float):
        return choices[choices.index(value)]
    listed = ", ".join(map(repr, choices))
    raise ValueError(f"`{name}` is {value!r}; expected one of {listed}.{_nearest(value, choices)}")


def check_keywords(given: Iterable[str], known: type) -> None:
    """Raises unless all keywords are among the annotations of `known`, naming the nearest ones."""
    for name in given:
        if name not in known.__annotations__:
            listed = ", ".join(f"`{keyword}`" for keyword in known.__annotations__)
            hint = _nearest(name, known.__annotations__) or f" Expected {listed}."
            raise TypeError(f"There is no `{name}`.{hint}")


def _nearest(value: Any, choices: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_image(image: Any, expected: tuple[int, int, int]) -> None:
    """Raises unless `image` is one floating-point image of shape `expected`, saying how what is there comes about."""
    if not isinstance(image, jax.Array | np.ndarray | np.generic):
        raise TypeError(
            f"`image` is of type `{type(image).__name__}`; expected an array of JAX or NumPy: use `jnp.asarray(image, "
            "jnp.float32)`, scaled and normalised."
        )
    if image.shape != expected:
        raise ValueError(
            f"`image` has shape {image.shape}; expected {expected}: height, width, channels. "
            f"{_way_to_image(image.shape, expected)}."
        )
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"`image` has dtype {image.dtype.name}; expected floating-point pixels, scaled and normalised: begin with "
            "`image.astype(jnp.float32) / 255`."
        )


def _way_to_image(shape: tuple[int, ...], expected: tuple[int, int, int]) -> str:
    """How an array of another shape came about, and how it becomes the image that is expected."""
    height, width, channels = expected
    size = height * width * channels
    call = "call `levitax.batched(model)(images, state)`, or `jax.vmap(predict)(images)`"
    to_images = f"`images.reshape(-1, {height}, {width}, {channels})`"
    to_colours = "" if channels == 1 else f".repeat({channels}, -1)"
    match shape:
        case _ if 0 in shape:
            return "An axis of it has no elements: look where it was read, cropped or gathered"
        case (first,) if first == size:
            return f"Its pixels have lost their axes: use `image.reshape({height}, {width}, {channels})`"
        case () | (_,):
            return "Pass a whole image, such as a `levitax.data.Preprocessing` gives"
        case (_, last) if shape == (width, channels):
            return "A single image went where a batch belongs: call `model(image, state)` without `batched` or `vmap`"
        case (_, last) if last == size:
            return f"The pixels of a batch have lost their axes: use {to_images}, and {call}"
        case (_, _):
            return f"The axis of channels is missing: use `image[:, :, None]{to_colours}` for a grey image"
        case (_, _, _):
            return _way_from_three_axes(shape, expected, f"`images[..., None]{to_colours}`, and {call}")
        case (_, *rest) if rest == [channels, height, width]:
            return f"This is a batch, and channels come last: use `jnp.moveaxis(images, 1, -1)`, and {call}"
        case (_, _, _, _):
            return f"This is a batch: {call}"
        case _:
            return f"These are batches: use {to_images}, and {call}"


def _way_from_three_axes(shape: tuple[int, ...], expected: tuple[int, int, int], of_grey_batch: str) -> str:
    height, width, channels = expected
    if shape == (height, channels, width):
        return "Channels come last: use `jnp.moveaxis(image, 1, -1)`"
    if shape[0] == channels != shape[2]:
        then = f"; then resize it, or make the model with `image_size={shape[1:]}`"
        return f"Channels come last: use `jnp.moveaxis(image, 0, -1)`{then if shape[1:] != (height, width) else ''}"
    if shape[1:] == (height, width):
        return f"A batch of grey images lacks the axis of channels: use {of_grey_batch}"
    if shape == (width, height, channels):
        return (
            f"Make the model with `image_size={shape[:2]}`, or resize the image; if its first axis is the width, use "
            "`jnp.swapaxes(image, 0, 1)`"
        )
    if shape[:2] == (height, width):
        return f"Make the model with `in_channels={shape[2]}`, or bring the image to {channels} channels"
    if shape[2] == channels:
        return f"Make the model with `image_size={shape[:2]}`, or resize the image"
    return (
        f"Make the model with `image_size={shape[:2]}` and `in_channels={shape[2]}`, or bring the image to the model's "
        "shape, as a `levitax.data.Preprocessing` does"
    )
