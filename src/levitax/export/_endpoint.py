import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array

from .. import nn
from .._checks import as_flag, as_integer, as_integers, check_keywords
from .._fuse import Predictor
from .._model import LeViT
from ..data import Preprocessing
from ..data._preprocessing import check_fits
from ..nn._xla import softmax


_FUSE = "fuse the trained model first: `predict = levitax.fuse(model, state)`"


class Options(TypedDict, total=False):
    """The inputs and outputs of an exported model.

    **Arguments:**

    - `image_size`, `channels`: of the images, only for your own modules. A [`levitax.LeViT`][] determines both. The
        size is `(height, width)` or one number for both; the channels are 3 by default.
    - `channels_first`: images are `(batch, channels, height, width)`, and feature maps have channels first too. By
        default channels are last, as everywhere in levitax.
    - `preprocessing`: the preprocessing of the model's images, stored in the metadata of the file with its class
        names.
    - `uint8`: images are pixels from 0 to 255, resized and cropped, and the graph normalises them by `preprocessing`.
        By default images are float32 and already normalised.
    - `probabilities`: the output is "probabilities", the softmax of the logits. By default it is "logits".
    - `features`: adds outputs "features_0", "features_1", ...: the feature map of each stage,
        `(batch, rows, columns, dim)`.
    """

    image_size: int | Sequence[int]
    channels: int
    channels_first: bool
    preprocessing: Preprocessing
    uint8: bool
    probabilities: bool
    features: bool


@dataclass(frozen=True)
class Endpoint:
    """A fused model as a function of a batch of images, and the metadata of its file."""

    predict: Predictor[Any]
    # The shape of one image, as the exported model takes it.
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    channels_first: bool
    scale: np.ndarray
    shift: np.ndarray
    probabilities: bool
    features: bool
    metadata: Mapping[str, str]

    def __call__(self, predict: Predictor[Any], images: Array) -> dict[str, Array]:
        """Computes the outputs, by name. `predict` is the endpoint's own, or the same with traced arrays."""
        return jax.vmap(lambda image: self._one(predict, image))(images)

    def images(self, batch: int | None) -> jax.ShapeDtypeStruct:
        """The images to trace with; a batch of any size if `batch` is `None`."""
        size = jax_export.symbolic_shape("batch")[0] if batch is None else as_integer("batch", batch)
        return jax.ShapeDtypeStruct((size, *self.shape), self.dtype)

    def _one(self, predict, image):
        if self.channels_first:
            image = image.transpose(1, 2, 0)
        if self.dtype == np.uint8:
            image = image.astype(jnp.float32) * self.scale[None, None] + self.shift[None, None]
        if not self.features:
            return self._named(predict(image))
        maps, state = predict.model.features(image, predict.state)
        logits, _ = predict.model.classify(maps[-1], state)
        order = (2, 0, 1) if self.channels_first else (0, 1, 2)
        return self._named(logits) | {f"features_{stage}": x.transpose(order) for stage, x in enumerate(maps)}

    def _named(self, output) -> dict[str, Array]:
        if self.probabilities:
            return {"probabilities": softmax(output)}
        if _classes(self.predict):
            return {"logits": output}
        leaves = _as_outputs(output)
        return {"output": leaves[0]} if len(leaves) == 1 else {f"output_{i}": leaf for i, leaf in enumerate(leaves)}


def endpoint(predict: Predictor[Any], options: Options) -> Endpoint:
    """Checks a model and options for export, and combines them.

    **Raises:** `TypeError` or `ValueError` that names the option, or says how to get a fused float32 model.
    """
    check_keywords(options, Options)
    _check_fused(predict)
    config = predict.model.config if isinstance(predict.model, LeViT) else None
    shape = _image_shape(predict, options)
    channels_first, uint8, probabilities, features = (
        as_flag(name, options.get(name, False)) for name in ("channels_first", "uint8", "probabilities", "features")
    )
    if features and config is None:
        raise ValueError("`features` is True, which needs a `levitax.LeViT`; return the maps from your module instead.")
    if probabilities and not _classes(predict):
        raise ValueError("`probabilities` is True, but the model has no classes; leave it out.")
    metadata = {"levitax": version("levitax"), "input": _described(shape, channels_first, uint8)}
    preprocessing = options.get("preprocessing")
    if preprocessing is not None:
        classes = _classes(predict) or len(getattr(preprocessing, "class_names", ()))
        check_fits(preprocessing, image_size=shape[:2], channels=shape[2], num_classes=classes)
        metadata["preprocessing"] = json.dumps(preprocessing.to_dict(), ensure_ascii=False)
    scale, shift = _normalisation(preprocessing, shape[-1], uint8)
    return Endpoint(
        predict=predict,
        shape=(shape[2], *shape[:2]) if channels_first else shape,
        dtype=np.dtype(np.uint8 if uint8 else np.float32),
        channels_first=channels_first,
        scale=scale,
        shift=shift,
        probabilities=probabilities,
        features=features,
        metadata=metadata,
    )


def _image_shape(predict, options: Options) -> tuple[int, int, int]:
    """Height, width and channels of one image."""
    size, channels = options.get("image_size"), options.get("channels")
    if isinstance(predict.model, LeViT):
        height, width = predict.model.config.image_size
        own = predict.model.config.in_channels
        if size is not None or channels is not None:
            raise ValueError(
                f"`image_size` and `channels` are {size} and {channels}, but the model has its own: {height}x{width} "
                f"and {own}. Leave them out. For another size, load the weights with that `image_size`, and fuse that."
            )
        return height, width, own
    if size is None:
        raise ValueError(
            f"`image_size` is missing; a `{type(predict.model).__name__}` does not give the size of its images. Pass "
            "`image_size=(height, width)`, and `channels` if there are not 3."
        )
    height, width = as_integers("image_size", size, 2, "height and width")
    return height, width, as_integer("channels", 3 if channels is None else channels)


def _classes(predict) -> int:
    return predict.model.config.num_classes if isinstance(predict.model, LeViT) else 0


def _check_fused(predict: Any) -> None:
    if not isinstance(predict, Predictor):
        raise TypeError(
            f"`predict` is of type `{type(predict).__name__}`; expected the `levitax.Predictor` that `levitax.fuse` "
            f"returns: {_FUSE}."
        )
    unfused = nn.BatchNorm | nn.AttentionBias
    layers = jax.tree.leaves(predict.model, is_leaf=lambda node: isinstance(node, unfused))
    if count := sum(isinstance(layer, unfused) for layer in layers):
        raise ValueError(
            f"`predict` is not fused: {count} batch normalisations and attention biases are left in it. To fix it, "
            f"{_FUSE}."
        )
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(predict) if eqx.is_inexact_array(leaf)} - {"float32"}
    if isinstance(predict.model, LeViT):
        dtypes |= {np.dtype(predict.model.config.dtype).name} - {"float32"}
    if dtypes:
        raise ValueError(
            f"`predict` computes in {', '.join(sorted(dtypes))}; expected float32, which each runtime "
            'can convert itself. Make or load the model, and your own layers, with `dtype="float32"`.'
        )


def _as_outputs(output: Any) -> list[Any]:
    """The outputs of a user's module, as arrays that a file can return."""
    leaves = jax.tree.leaves(output)
    is_real = lambda leaf: isinstance(leaf, jax.Array | np.ndarray) and not jnp.iscomplexobj(leaf)
    if not leaves or not all(map(is_real, leaves)):
        kinds = [getattr(leaf, "dtype", type(leaf).__name__) for leaf in leaves]
        raise TypeError(
            f"The module returned {', '.join(map(str, kinds)) or 'nothing'} for an image; expected one or more arrays "
            "of real numbers. Return them with the state."
        )
    return leaves


def _described(shape: tuple[int, ...], channels_first: bool, uint8: bool) -> str:
    height, width, channels = shape
    order = f"(batch, {channels}, {height}, {width})" if channels_first else f"(batch, {height}, {width}, {channels})"
    return f"{order}, {'pixels from 0 to 255' if uint8 else 'normalised'}"


def _normalisation(preprocessing: Preprocessing | None, channels: int, uint8: bool) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the offset for pixels from 0 to 255, for each channel."""
    if not uint8:
        return np.ones(channels, np.float32), np.zeros(channels, np.float32)
    if preprocessing is None:
        raise ValueError(
            "`uint8` is True, but `preprocessing`, which normalises the pixels, is missing. Pass "
            "`preprocessing=levitax.load_preprocessing(source)`, or a `levitax.data.Preprocessing`."
        )
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
