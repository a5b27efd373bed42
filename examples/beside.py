"""How pictures are prepared: a training run keeps what it knows beside its weights, for the scripts that use them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from levitax.data import DataSet, IMAGENET_MEAN, IMAGENET_STD


NAME = "pictures.json"


class Pictures(NamedTuple):
    """How pictures are prepared in inference, and what their classes are called."""

    mean: Sequence[float]
    std: Sequence[float]
    crop_ratio: float
    classes: Sequence[str]

    def write(self, folder: Path) -> None:
        write_whole(folder / NAME, json.dumps(self._asdict(), indent=1))


IMAGENET = Pictures(IMAGENET_MEAN, IMAGENET_STD, 0.875, ())


def pictures_of(where: str, data: DataSet) -> Pictures:
    """As those of a data set are by default: digits have no margin to crop."""
    return Pictures(data.mean, data.std, 1.0 if where == "digits" else 0.875, ())


def read_pictures(weights: str) -> Pictures | None:
    """Of the run that the weights are of; `None` where they come from elsewhere."""
    path = Path(weights).expanduser()
    path = (path if path.is_dir() else path.parent) / NAME
    return Pictures(**json.loads(path.read_text())) if path.exists() else None


def write_whole(path: Path, text: str) -> None:
    """Writes a file that readers see the old one of, or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
