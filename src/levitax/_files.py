import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def as_path(name: str, value: Any) -> Path:
    """Converts `value` to a path on this machine, with `~` expanded.

    **Raises:** `TypeError` unless it is a `str` or `os.PathLike`; `ValueError` if it is empty, has a null character or
    is a URL, which `Path` would turn into a local folder such as `./gs:/bucket`.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"`{name}` is of type `{type(value).__name__}`; expected a path, a `str` or `pathlib.Path`.")
    if not text:
        raise ValueError(f"`{name}` is empty; expected a path.")
    if "\0" in text:
        raise ValueError(f"`{name}` is {text!r}; expected a path without null characters.")
    # A `Path` of a URL has a single slash. A single letter before the colon is a Windows drive.
    if "://" in text or re.match(r"[A-Za-z][\w+.-]+:/", text):
        raise ValueError(
            f"`{name}` is '{text}', a URL; expected a path on this machine. Download the file first (or upload it "
            "afterwards), or mount the bucket and pass the path of the mount."
        )
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def replacing(*paths: Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[tuple[Path, ...]]:
    """Yields a temporary path to write to for each of `paths`, and moves the files into place at the end.

    A reader sees an old file or a complete new one. Several files are moved one after the other, in order.

    **Raises:** `OSError` with the last path, for any of `errors`. The old files stay, unless moving the second or a
    later file fails.
    """
    paths = tuple(path.resolve() for path in paths)
    # Unique names, so that two writers never share a file. The suffixes stay, since some libraries choose the format
    # by them.
    mark = uuid.uuid4().hex
    pairs = [(path.with_name(f".{mark}.{path.name}"), path) for path in paths]
    temporary = tuple(written for written, _ in pairs)
    replaced: list[Path] = []
    try:
        for written in temporary:
            written.touch()
        modes = [(path if path.exists() else written).stat().st_mode for written, path in pairs]
        yield temporary
        for written, mode in zip(temporary, modes, strict=True):
            # Some libraries create files that only the owner can read.
            written.chmod(mode)
            with written.open("rb+") as file:
                os.fsync(file.fileno())
        for written, path in pairs:
            written.replace(path)
            replaced.append(path)
    except errors as error:
        folder = paths[-1].parent
        reason = getattr(error, "strerror", None) or str(error)
        if not folder.is_dir():
            reason = f"there is no folder `{folder}`"
        if replaced:
            outcome = f"`{', '.join(map(str, replaced))}` is already replaced"
        else:
            outcome = "Existing files are unchanged"
        raise OSError(f"`{paths[-1]}` could not be written: {reason}. {outcome}.") from error
    finally:
        for written in temporary:
            # On a read-only disk, not even a missing file can be removed.
            with contextlib.suppress(OSError):
                written.unlink()
