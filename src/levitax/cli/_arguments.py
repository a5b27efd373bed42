"""Options that several commands share, and the values that they give."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from .._config import Overrides
from ..data import Preprocessing
from ..weights import load_preprocessing


class Size(argparse.Action):
    """One number, or height and width."""

    def __call__(self, parser, namespace, values, option_string=None):
        sizes = tuple(values or ())
        if len(sizes) not in (1, 2):
            parser.error(f"{option_string} takes one number, or two: height and width")
        setattr(namespace, self.dest, sizes[0] if len(sizes) == 1 else sizes)


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command."""
    return argparse.ArgumentParser(
        prog=f"levitax {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_image_size_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option that `size_of` reads."""
    parser.add_argument(
        "--image-size", type=int, nargs="+", action=Size, metavar="PIXELS", help="one number, or height and width"
    )


def add_preprocessing_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the options that `preprocessing_of` and `with_options` read."""
    of = "of each channel, for pixels in [0, 1]"
    parser.add_argument("--mean", type=float, nargs="+", help=f"mean {of}; by default {default}")
    parser.add_argument("--std", type=float, nargs="+", help=f"standard deviation {of}")
    parser.add_argument("--crop-ratio", type=float, help="share of the resized image that the crop keeps; 1 keeps all")


def size_of(arguments: argparse.Namespace) -> Overrides:
    """The keywords of the model that the options give."""
    return {} if arguments.image_size is None else {"image_size": arguments.image_size}


def with_options(preprocessing: Preprocessing, arguments: argparse.Namespace) -> Preprocessing:
    """The preprocessing, with the changes that the options give."""
    return dataclasses.replace(preprocessing, **_given(arguments))


def preprocessing_of(weights: str, image_size: tuple[int, int], arguments: argparse.Namespace) -> Preprocessing:
    """The preprocessing of weights, for images of a size, with the changes that the options give."""
    options = _given(arguments)
    try:
        preprocessing = load_preprocessing(weights)
    except ValueError as error:
        if len(options) < 3:
            raise ValueError(f"{error} Or pass --mean, --std and --crop-ratio.") from None
        preprocessing = Preprocessing()
    return dataclasses.replace(preprocessing, image_size=image_size, **options)


def seed(text: str) -> int:
    """The seed of a run."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{number} is out of range; expected a number from 0 to {2**32 - 1}")
    return number


def figure_path(text: str) -> Path:
    """A path that a figure can be written to, checked before the work starts."""
    # Not at the top: not all commands need Matplotlib.
    from matplotlib.backend_bases import FigureCanvasBase

    return _path(text, [f".{kind}" for kind in FigureCanvasBase.get_supported_filetypes()])


def logits_path(text: str) -> Path:
    """A path that a teacher's logits can be written to, checked before the work starts."""
    return _path(text, [".safetensors"])


def _path(text: str, suffixes: Sequence[str]) -> Path:
    path = Path(text).expanduser()
    if path.suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _given(arguments: argparse.Namespace) -> dict[str, float | list[float]]:
    options = {name: getattr(arguments, name) for name in ("mean", "std", "crop_ratio")}
    return {name: value for name, value in options.items() if value is not None}
