"""The options that several commands share."""

import dataclasses
import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, TYPE_CHECKING, TypeAlias, TypedDict

from cyclopts import Group, Parameter, Token
from cyclopts.validators import Number

from .._checks import as_choice
from ..train import Recipe, RECIPES
from ._errors import UsageError


def _as_size(_: object, tokens: Sequence[Token]) -> int | tuple[int, ...]:
    height, *width = (int(number) for number in tokens[0].value.split("x"))
    if len(width) > 1 or min([height, *width]) < 1:
        raise ValueError("expected one number of pixels, or height and width, as in 224x160")
    return (height, *width) if width else height


def to_write(suffixes: Sequence[str], path: Path | None) -> None:
    """Raises unless `path`, if it is given, has one of the suffixes, and a folder."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"It must end in {' or '.join(suffixes)}.")
    if not path.expanduser().parent.is_dir():
        raise ValueError(f"There is no folder {path.parent}.")


def _figure(_: object, path: Path | None) -> None:
    if path is None:
        return
    # Here, since it takes a third of a second.
    from matplotlib.backend_bases import FigureCanvasBase

    to_write([f".{kind}" for kind in FigureCanvasBase.get_supported_filetypes()], path)


def _logits(_: object, path: Path | None) -> None:
    to_write([".safetensors"], path)


def _seed(_: object, number: int) -> None:
    if not 0 <= number < 2**32:
        raise ValueError(f"Expected a number from 0 to {2**32 - 1}.")


def _preset(_: object, name: str | None) -> None:
    if name is not None:
        as_choice("--preset", name, RECIPES)


Weights: TypeAlias = Annotated[
    str, Parameter(help="A file, a run folder or other folder, or the name of a repository on the hub.")
]
Data: TypeAlias = Annotated[
    str,
    Parameter(
        help="A folder with a folder of images for each class, or with train/ and val/ that have such folders; the id "
        "of a data set on the hub; or digits."
    ),
]
ImageSize: TypeAlias = Annotated[
    int | tuple[int, int] | None,
    Parameter(help="In pixels: one number, or height and width, as in 224x160.", converter=_as_size, n_tokens=1),
]
Workers: TypeAlias = Annotated[
    int, Parameter(help="Processes that read images; 0 reads in this process.", validator=Number(gte=0))
]
Figure: TypeAlias = Annotated[Path | None, Parameter(validator=_figure)]
Logits: TypeAlias = Annotated[Path | None, Parameter(validator=_logits)]
AsJson: TypeAlias = Annotated[bool, Parameter(name="--json", help="Print JSON, for programs.", negative=())]
SameOrder: TypeAlias = Annotated[
    bool, Parameter(help="The classes of the data have other names, but the order of the weights.", negative=())
]
Overwrite: TypeAlias = Annotated[bool, Parameter(help="Replace a file that exists.", negative=())]


def _share(_: object, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError("Expected a number between 0 and 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a data set is read."""

    validation_share: Annotated[
        float,
        Parameter(help="Share of the images to validate with, if the data have no split for that.", validator=_share),
    ] = 0.1
    split_seed: Annotated[int, Parameter(help="Draws these images.", validator=_seed)] = 0
    workers: Workers = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a training run that are not in its recipe."""

    preset: Annotated[str | None, Parameter(help=f"The recipe: {', '.join(RECIPES)}.", validator=_preset)] = None
    out: Annotated[Path | None, Parameter(help="The run folder. By default in runs/, named after the data.")] = None
    image_size: ImageSize = None
    teacher: Annotated[str | None, Parameter(help="Weights, timm:MODEL, or logits from levitax evaluate --logits.")] = (
        None
    )
    seed: Annotated[int, Parameter(help="Of the weights, the order of the images and the rest.", validator=_seed)] = 0
    checkpoint_every: Annotated[
        int | None,
        Parameter(help="Steps between checkpoints, in addition to one for each epoch.", validator=Number(gte=1)),
    ] = None
    coordinator: Annotated[
        str | None, Parameter(help="HOST:PORT of the first of several processes. Found under srun and mpirun.")
    ] = None
    processes: Annotated[int | None, Parameter(help="The number of processes.")] = None
    process: Annotated[int | None, Parameter(help="The number of this process, from 0.")] = None


Channels: TypeAlias = Annotated[tuple[float, ...], Parameter(consume_multiple=True)]


class PreprocessingChanges(TypedDict, total=False):
    """Changes to the preprocessing of the weights or of the data."""

    mean: Annotated[Channels, Parameter(help="Mean of each channel, for pixels in [0, 1].")]
    std: Annotated[Channels, Parameter(help="Standard deviation of each channel.")]
    crop_ratio: Annotated[
        float,
        Parameter(help="Share of the resized image that the crop keeps; 1 keeps all.", validator=Number(gt=0, lte=1)),
    ]


def _flag_for_each_field() -> type:
    """A dictionary with a flag for each field of a recipe, with its type and its text in the docstring."""
    entries = re.findall(r"^- `(\w+)`: (.*(?:\n    .*)*)", inspect.cleandoc(Recipe.__doc__ or ""), re.MULTILINE)
    texts = {name: _as_plain_text(text) for name, text in entries}
    fields = {
        field.name: Annotated[cast(Any, field.type), Parameter(help=texts.get(field.name, ""))]
        for field in dataclasses.fields(Recipe)
    }
    return cast(Any, TypedDict)("RecipeChanges", fields, total=False)


def _as_plain_text(markdown: str) -> str:
    text = re.sub(r"\[`(.+?)`\]\[\]", r"\1", " ".join(markdown.split()))
    return text[:1].upper() + text[1:].replace("`None`", "none").replace("`", "")


if TYPE_CHECKING:
    RecipeChanges: TypeAlias = dict[str, Any]
else:
    RecipeChanges = _flag_for_each_field()


def check_images(paths: Sequence[Path]) -> None:
    """Raises if there is no path to read, or one that does not exist. Checked before the work starts."""
    if not paths:
        raise UsageError("There are no images: pass image files, or folders with images.")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no `{path}`.")


def check_new(*paths: Path | None, overwrite: bool) -> None:
    """Raises if a file to write exists already, unless it may be overwritten, or if its folder does not take files.
    Checked before the work starts."""
    for path in paths:
        if path is not None and not os.access(path.parent, os.W_OK):
            raise PermissionError(f"`{path}` cannot be written: the folder `{path.parent}` is read-only for you.")
        if path is not None and path.exists() and not overwrite:
            raise FileExistsError(f"`{path}` exists already: pass another path, or --overwrite.")


def flat(group: str) -> Parameter:
    """Gives each key of a dictionary its own option, listed in a group of the help."""
    return Parameter(name="*", group=Group.create_ordered(group))


def sizes_of(image_size: int | tuple[int, int] | None) -> dict[str, Any]:
    """The keywords of a model that `--image-size` gives."""
    return {} if image_size is None else {"image_size": image_size}
