"""Lists the files below a folder: those to load, and those left out, with the reason."""

import os
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple


BROKEN_LINK = "broken link"
HIDDEN = "hidden"
OTHER_SUFFIX = "suffix of an unsupported format"
_LOOP = "link to a folder that contains it"
_NO_FILE = "neither file nor folder"


class Listing(NamedTuple):
    """The content of a folder. Paths are relative to it. They are bytes, because a file name need not be valid text.

    **Attributes:**

    - `files`: the files to load, at any depth, sorted.
    - `folders`: the folders directly in it, sorted.
    - `left_out`: every other path, with the reason. A folder covers everything below it.
    """

    files: list[bytes]
    folders: list[bytes]
    left_out: dict[bytes, str]


def list_files(root: bytes, suffixes: Container[bytes]) -> Listing:
    """Lists all files below `root` whose suffix, in lower case, is one of `suffixes`. Follows links."""
    listing = Listing([], [], {})
    # A stack, because folders may be nested deeper than Python's recursion limit. Each entry holds a folder and the
    # real paths of the folders above it.
    pending: list[tuple[bytes, tuple[bytes, ...]]] = [(b"", (os.path.realpath(root),))]
    while pending:
        folder, above = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as scan:
                entries = list(scan)
        except OSError as error:
            if not folder:
                raise
            listing.left_out[folder] = _unreadable(error)
            continue
        for entry in entries:
            path = os.path.join(folder, entry.name)
            reason = _why_left_out(entry, above, suffixes)
            if reason is not None:
                listing.left_out[path] = reason
            elif entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                pending.append((path, (*above, real)))
                if not folder:
                    listing.folders.append(path)
            else:
                listing.files.append(path)
    listing.files.sort()
    listing.folders.sort()
    return listing


def _why_left_out(entry: os.DirEntry[bytes], above: tuple[bytes, ...], suffixes: Container[bytes]) -> str | None:
    if entry.name.startswith(b"."):
        return HIDDEN
    try:
        if entry.is_dir():
            return _LOOP if entry.is_symlink() and _contains(os.path.realpath(entry.path), above) else None
        if entry.is_file():
            return None if suffix_of(entry.name) in suffixes else OTHER_SUFFIX
    except OSError as error:
        return _unreadable(error)
    return BROKEN_LINK if entry.is_symlink() else _NO_FILE


def _contains(real: bytes, folders: tuple[bytes, ...]) -> bool:
    return any(os.path.commonpath((real, folder)) == real for folder in folders)


def _unreadable(error: OSError) -> str:
    return f"unreadable ({error.strerror})"


def suffix_of(path: bytes) -> bytes:
    return os.path.splitext(path)[1].lower()


def describe(left_out: Mapping[bytes, str]) -> str:
    """Lists each reason with some of its paths: first one path of each suffix, then others."""
    by_reason: dict[str, list[bytes]] = {}
    for path, reason in sorted(left_out.items()):
        by_reason.setdefault(reason, []).append(path)
    parts = []
    for reason, paths in sorted(by_reason.items()):
        of_each_suffix = {suffix_of(path): path for path in reversed(paths)}.values()
        names = [f"`{shown(path)}`" for path in dict.fromkeys((*sorted(of_each_suffix), *paths))]
        parts.append(f"{reason} ({_first(names, 20)})")
    return "; ".join(parts)


def listed(names: Iterable[object]) -> str:
    """Lists the first names, quoted, and the number of the others."""
    return _first([repr(name) for name in names], 10)


def _first(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(path: bytes | str | os.PathLike[str]) -> str:
    """Converts a path to printable text. Escapes bytes that are not UTF-8 and characters that are not printable."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
