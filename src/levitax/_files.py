import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def as_path(name: str, value: Any) -> Path:
    """`value` as a path on this machine, with `~` expanded, or an error that names `name`.

    **Raises:** `TypeError` unless it is a `str` or `os.PathLike`; `ValueError` if it is empty or a URL, which `Path`
    would turn into a local folder such as `./gs:/bucket`.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"`{name}` is of type `{type(value).__name__}`; expected a path, a `str` or `pathlib.Path`.")
    if not text:
        raise ValueError(f"`{name}` is empty; expected a path.")
    if "\0" in text:
        raise ValueError(f"`{name}` is {text!r}; expected a path, which has no null characters.")
    # `Path` drops one of the slashes. A drive of Windows is one letter.
    if "://" in text or re.match(r"[A-Za-z][\w+.-]+:/", text):
        raise ValueError(
            f"`{name}` is '{text}', a URL; expected a path on this machine. Download the file first (or upload it "
            "afterwards), or mount the bucket and give the path of the mount."
        )
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def replacing(*paths: Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[tuple[Path, ...]]:
    """Gives a path to write to for each of `paths`. At the end they take their places: whoever reads one sees what was
    there before or what is new, never a part of it. Several are replaced one after the other, the last one last.

    **Raises:** `OSError`, which names the last path, in place of any of `errors`. What was there stays, unless it is in
    replacing itself that one of several fails.
    """
    paths = tuple(path.resolve() for path in paths)
    # A name of their own, so that two that write at once do not write into one file. The endings stay: some libraries
    # choose the format by them.
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
            # Some libraries make files that nobody else may read.
            written.chmod(mode)
            with written.open("rb+") as file:
                os.fsync(file.fileno())
        for written, path in pairs:
            written.replace(path)
            replaced.append(path)
    except errors as error:
        folder = paths[-1].parent
        reason = f"there is no folder `{folder}`" if not folder.is_dir() else str(error)
        if replaced:
            fate = f"`{', '.join(map(str, replaced))}` is new already"
        else:
            fate = "What was there before is untouched"
        raise OSError(f"`{paths[-1]}` could not be written: {reason}. {fate}.") from error
    finally:
        for written in temporary:
            written.unlink(missing_ok=True)
