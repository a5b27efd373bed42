import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._extras import extra, require
from .._files import as_path
from ._companions import CONFIG, PROCESSOR
from ._files import PICKLES, SAFETENSORS
from ._shards import INDEX, index_of, is_index, read_index


_WHOLE = ("model.safetensors", "pytorch_model.bin")
# In this order.
HUB_FILES = tuple(name for whole in _WHOLE for name in (whole, whole + INDEX))


class Location(NamedTuple):
    """A file of weights, or the index of several, and the content of the JSON files that belong to it, by name."""

    path: Path
    companions: Mapping[str, Mapping[str, Any]]


def locate(source: str | os.PathLike[str], revision: str | None) -> Location:
    """Finds the file that is meant by a path, a folder or the name of a repository on the hub.

    **Raises:** `FileNotFoundError` if there is none; `ValueError` if there are several, for a single shard and for a
    URL; `ConnectionError` if the hub is out of reach.
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"`source` is of type `{type(source).__name__}`; expected a path, the name of a repository on the hub, or "
            "arrays by name, such as `torch_model.state_dict()`."
        )
    if address := re.match(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", str(source)):
        raise ValueError(f"`source` is '{source}', a URL; expected the name of the repository: '{address[1]}'.")
    path = as_path("source", source)
    if path.is_dir():
        return Location(_in_folder(path), _companions(path))
    if path.exists():
        if index := index_of(path.name):
            raise ValueError(
                f"`{path}` is one of several shards. Give the path of their index, `{index}`, or "
                "folder. If it is a whole file, give it another name."
            )
        # The name that it has where a `config.json` belongs to it.
        return Location(path, _companions(path.parent) if path.name in HUB_FILES else {})
    is_name = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    if is_name and path.suffix not in SAFETENSORS + PICKLES and not is_index(path.name):
        return _on_hub(str(source), revision)
    raise FileNotFoundError(
        f"There is no `{path.absolute()}`. Give the path of a file of weights or of a folder with one, or the name of "
        "a repository on the hub, such as 'timm/levit_256.fb_dist_in1k'."
    )


def _in_folder(folder: Path) -> Path:
    files = [file.name for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    shards = {shard for name in files if is_index(name) for shard in read_index(folder / name).values()}
    # Shards without their index stand for it.
    names = list(dict.fromkeys(index_of(name) or name for name in files if name not in shards))
    of_kind = lambda suffixes: [name for name in names if Path(name.removesuffix(INDEX)).suffix.lower() in suffixes]
    found = of_kind(SAFETENSORS)
    # Next to these lie the same weights under the hub's other name, or what a trainer left.
    if found not in ([_WHOLE[0]], [_WHOLE[0] + INDEX]):
        found += of_kind(PICKLES)
    if not found:
        gone = [file.name for file in sorted(folder.iterdir()) if file.is_symlink() and not file.exists()]
        links = f" It has links to files that are gone: {', '.join(gone)}. Fetch them again." if gone else ""
        raise FileNotFoundError(
            f"The folder `{folder.absolute()}` holds no file of weights: none ends in "
            f"{', '.join((*SAFETENSORS, *PICKLES))}.{links}"
        )
    if len(found) > 1:
        listed = ", ".join(f"`{name}`" for name in found)
        raise ValueError(
            f"The folder `{folder.absolute()}` holds several files of weights: {listed}. Give the path of one."
        )
    return folder / found[0]


def _on_hub(name: str, revision: str | None) -> Location:
    user, way_out = f"Fetching {name!r} from the hub", extra("weights")
    hub, errors = (require(module, user, way_out) for module in ("huggingface_hub", "huggingface_hub.errors"))

    def fetch(filename: str, **options) -> Path | None:
        """Where the file is now, or `None` if the repository has none of that name."""
        try:
            return Path(hub.hf_hub_download(name, filename, revision=revision, **options))
        except errors.LocalEntryNotFoundError as error:
            if hub.try_to_load_from_cache(name, filename, revision=revision) is hub._CACHED_NO_EXIST:
                return None
            raise ConnectionError(_out_of_reach(hub, name, filename, revision, "is out of reach")) from error
        except errors.EntryNotFoundError:
            return None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise FileNotFoundError(
                f"There is neither a folder `{Path(name).absolute()}` nor a repository {name!r} on the hub"
                f"{(revision and f' with a revision {revision!r}') or ''}, or it is closed to you: {error}"
            ) from None
        except Exception as error:
            # A transfer can break in as many ways as the client's own transport has exceptions.
            cause = f"broke off ({type(error).__name__}: {error})"
            raise ConnectionError(_out_of_reach(hub, name, filename, revision, cause)) from error

    for filename in HUB_FILES:
        path = fetch(filename)
        if path is not None:
            shards = sorted(set(read_index(path).values())) if is_index(filename) else []
            if missing := [shard for shard in shards if fetch(shard) is None]:
                raise FileNotFoundError(
                    f"The repository {name!r} on the hub lacks {', '.join(missing)}, which its `{filename}` names."
                )
            # Without it the size of the images could be guessed wrongly, so a missing one is no small matter.
            files = {name: fetch(name) for name in (CONFIG, PROCESSOR)}
            return Location(path, {name: read_json(file) for name, file in files.items() if file is not None})
    raise FileNotFoundError(
        f"The repository {name!r} on the hub holds none of {', '.join(_WHOLE)}, in one file or in shards."
    )


def _out_of_reach(hub: Any, name: str, filename: str, revision: str | None, what: str) -> str:
    return (
        f"There is no folder `{Path(name).absolute()}`; `{filename}` of the repository {name!r} is not in the cache, "
        f"and the hub {what}. Where there is a network, fetch "
        f"{hub.hf_hub_url(name, filename, revision=revision)} and what belongs to it, `model.safetensors` and "
        "`config.json`; put both into one folder here, and give the path of that folder."
    )


def _companions(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    return {name: read_json(folder / name) for name in (CONFIG, PROCESSOR)}


def read_json(path: Path) -> dict[str, Any]:
    """What is in a JSON file that others wrote; empty if it is not there or no dictionary."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is no JSON ({error}). Correct or remove it.") from None
    return content if isinstance(content, dict) else {}
