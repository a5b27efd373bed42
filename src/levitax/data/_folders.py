"""Class folders: one folder of images for each class, as in ImageNet."""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from .._extras import extra, require
from ._image import read_image
from ._listing import BROKEN_LINK, describe, list_files, listed, Listing, shown


# Pillow registers the suffixes of these formats and identifies their files, but does not decode them.
_NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}

# Tiny-ImageNet's table of file names and classes. It lies next to the folder `images`.
_ANNOTATIONS = "val_annotations.txt"


class ImageFiles(NamedTuple):
    """A [`levitax.data.Split`][] of image files, which [`levitax.data.open_data`][] makes from class folders.

    **Attributes:**

    - `root`: the absolute path of the split's folder.
    - `paths`: `(images,)`, relative to `root`. They are bytes, because a file name need not be valid text.
    - `labels`: `(images,)`, the class of each image, from 0.
    - `channels`: 3 for colour, 1 for grey.
    """

    root: str
    paths: Shaped[np.ndarray, " images"]
    labels: Int[np.ndarray, " images"]
    channels: int

    def read(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Reads image number `index`, `(height, width, channels)`, with [`levitax.data.read_image`][].

        **Raises:** `OSError` if the file is corrupt or missing.
        """
        return read_image(os.fsdecode(self._path(index)), channels=self.channels)

    def name(self, index: int) -> str:
        """The path of image number `index`, for messages. Unprintable characters are escaped."""
        return shown(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(os.fsencode(self.root), self.paths[index])


class ClassFolders(NamedTuple):
    """The result of `list_images`: a split, its class names, and each path that was left out with the reason."""

    split: ImageFiles
    classes: tuple[str, ...]
    left_out: dict[bytes, str]

    def warnings(self) -> list[str]:
        """The warnings to give when the split is opened."""
        root, messages = shown(self.split.root), []
        if self.left_out:
            messages.append(
                f"Not loaded from `{root}`: {describe(self.left_out)}. To load an image, save it as PNG or JPEG in the "
                "folder of its class, under a name that does not begin with a dot."
            )
        if len(self.classes) == 1:
            folders = {os.path.dirname(path) for path in self.split.paths.tolist()}
            if len(folders) > 1 and os.fsencode(self.classes[0]) not in folders:
                messages.append(
                    f"`{root}` has one class, {self.classes[0]!r}, whose images are in several folders: "
                    f"{listed(sorted(map(shown, folders)))}. If those folders are the classes, move them into `{root}`."
                )
        return messages


def list_images(folder: str | os.PathLike[str], channels: int) -> ClassFolders:
    """Lists the images of a split. Its classes are the folders directly in it."""
    root = os.path.abspath(folder)
    listing = list_files(os.fsencode(root), image_suffixes())
    if listing.folders == [b"images"] and os.fsencode(_ANNOTATIONS) in listing.left_out:
        classes_of, left_out = _by_annotations(root, listing)
    else:
        classes_of, left_out = _by_folder(root, listing)
    names = sorted(set(classes_of.values()))
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[name] for name in classes_of.values()], np.int32)
    split = ImageFiles(root, np.array(list(classes_of), np.bytes_), labels, channels)
    return ClassFolders(split, tuple(_text(root, name) for name in names), left_out)


def image_suffixes() -> set[bytes]:
    """The suffixes of all formats that the installed Pillow decodes, including those of registered plugins."""
    pillow = require("PIL.Image", "Reading images", extra("data"))
    suffixes = pillow.registered_extensions()
    # An MPO file begins like a JPEG and is opened as one, so Pillow registers MPO only for writing.
    formats = {*pillow.OPEN, "MPO"} - _NOT_DECODED
    # Saving a SPIDER image makes Pillow register the suffix of that file, which may be empty.
    return {os.fsencode(suffix) for suffix, name in suffixes.items() if name in formats and suffix}


def _by_folder(root: str, listing: Listing) -> tuple[dict[bytes, bytes], dict[bytes, str]]:
    """Maps the path of each image to its class, and each path that is left out to the reason."""
    classes_of = {path: _top(path) for path in listing.files if _top(path) != path}
    left_out = {path: "in no class folder" for path in listing.files if _top(path) == path} | listing.left_out
    for name in listing.folders:
        # Tiny-ImageNet's bounding boxes, next to the images of each class, deserve no warning.
        left_out.pop(os.path.join(name, name + b"_boxes.txt"), None)
    _check_folders(root, listing.folders, set(classes_of.values()), left_out)
    return classes_of, left_out


def _check_folders(root: str, folders: list[bytes], classes: set[bytes], left_out: dict[bytes, str]) -> None:
    """Raises unless there are class folders and each of them has images."""
    if not folders:
        raise ValueError(
            f"`{shown(root)}` has no class folders; expected one folder of images for each class. {_content(left_out)}"
        )
    # Inside a class folder, a broken link may be one image. Next to the class folders, it may be a whole class.
    for path, reason in left_out.items():
        if reason == BROKEN_LINK and _top(path) == path:
            raise ValueError(f"`{_below(root, path)}` is a broken link, which may be a class: repair or delete it.")
    if empty := [folder for folder in folders if folder not in classes]:
        inside = {path: reason for path, reason in left_out.items() if _top(path) == empty[0]}
        others = f" The same holds for {len(empty) - 1} more of the class folders." if len(empty) > 1 else ""
        raise ValueError(
            f"`{_below(root, empty[0])}` has no images that can be loaded. {_content(inside)} Add images, or "
            f"delete the folder.{others}"
        )


def _by_annotations(root: str, listing: Listing) -> tuple[dict[bytes, bytes], dict[bytes, str]]:
    """Like `_by_folder`, for the validation split of Tiny-ImageNet, which lists the class of each image in a table."""
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
                    "its class, separated by a tab. Each image can have only one class."
                )
    classes_of = {image: table[image] for image in listing.files if image in table}
    left_out = {path: f"not listed in `{_ANNOTATIONS}`" for path in listing.files if path not in table}
    left_out |= {path: f"missing, but listed in `{_ANNOTATIONS}`" for path in table if path not in classes_of}
    left_out |= listing.left_out
    del left_out[os.fsencode(_ANNOTATIONS)]
    if not classes_of:
        raise ValueError(f"`{shown(root)}` has no images that can be loaded. {_content(left_out)}")
    return classes_of, left_out


def _top(path: bytes) -> bytes:
    """The first component of a path."""
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
