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


# What a training run leaves in its folder: the last epoch, the best one, and the moving average.
_OF_RUN = {"model.safetensors", "best.safetensors", "ema.safetensors"}
_WHOLE = ("model.safetensors", "pytorch_model.bin")
# In order of preference.
HUB_FILES = tuple(name for whole in _WHOLE for name in (whole, whole + INDEX))


class Location(NamedTuple):
    """A weights file or a shard index, and the content of the JSON files that belong to it, by name."""

    path: Path
    companions: Mapping[str, Mapping[str, Any]]


def locate(source: str | os.PathLike[str], revision: str | None) -> Location:
    """Finds the file for a path, a folder or the name of a repository on the hub.

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
    if not path.exists() and (named := path.with_name(f"{path.name}.safetensors")).is_file():
        path = named
    if path.is_dir():
        return Location(_in_folder(path), _companions(path))
    if path.exists():
        if index := index_of(path.name):
            raise ValueError(
                f"`{path}` is one of several shards. Pass the path of their index, `{index}`, or of their "
                "folder. If the file is complete, rename it."
            )
        # A `config.json` only belongs to files with these names.
        return Location(path, _companions(path.parent) if path.name in HUB_FILES else {})
    is_name = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    if is_name and path.suffix not in SAFETENSORS + PICKLES and not is_index(path.name):
        return _on_hub(str(source), revision)
    raise FileNotFoundError(
        f"There is no `{path.absolute()}`. Pass the path of a weights file or of a folder with one, or the name of a "
        "repository on the hub, such as 'timm/levit_256.fb_dist_in1k'."
    )


def _in_folder(folder: Path) -> Path:
    files = [file.name for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    shards = {shard for name in files if is_index(name) for shard in read_index(folder / name).values()}
    # Shards without an index count as their index.
    names = list(dict.fromkeys(index_of(name) or name for name in files if name not in shards))
    of_kind = lambda suffixes: [name for name in names if Path(name.removesuffix(INDEX)).suffix.lower() in suffixes]
    found = of_kind(SAFETENSORS)
    # Pickles next to these hold the same weights under the hub's other name, or are left from training.
    if found not in ([_WHOLE[0]], [_WHOLE[0] + INDEX]):
        found += of_kind(PICKLES)
    if _WHOLE[0] in found and _OF_RUN.issuperset(found):
        return folder / _WHOLE[0]
    if not found:
        gone = [file.name for file in sorted(folder.iterdir()) if file.is_symlink() and not file.exists()]
        links = f" It has links to missing files: {', '.join(gone)}. Fetch them again." if gone else ""
        is_run = (folder / "checkpoints").is_dir()
        unfinished = " It holds a training run that has not ended: repeat its command to end it." if is_run else ""
        raise FileNotFoundError(
            f"The folder `{folder.absolute()}` holds no weights file: no name ends in "
            f"{', '.join((*SAFETENSORS, *PICKLES))}.{links}{unfinished}"
        )
    if len(found) > 1:
        listed = ", ".join(f"`{name}`" for name in found)
        raise ValueError(
            f"The folder `{folder.absolute()}` holds several weights files: {listed}. Pass the path of one."
        )
    return folder / found[0]


def _on_hub(name: str, revision: str | None) -> Location:
    user, way_out = f"Fetching {name!r} from the hub", extra("weights")
    hub, errors = (require(module, user, way_out) for module in ("huggingface_hub", "huggingface_hub.errors"))

    def fetch(filename: str, **options) -> Path | None:
        """The path of the local copy, or `None` if the repository has no such file."""
        try:
            return Path(hub.hf_hub_download(name, filename, revision=revision, **options))
        except errors.LocalEntryNotFoundError as error:
            if hub.try_to_load_from_cache(name, filename, revision=revision) is hub._CACHED_NO_EXIST:
                return None
            raise ConnectionError(_out_of_reach(hub, name, filename, revision, "the hub is out of reach")) from error
        except errors.EntryNotFoundError:
            return None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise FileNotFoundError(
                f"There is neither a folder `{Path(name).absolute()}` nor a repository {name!r} on the hub"
                f"{(revision and f' with a revision {revision!r}') or ''}, or you have no access to it: {error}"
            ) from None
        except Exception as error:
            # A transfer can fail with any exception of the client's HTTP library.
            cause = f"the transfer broke off ({type(error).__name__}: {error})"
            raise ConnectionError(_out_of_reach(hub, name, filename, revision, cause)) from error

    for filename in HUB_FILES:
        path = fetch(filename)
        if path is not None:
            shards = sorted(set(read_index(path).values())) if is_index(filename) else []
            if missing := [shard for shard in shards if fetch(shard) is None]:
                raise FileNotFoundError(
                    f"The repository {name!r} on the hub lacks {', '.join(missing)}, which its `{filename}` lists."
                )
            # Without the `config.json`, the image size could be guessed wrongly: a failed transfer of it is an error.
            files = {name: fetch(name) for name in (CONFIG, PROCESSOR)}
            return Location(path, {name: read_json(file) for name, file in files.items() if file is not None})
    raise FileNotFoundError(
        f"The repository {name!r} on the hub holds none of {', '.join(_WHOLE)}, in one file or in shards."
    )


def _out_of_reach(hub: Any, name: str, filename: str, revision: str | None, what: str) -> str:
    return (
        f"There is no folder `{Path(name).absolute()}`; `{filename}` of the repository {name!r} is not in the cache, "
        f"and {what}. On a machine with a network, fetch "
        f"{hub.hf_hub_url(name, filename, revision=revision)} and the files that belong to it, `model.safetensors` and "
        "`config.json`. Put them into one folder here, and pass the path of that folder instead of the name, as in "
        '`levitax.load("folder")`.'
    )


def _companions(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    return {name: read_json(folder / name) for name in (CONFIG, PROCESSOR)}


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file from another library; empty if the file is missing or holds no dictionary."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not valid JSON ({error}). Correct or remove it.") from None
    return content if isinstance(content, dict) else {}
