"""Class folders: a folder of images for each class, as ImageNet has them."""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from .._extras import extra, require
from ._image import read_image
from ._listing import BROKEN_LINK, describe, list_files, listed, Listing, shown


# Pillow registers the suffixes of these formats, but identifies their files without decoding them.
_NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}

# Tiny-ImageNet's table of file names and classes, next to the folder `images` that it is about.
_ANNOTATIONS = "val_annotations.txt"


class ImageFiles(NamedTuple):
    """A [`levitax.data.Split`][] of image files, as [`levitax.data.open_data`][] makes it from class folders.

    **Attributes:**

    - `root`: the absolute path of the split's folder.
    - `paths`: `(images,)`, relative to `root`, as bytes, because a file name need not be text.
    - `labels`: `(images,)`, the class of each image, from 0.
    - `channels`: 3 for colour, 1 for grey.
    """

    root: str
    paths: Shaped[np.ndarray, " images"]
    labels: Int[np.ndarray, " images"]
    channels: int

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """The image of number `index`, `(height, width, channels)`, read as by [`levitax.data.read_image`][].

        **Raises:** `OSError` if the file is corrupt or missing.
        """
        return read_image(os.fsdecode(self._path(index)), channels=self.channels)

    def name(self, index: int) -> str:
        """The path of the image of number `index`, for messages; escapes stand for what cannot be printed."""
        return shown(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(os.fsencode(self.root), self.paths[index])


class ClassFolders(NamedTuple):
    """What `list_images` found: a split, the names of its classes, and all paths that are not in it by their reason."""

    split: ImageFiles
    classes: tuple[str, ...]
    left_out: dict[bytes, str]

    def warnings(self) -> list[str]:
        """What a person should know before they use the split."""
        root, found = shown(self.split.root), []
        if self.left_out:
            found.append(
                f"Not loaded from `{root}`: {describe(self.left_out)}. To load an image, put it into the folder of its "
                "class, as PNG or JPEG, under a name that is not hidden."
            )
        if len(self.classes) == 1:
            folders = {os.path.dirname(path) for path in self.split.paths.tolist()}
            if len(folders) > 1 and os.fsencode(self.classes[0]) not in folders:
                found.append(
                    f"`{root}` has one class, {self.classes[0]!r}, whose images are in several folders: "
                    f"{listed(sorted(map(shown, folders)))}. If those are the classes, move them into `{root}`."
                )
        return found


def list_images(folder: str | os.PathLike[str], channels: int) -> ClassFolders:
    """Lists the images of a split and their classes, which are the folders directly in it."""
    root = os.path.abspath(folder)
    listing = list_files(os.fsencode(root), _image_suffixes())
    if listing.folders == [b"images"] and os.fsencode(_ANNOTATIONS) in listing.left_out:
        classes_of, left_out = _by_annotations(root, listing)
    else:
        classes_of, left_out = _by_folder(root, listing)
    names = sorted(set(classes_of.values()))
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[name] for name in classes_of.values()], np.int32)
    split = ImageFiles(root, np.array(list(classes_of), np.bytes_), labels, channels)
    return ClassFolders(split, tuple(_text(root, name) for name in names), left_out)


def _image_suffixes() -> set[bytes]:
    """The suffixes of all formats that Pillow decodes here, with the plugins that are registered."""
    pillow = require("PIL.Image", "Reading images", extra("data"))
    suffixes = pillow.registered_extensions()
    # An MPO begins as a JPEG and is opened as one, so Pillow registers MPO for writing only.
    formats = {*pillow.OPEN, "MPO"} - _NOT_DECODED
    # Saving a SPIDER image registers the suffix that its file has, which may be none.
    return {os.fsencode(suffix) for suffix, name in suffixes.items() if name in formats and suffix}


def _by_folder(root: str, listing: Listing) -> tuple[dict[bytes, bytes], dict[bytes, str]]:
    """The class of each image by its path, and what is left out."""
    classes_of = {path: _top(path) for path in listing.files if _top(path) != path}
    left_out = {path: "in no class folder" for path in listing.files if _top(path) == path} | listing.left_out
    for name in listing.folders:
        # Tiny-ImageNet's boxes of the objects, next to the images of each class.
        left_out.pop(os.path.join(name, name + b"_boxes.txt"), None)
    _check_folders(root, listing.folders, set(classes_of.values()), left_out)
    return classes_of, left_out


def _check_folders(root: str, folders: list[bytes], classes: set[bytes], left_out: dict[bytes, str]) -> None:
    """Raises unless there are class folders, and all of them have images."""
    if not folders:
        raise ValueError(
            f"`{shown(root)}` has no class folders; expected a folder of images for each class. {_content(left_out)}"
        )
    # In a class folder a broken link may be one image, but here it may be a class.
    for path, reason in left_out.items():
        if reason == BROKEN_LINK and _top(path) == path:
            raise ValueError(f"`{_below(root, path)}` is a broken link, which may be a class: repair or delete it.")
    if empty := [folder for folder in folders if folder not in classes]:
        inside = {path: reason for path, reason in left_out.items() if _top(path) == empty[0]}
        others = f" {len(empty) - 1} more class folders have none either." if len(empty) > 1 else ""
        raise ValueError(
            f"`{_below(root, empty[0])}` has no images that can be loaded. {_content(inside)} Add images, or "
            f"delete the folder.{others}"
        )


def _by_annotations(root: str, listing: Listing) -> tuple[dict[bytes, bytes], dict[bytes, str]]:
    """As `_by_folder`, for the validation split of Tiny-ImageNet: the classes are in a table of the images."""
    path = os.path.join(root, _ANNOTATIONS)
    table = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name, *fields = line.rstrip(b"\r\n").split(b"\t")
            image = os.path.join(b"images", name)
            if not fields or table.setdefault(image, fields[0]) != fields[0]:
                raise ValueError(
                    f"Line {number} of `{shown(path)}` is {shown(line.rstrip())!r}; expected the name of an image and "
                    "its class, separated by a tab, with one class for each image."
                )
    classes_of = {image: table[image] for image in listing.files if image in table}
    left_out = {path: f"not in `{_ANNOTATIONS}`" for path in listing.files if path not in table}
    left_out |= {path: f"missing, but in `{_ANNOTATIONS}`" for path in table if path not in classes_of}
    left_out |= listing.left_out
    del left_out[os.fsencode(_ANNOTATIONS)]
    if not classes_of:
        raise ValueError(f"`{shown(root)}` has no images that can be loaded. {_content(left_out)}")
    return classes_of, left_out


def _top(path: bytes) -> bytes:
    """The first part of a path."""
    return path.split(os.fsencode(os.sep), 1)[0]


def _content(left_out: dict[bytes, str]) -> str:
    return f"It contains only: {describe(left_out)}." if left_out else "It is empty."


def _below(root: str, path: bytes) -> str:
    return shown(os.path.join(os.fsencode(root), path))


def _text(root: str, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ValueError(
            f"The class name `{shown(name)}` in `{shown(root)}` is not UTF-8, so it cannot be stored with a model. "
            "Rename the class."
        ) from None
