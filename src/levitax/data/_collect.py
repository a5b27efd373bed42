"""Images of all kinds, as one list."""

import io
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from .._files import as_path
from ._folders import image_suffixes
from ._image import read_bytes, read_image
from ._listing import list_files, shown
from ._preprocessing import to_pillow


class Collected(NamedTuple):
    """A [`levitax.data.Split`][] of images without classes.

    **Attributes:**

    - `names`: the path of each image, or "image 0", "image 1", ...
    - `images`: each a path, the content of a file, a PIL image or an array of pixels.
    - `channels`: 3 for colour, 1 for grey.
    """

    names: tuple[str, ...]
    images: tuple[Any, ...]
    channels: int

    @property
    def labels(self) -> Int[np.ndarray, " images"]:
        """Zeros, since there are no classes, `(images,)`."""
        return np.zeros(len(self.images), np.int32)

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Reads image number `index`, `(height, width, channels)`.

        **Raises:** `OSError` if the file is corrupt or missing; `TypeError` or `ValueError` for something else than an
        image.
        """
        image = self.images[index]
        if isinstance(image, np.ndarray):
            image = to_pillow(_as_pixels(self.names[index], image))
        return read_image(image, channels=self.channels)

    def name(self, index: int) -> str:
        """The name of image number `index`."""
        return self.names[index]


def collect(images: Any, channels: int) -> Collected:
    """Lists one image or many: a path, a folder with images at any depth, an open file, the bytes of a file, a PIL
    image, an array of one image or of a batch, or a list of these.

    **Raises:** `FileNotFoundError` if a path does not exist, or if there are no images.
    """
    pairs = list(_pairs(images))
    if not pairs:
        raise FileNotFoundError("There are no images: the list is empty.")
    names = (f"image {number}" if name is None else name for number, (name, _) in enumerate(pairs))
    return Collected(tuple(names), tuple(image for _, image in pairs), channels)


def _pairs(images: Any) -> Iterable[tuple[str | None, Any]]:
    """A name, or `None`, and each image."""
    if isinstance(images, str | os.PathLike):
        path = as_path("images", images)
        if path.is_dir():
            yield from _in_folder(os.fsencode(path))
        elif path.exists():
            yield shown(path), path
        else:
            raise FileNotFoundError(f"There is no `{path}`.")
    elif hasattr(images, "ndim"):
        array = np.asarray(images)
        yield from ((None, image) for image in (array if array.ndim == 4 else [array]))
    elif isinstance(images, bytes):
        yield None, io.BytesIO(images)
    elif isinstance(images, io.BufferedIOBase):
        # An open file cannot be sent to a worker.
        yield None, io.BytesIO(read_bytes(images))
    elif isinstance(images, Iterable) and not isinstance(images, Mapping) and not hasattr(images, "read"):
        for each in images:
            yield from _pairs(each)
    else:
        yield None, images


def _in_folder(folder: bytes) -> Iterable[tuple[str, str]]:
    files = list_files(folder, image_suffixes()).files
    if not files:
        raise FileNotFoundError(f"`{shown(folder)}` has no images that can be loaded.")
    for file in files:
        path = os.path.join(folder, file)
        yield shown(path), os.fsdecode(path)


def _as_pixels(name: str, image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"{name} has shape {image.shape} and dtype {image.dtype}; expected pixels from 0 to 255 in uint8, of shape "
            "(height, width, channels) with 1 or 3 channels."
        )
    return image
