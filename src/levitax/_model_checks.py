"""Checks of models: their images, states and layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._array_checks import check_axis
from ._checks import name_of_function, why_not_called


def check_features(features: Any, expected: tuple[int, int, int]) -> None:
    """Raises unless `features` is the last feature map of one image."""
    check_axis("features", features, -1, expected[-1], "channels")
    if features.shape != expected:
        raise ValueError(
            f"`features` has shape {features.shape}; expected {expected}, the last feature map of one image. For a "
            "batch, use `jax.vmap`."
        )


def check_state(state: Any) -> None:
    """Raises unless `state` is an `eqx.nn.State`."""
    if not isinstance(state, eqx.nn.State):
        raise TypeError(
            f"`state` is of type `{type(state).__name__}`; expected an `eqx.nn.State` with the running statistics: the "
            "one made with the model by `model, state = eqx.nn.make_with_state(Model)(...)`, or the one that training "
            "returned."
        )


def read_statistics(state: eqx.nn.State, index: eqx.nn.StateIndex, shape: tuple[int, ...]) -> Any:
    """Returns the running statistics at `index`, or raises unless `state` holds them in this `shape`."""
    other_model = "it was made with another model. Pass the state from `eqx.nn.make_with_state` for this model."
    if not isinstance(index.marker, str):
        raise ValueError(
            "This layer was made without its state. Make both together: `model, state = "
            "eqx.nn.make_with_state(Model)(...)`."
        )
    try:
        running = state.get(index)
    except KeyError:
        raise ValueError(f"`state` has no entry for {index.marker}: {other_model}") from None
    if running.mean.shape != shape:
        raise ValueError(f"`state` has statistics of shape {running.mean.shape} for {shape[0]} channels: {other_model}")
    return running


def check_count(count: int) -> None:
    """Raises if a batch has too few values per channel for a variance."""
    if count < 2:
        held = "one (one image, in a layer with one token, such as the classifier)" if count else "none"
        raise ValueError(
            "Training mode needs more than one value per channel to compute a variance, but the batch holds "
            f"{held}. Use a larger batch, or `eqx.nn.inference_mode(model)`."
        )


@contextmanager
def naming_batch_axis(axis_name: str | tuple[str, ...]) -> Iterator[None]:
    """Explains the errors that JAX raises if it cannot sum over the batch axis."""
    try:
        yield
    except NameError:
        raise ValueError(
            f"Training mode needs the batch axis {axis_name!r}, which does not exist here. Call "
            "`levitax.batched(model)(images, state)`, or `eqx.nn.inference_mode(model)` for single images."
        ) from None
    except Exception as error:
        if not jax.sharding.get_abstract_mesh().manual_axes:
            raise
        raise ValueError(
            f"JAX cannot sum over the batch axis {axis_name!r} in a `jax.shard_map` that checks which values vary over "
            "devices. Drop `jax.shard_map` and shard the batch with `levitax.train.make_mesh` and "
            "`levitax.train.shard_batch`: the batch statistics then cover the whole batch. Or pass `check_vma=False`: "
            "each device then has its own, unless `axis_name` names the mesh axes too."
        ) from error


def check_callable(name: str, value: Any, what: str) -> None:
    """Raises unless `value` can be called; `what` names what is expected."""
    if not callable(value):
        raise TypeError(f"`{name}` is of type `{type(value).__name__}`; expected {what}.")


def check_activation(activation: Any) -> None:
    """Raises unless `activation` is a function of one array."""
    if why := why_not_called(activation, "x"):
        raise TypeError(
            f"`activation` is {_described(activation)}, which cannot be called as `activation(x)` ({why}); expected a "
            "function of an array, such as `jax.nn.gelu`."
        )


def check_made(name: str, made: Any, what: str, *arguments: Any, **keywords: Any) -> None:
    """Raises unless what the factory `name` made can be called with such arguments; `what` says what is expected."""
    if why := why_not_called(made, *arguments, **keywords):
        raise TypeError(f"`{name}` returned {_described(made)}, which cannot be called so ({why}); expected {what}.")


def check_result(name: str, layer: Any, result: Any, shape: tuple[int, ...]) -> Any:
    """Returns `result`, or raises unless it is an array of this shape, with a state."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], eqx.nn.State):
        raise TypeError(
            f"The layer of `{name}`, {_described(layer)}, returned {_described(result)}; expected a tuple of the array "
            "and the state: `return x, state`."
        )
    check_shape(f"The result of the layer of `{name}`, {_described(layer)},", result[0], shape)
    return result


def check_shape(what: str, array: Any, shape: tuple[int, ...]) -> None:
    """Raises unless `array` is an array of this shape."""
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(f"{what} is {_described(array)}; expected an array of shape {shape}.")
    if array.shape != shape:
        raise ValueError(f"{what} has shape {array.shape}; expected {shape}.")


def _described(value: Any) -> str:
    if eqx.is_array(value):
        return f"an array of shape {value.shape}"
    if value is None or isinstance(value, str | Real):
        return repr(value)
    is_named = callable(value) and hasattr(value, "__qualname__")
    return f"`{name_of_function(value)}`" if is_named else f"a value of type `{type(value).__name__}`"


def check_image(image: Any, expected: tuple[int, int, int]) -> None:
    """Raises unless `image` is one floating-point image of shape `expected`; says how to get one."""
    if not isinstance(image, jax.Array | np.ndarray | np.generic):
        raise TypeError(
            f"`image` is of type `{type(image).__name__}`; expected a JAX or NumPy array, scaled and normalised: start "
            "with `jnp.asarray(image, jnp.float32)`."
        )
    if image.shape != expected:
        raise ValueError(
            f"`image` has shape {image.shape}; expected {expected}: height, width, channels. "
            f"{_way_to_image(image.shape, expected)}."
        )
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"`image` has dtype {image.dtype.name}; expected floating-point pixels, scaled and normalised: start with "
            "`image.astype(jnp.float32) / 255`."
        )


def _way_to_image(shape: tuple[int, ...], expected: tuple[int, int, int]) -> str:
    """Guesses where another shape comes from, and says how to convert it to `expected`."""
    height, width, channels = expected
    size = height * width * channels
    call = "call `levitax.batched(model)(images, state)`, or `jax.vmap(predict)(images)`"
    to_images = f"`images.reshape(-1, {height}, {width}, {channels})`"
    to_colours = "" if channels == 1 else f".repeat({channels}, -1)"
    match shape:
        case _ if 0 in shape:
            return "An axis has no elements: check where the image was read, cropped or gathered"
        case (first,) if first == size:
            return f"The image is flattened: use `image.reshape({height}, {width}, {channels})`"
        case () | (_,):
            return "Pass a whole image, such as a `levitax.data.Preprocessing` returns"
        case (_, last) if shape == (width, channels):
            return "A single image was passed as a batch: call `model(image, state)` without `batched` or `vmap`"
        case (_, last) if last == size:
            return f"The images of a batch are flattened: use {to_images}, and {call}"
        case (_, _):
            return f"The channel axis is missing: use `image[:, :, None]{to_colours}` for a grey image"
        case (_, _, _):
            return _way_from_three_axes(shape, expected, f"`images[..., None]{to_colours}`, and {call}")
        case (_, *rest) if rest == [channels, height, width]:
            return f"This is a batch with channels first: use `jnp.moveaxis(images, 1, -1)`, and {call}"
        case (_, _, _, _):
            return f"This is a batch: {call}"
        case _:
            return f"These are several batches: use {to_images}, and {call}"


def _way_from_three_axes(shape: tuple[int, ...], expected: tuple[int, int, int], of_grey_batch: str) -> str:
    height, width, channels = expected
    if shape == (height, channels, width):
        return "Channels come last: use `jnp.moveaxis(image, 1, -1)`"
    if shape[0] == channels != shape[2]:
        then = f"; then resize it, or make the model with `image_size={shape[1:]}`"
        return f"Channels come last: use `jnp.moveaxis(image, 0, -1)`{then if shape[1:] != (height, width) else ''}"
    if shape[1:] == (height, width):
        return f"A batch of grey images lacks the channel axis: use {of_grey_batch}"
    if shape == (width, height, channels):
        return (
            f"Make the model with `image_size={shape[:2]}`, or resize the image; if its first axis is the width, use "
            "`jnp.swapaxes(image, 0, 1)`"
        )
    if shape[:2] == (height, width):
        return f"Make the model with `in_channels={shape[2]}`, or convert the image to {channels} channels"
    if shape[2] == channels:
        return f"Make the model with `image_size={shape[:2]}`, or resize the image"
    return (
        f"Make the model with `image_size={shape[:2]}` and `in_channels={shape[2]}`, or convert the image to the "
        "model's shape, as a `levitax.data.Preprocessing` does"
    )
