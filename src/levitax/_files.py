import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


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
