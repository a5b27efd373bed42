"""The images that a run validates with, if the data have no split for that."""

import json
import os
from pathlib import Path

import jax
import numpy as np

from .._files import replacing
from ..data import DataSet, Relabelled, Split, Subset
from ._options import DataOptions


_SPLIT = "split.json"


def write_split(out: Path, where: str, data: DataSet, reading: DataOptions) -> None:
    """Writes down which images a run validates with, if a share of them was held out for it."""
    held_out = _held_out(data)
    if jax.process_index() > 0 or held_out is None:
        return
    names = [_name(held_out, index, where) for index in range(len(held_out.labels))]
    content = {
        "data": _absolute(where),
        "share": reading.validation_share,
        "seed": reading.split_seed,
        "validation": names,
    }
    with replacing(out / _SPLIT) as (temporary,):
        temporary.write_text(json.dumps(content, indent=0))


def copy_split(weights: str, out: Path) -> None:
    """Copies what was written down for the run of the weights, if anything was, next to a file made from them."""
    file, copy = _written_for(weights), _next_to(out)
    if not file.is_file():
        copy.unlink(missing_ok=True)  # Of a file that `out` replaces.
        return
    with replacing(copy) as (temporary,):
        temporary.write_bytes(file.read_bytes())
    print(f"wrote {copy}: the images that the run validated with")


def to_evaluate(data: DataSet, where: str, weights: str) -> tuple[DataSet, str]:
    """The data set with the images to evaluate weights on: the split to validate with; or if there is none, the images
    that the run of the weights validated with; or if the run had other images, all of them. Also what to say of it."""
    held_out = _held_out(data)
    if held_out is None:
        return data, ""
    images = held_out.split
    if (file := _written_for(weights)).is_file():
        written = json.loads(file.read_text())
        names = set(written["validation"])
        known = [index for index in range(len(images.labels)) if _name(images, index, where) in names]
        # In other data, a few images may have the same names by chance.
        if known and (written["data"] == _absolute(where) or len(known) == len(names)):
            said = f"{len(known)} of {len(images.labels)} images: those in {file}, which the run validated with"
            return data._replace(validation=Subset(images, np.array(known))), said
    said = (
        f"all {len(images.labels)} images, since {where} has no split to validate with; the weights may have been "
        "trained on some of them"
    )
    return data._replace(validation=images), said


def _written_for(weights: str) -> Path:
    """Where the validation images of the run of the weights are written down: in the run folder, or next to a file."""
    path = Path(weights).expanduser()
    if path.is_dir():
        return path / _SPLIT
    # `levitax.load` takes the name of a file without its suffix too.
    for file in (path, path.with_name(f"{path.name}.safetensors")):
        if (own := _next_to(file)).is_file():
            return own
    return path.parent / _SPLIT


def _next_to(file: Path) -> Path:
    # With the suffix, since files of one name may come from different runs.
    return file.with_name(f"{file.name}.{_SPLIT}")


def _held_out(data: DataSet) -> Subset | None:
    """The validation images, if they are a share of the only split."""
    train, validation = (
        split.split if isinstance(split, Relabelled) else split for split in (data.train, data.validation)
    )
    if isinstance(train, Subset) and isinstance(validation, Subset) and train.split is validation.split:
        return validation
    return None


def _absolute(where: str) -> str:
    return os.path.abspath(os.path.expanduser(where))


def _name(split: Split, index: int, where: str) -> str:
    name = split.name(index)
    return os.path.relpath(name, _absolute(where)) if os.path.isabs(name) else name
