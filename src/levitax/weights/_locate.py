import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._extras import require
from ._files import PICKLES, SAFETENSORS


# In this order; those of PyTorch only where there is no other.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class Location(NamedTuple):
    """A file of weights, and what the `config.json` beside it says."""

    path: Path
    config: Mapping[str, Any]


def locate(source: str | os.PathLike[str], revision: str | None) -> Location:
    """Finds the file that is meant by a path, a folder or the name of a repository on the hub.

    **Raises:** `FileNotFoundError` if there is none, `ValueError` if there are several, `ConnectionError` if the hub is
    out of reach.
    """
    path = Path(source)
    if path.is_dir():
        return Location(_in_folder(path), _config(path / "config.json"))
    if path.exists():
        return Location(path, {})
    is_name = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    if is_name and path.suffix not in SAFETENSORS + PICKLES:
        return _on_hub(str(source), revision)
    raise FileNotFoundError(
        f"There is no `{path.absolute()}`. Give the path of a file of weights or of a folder with one, or the name of "
        "a repository on the hub, such as 'timm/levit_256.fb_dist_in1k'."
    )


def _in_folder(folder: Path) -> Path:
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    found = [file for file in files if file.suffix in SAFETENSORS]
    # The hub's two names of the same weights.
    others = [file for file in files if file.suffix in PICKLES and not (found and file.name in HUB_FILES)]
    if len(found + others) == 1:
        return (found + others)[0]
    if not found + others:
        raise FileNotFoundError(
            f"The folder `{folder.absolute()}` holds no file of weights: none ends in "
            f"{', '.join((*SAFETENSORS, *PICKLES))}."
        )
    names = ", ".join(f"`{file.name}`" for file in found + others)
    raise ValueError(f"The folder `{folder.absolute()}` holds several files of weights: {names}. Give the path of one.")


def _on_hub(name: str, revision: str | None) -> Location:
    user, way_out = f"Fetching {name!r} from the hub", 'run `pip install "levitax[weights]"`'
    hub, errors = (require(module, user, way_out) for module in ("huggingface_hub", "huggingface_hub.errors"))
    unreachable: Exception | None = None
    for filename in HUB_FILES:
        try:
            # Once is enough: the client tries for long before it gives up.
            path = hub.hf_hub_download(name, filename, revision=revision, local_files_only=unreachable is not None)
        except errors.LocalEntryNotFoundError as error:
            unreachable = error
        except errors.EntryNotFoundError:
            continue
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise FileNotFoundError(
                f"There is neither a folder `{Path(name).absolute()}` nor a repository {name!r} on the hub"
                f"{(revision and f' with a revision {revision!r}') or ''}, or it is closed to you: {error}"
            ) from None
        else:
            try:
                config = _config(Path(hub.hf_hub_download(name, "config.json", revision=revision)))
            except errors.EntryNotFoundError:
                config = {}
            return Location(Path(path), config)
    if unreachable is None:
        raise FileNotFoundError(f"The repository {name!r} on the hub holds none of {', '.join(HUB_FILES)}.")
    url = hub.hf_hub_url(name, HUB_FILES[0], revision=revision)
    raise ConnectionError(
        f"The weights of {name!r} are not in the cache, and the hub is out of reach. Where there is a network, fetch "
        f"{url} and `config.json` beside it; put both into one folder here, and give the path of that folder."
    ) from unreachable


def _config(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"`{path}` is no JSON ({error}). Mend it, or take it away.") from None
    return content if isinstance(content, dict) else {}
