"""A checkpoint in several files, with an index of the arrays in each."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ._files import Archive, open_archive, PICKLES, SAFETENSORS


INDEX = ".index.json"


def is_index(name: str) -> bool:
    """Whether `name` is the name of an index, such as `model.safetensors.index.json`."""
    return name.endswith(INDEX) and Path(name.removesuffix(INDEX)).suffix.lower() in (*SAFETENSORS, *PICKLES)


def index_of(name: str) -> str | None:
    """The name of the index that lists the shard `name`; `None` if `name` is no shard."""
    shard = re.fullmatch(r"(.+)-\d+-of-(?!0*1\.)\d+(\.\w+)", name)
    return f"{shard[1]}{shard[2]}{INDEX}" if shard and is_index(f"{shard[1]}{shard[2]}{INDEX}") else None


def read_index(path: Path) -> dict[str, str]:
    """Reads the name of the shard that holds each array.

    **Raises:** `FileNotFoundError` if the index is missing, `ValueError` if the file is no index.
    """
    try:
        found = json.loads(path.read_text("utf-8"))["weight_map"]
        # A shard must be next to its index. A name with a folder in it could point anywhere.
        if not found or not all(isinstance(shard, str) and Path(shard).name == shard for shard in found.values()):
            raise TypeError
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There are shards, but their index `{path.absolute()}` is missing: fetch it too."
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f'`{path}` is not a shard index; expected JSON such as `{{"weight_map": {{"<array>": "<file>", ...}}}}`, '
            "with files next to it. Fetch it again."
        ) from None
    return found


@contextlib.contextmanager
def open_shards(path: Path) -> Iterator[Archive]:
    """Opens all shards of an index as one archive.

    **Raises:** `FileNotFoundError` if a shard is missing; `ValueError` if index and shards do not list the same arrays;
    and what `open_archive` raises for a shard.
    """
    index = read_index(path)
    shards = sorted(set(index.values()))
    if missing := [name for name in shards if not (path.parent / name).exists()]:
        raise FileNotFoundError(
            f"`{path}` lists {len(shards)} shards, and {len(missing)} are missing: {', '.join(missing)}. Put them "
            "next to it."
        )
    with contextlib.ExitStack() as stack:
        archives = {name: stack.enter_context(open_archive(path.parent / name)) for name in shards}
        there = {(name, shard) for shard, archive in archives.items() for name in archive.shapes}
        if different := sorted(there ^ set(index.items())):
            listed = [f"{name} {'only' if (name, shard) in there else 'not'} in {shard}" for name, shard in different]
            raise ValueError(
                f"`{path}` and its shards hold different arrays: {', '.join(listed[:8])}{', ...' * (len(listed) > 8)}. "
                "They are not from one checkpoint: fetch all of them again."
            )
        shapes = {name: archives[shard].shapes[name] for name, shard in index.items()}
        yield Archive(f"`{path}`", shapes, lambda name: archives[index[name]].read(name), _metadata(path, archives))


def _metadata(path: Path, archives: Mapping[str, Archive]) -> dict[str, str]:
    """The entries of the headers of all shards."""
    entries: dict[str, str] = {}
    for name, archive in archives.items():
        different = [entry for entry, value in archive.metadata.items() if entries.get(entry, value) != value]
        if different:
            raise ValueError(
                f"`{path}` has shards with different headers: {name} differs in {', '.join(different)}. They are not "
                "from one checkpoint: fetch all of them again."
            )
        entries |= archive.metadata
    return entries
